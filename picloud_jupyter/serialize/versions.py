"""Which Python and which packages: said by both sides, compared in words."""

import functools
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

OWN_PACKAGES = frozenset(("picloud_jupyter", "picloud_kernels", "picloud_services"))


@dataclass(frozen=True, slots=True)
class VersionReport:
    """A Python version such as ``3.11.7`` and the versions of packages by import name."""

    python: str
    packages: Mapping[str, str] = field(default_factory=dict)


def package_versions(modules: Iterable[str]) -> dict[str, str]:
    """Return {package: version} of the installed packages that ``modules`` (dotted names) belong to."""
    tops = {name.partition(".")[0] for name in modules}
    tops -= sys.stdlib_module_names | OWN_PACKAGES | {"__main__", "__mp_main__"}
    return {top: version for top in sorted(tops) if (version := _version(top))}


def _version(top: str) -> str:
    stated = getattr(sys.modules.get(top), "__version__", None)
    return stated if isinstance(stated, str) else _installed_version(top)


@functools.cache
def _installed_version(top: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(top)
    except (metadata.PackageNotFoundError, ValueError):
        return ""


def local_report(modules: Iterable[str]) -> VersionReport:
    """Return the versions of this interpreter and of the packages of ``modules``."""
    return VersionReport(platform.python_version(), package_versions(modules))


def version_warnings(client: VersionReport, runner: VersionReport) -> list[str]:
    """Return one sentence per difference that matters: Python's minor version, packages used.

    >>> version_warnings(VersionReport("3.11.7", {"numpy": "2.4"}), VersionReport("3.11.2", {"numpy": "2.3"}))
    ['numpy is 2.4 here and 2.3 where the job runs']
    """
    warnings = []
    if _minor(client.python) != _minor(runner.python):
        warnings.append(
            f"Python is {client.python} here and {runner.python} where the job runs; functions sent by value "
            "need the same minor version"
        )
    for name, version in sorted(client.packages.items()):
        there = runner.packages.get(name)
        if there is None:
            warnings.append(f"{name} {version} is not installed where the job runs")
        elif there != version:
            warnings.append(f"{name} is {version} here and {there} where the job runs")
    return warnings


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
