"""Versions of both sides in words."""

import numpy

from picloud_jupyter.serialize.versions import (
    VersionReport,
    local_report,
    package_versions,
    version_warnings,
)


def test_package_versions_names_installed_packages_only():
    found = package_versions({"numpy.linalg", "os.path", "__main__", "picloud_jupyter.cloud"})
    assert found == {"numpy": numpy.__version__}


def test_version_warnings_when_equal_says_nothing():
    report = local_report({"numpy"})
    assert version_warnings(report, report) == []


def test_version_warnings_when_patch_of_python_differs_says_nothing():
    assert version_warnings(VersionReport("3.11.7"), VersionReport("3.11.2")) == []


def test_version_warnings_names_each_difference():
    client = VersionReport("3.12.1", {"a": "1", "b": "2"})
    text = version_warnings(client, VersionReport("3.11.2", {"a": "2"}))
    assert len(text) == 3
    assert "b 2 is not installed" in text[2]
