"""From a bare interpreter to the user's own: site packages, sys.path, folder, `__main__`."""

import builtins
import os
import site
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SITE_FOLDERS = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """What the supervisor tells the runner on its command line; docs/internals.md 3.

    ``isolated`` says whether /tmp is the container's own.
    """

    sys_path: tuple[str, ...]
    folder: str
    home: str
    run_dir: str
    out_dir: str
    bundle: str
    code: str | None
    marker: bytes
    isolated: bool

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RunnerConfig":
        """Return the configuration in ``value``.

        Raises:
            KeyError: a field is missing.
        """
        return cls(
            sys_path=tuple(value["sys_path"]),
            folder=value["folder"],
            home=value["home"],
            run_dir=value["run_dir"],
            out_dir=value["out_dir"],
            bundle=value["bundle"],
            code=value["code"],
            marker=bytes.fromhex(value["marker"]),
            isolated=value["isolated"],
        )


def become_users_interpreter(config: RunnerConfig) -> None:
    """Make this interpreter what the user's own one is: packages, path, folder, `__main__`.

    Raises:
        OSError: the submitting folder cannot be entered.
    """
    # Bytecode could be written beside modules in the submitting folder alone, as a file of the job.
    sys.dont_write_bytecode = config.isolated
    _process_site_folders(config.sys_path)
    _customise(config)
    sys.path[:] = ordered_path(config, sys.path)
    sys.argv[:] = [""]
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    os.chdir(config.folder or config.home)
    os.environ["PICLOUD_RUN_DIR"] = config.run_dir
    os.environ["PICLOUD_HOME_DIR"] = config.home


def ordered_path(config: RunnerConfig, present: Sequence[str]) -> list[str]:
    """Return sys.path: folder, shipped code, the user's path, what is ``present``, our bundle."""
    wanted = [config.folder, config.code or "", *config.sys_path, *present]
    ordered = dict.fromkeys(entry for entry in wanted if entry and entry != config.bundle)
    return [*ordered, config.bundle]


def _process_site_folders(sys_path: Sequence[str]) -> None:
    """Do what `site` does at a start: the virtual environment's prefix, .pth files, names like exit.

    The user's site folder is taken from ``sys_path``, as HOME is another one here.
    """
    known: set[str] = set(map(os.path.normcase, sys.path))
    site.venv(known)
    done = set(sys.path)
    for entry in sys_path:
        if os.path.basename(entry) in _SITE_FOLDERS and entry not in done:
            site.addsitedir(entry, known)
    site.setquit()
    site.setcopyright()
    site.sethelper()


def _customise(config: RunnerConfig) -> None:
    """Run the sitecustomize that the user's own interpreter found: also one on PYTHONPATH.

    The folder is not on the path yet, as it is not in an interpreter that starts.
    """
    users = (entry for entry in config.sys_path if entry != config.folder)
    sys.path[:] = dict.fromkeys((*users, *sys.path))
    site.execsitecustomize()
