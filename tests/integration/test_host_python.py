"""The identity of the submitting Python."""

import os
import sys

import pytest

from picloud_jupyter.cloud.host_python import editable_targets, host_python, packages_digest
from picloud_jupyter.protocol.errors import CloudException


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages on sys.path."""
    folder = tmp_path / "site-packages"
    (folder / "thing-1.0.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(folder)
    return folder


def test_host_python_is_this_interpreter():
    found = host_python()
    assert found.executable == sys.executable
    assert (found.prefix, found.base_prefix) == (sys.prefix, sys.base_prefix)
    assert found.version == ".".join(map(str, sys.version_info[:3]))
    assert all(os.path.isabs(path) and os.path.exists(path) for path in found.paths)
    assert "" not in found.sys_path


def test_host_python_when_nothing_changed_is_the_same_object():
    assert host_python() is host_python()


def test_host_python_when_a_package_is_upgraded_has_another_digest(site):
    before = host_python()
    (site / "thing-1.0.dist-info").rename(site / "thing-2.0.dist-info")
    after = host_python()
    assert after.packages_digest != before.packages_digest
    assert after.paths == before.paths


def test_host_python_when_path_changes_follows(tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "new")
    monkeypatch.syspath_prepend(tmp_path / "link")
    found = host_python()
    assert str(tmp_path / "link") in found.sys_path
    for path in ("link", "new"):
        assert any(str(tmp_path / path).startswith(p) for p in found.paths)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_host_python_when_a_path_is_unreadable_names_it(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir(mode=0o000)
    monkeypatch.syspath_prepend(tmp_path / "closed")
    with pytest.raises(CloudException, match="closed"):
        host_python()


def test_packages_digest_when_reinstalled_changes(site):
    before = packages_digest([str(site)])
    assert packages_digest([str(site)]) == before
    os.utime(site / "thing-1.0.dist-info", ns=(1, 1))
    assert packages_digest([str(site)]) != before


def test_editable_targets_reads_pth_lines_and_finders(site, tmp_path):
    for name in ("by_path", "mapped", "spaced"):
        (tmp_path / name).mkdir()
    (site / "a.pth").write_text(
        f"# words\nimport sys\n{tmp_path / 'by_path'}\n/no/such/folder\n"
    )
    (site / "__editable___x_finder.py").write_text(
        f"MAPPING: dict[str, str] = {{'m': {str(tmp_path / 'mapped')!r}}}\n"
        f"NAMESPACES = {{'n': [{str(tmp_path / 'spaced')!r}]}}\n"
    )
    found = editable_targets(str(site))
    assert found == [str(tmp_path / n) for n in ("mapped", "spaced", "by_path")]


def test_editable_targets_when_a_finder_is_odd_goes_on(site):
    (site / "__editable___x_finder.py").write_text("def f(:")
    (site / "__editable___y_finder.py").write_text("MAPPING = make()")
    assert editable_targets(str(site)) == []
