"""``python -m picloud_services control|agent|backup|restore --home FOLDER --run FOLDER [--public FOLDER] ...``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.base.collector import without_collector
from picloud_services.base.core_dumps import forbid_core_dumps

USAGE = """usage: python -m picloud_services control|agent --home FOLDER --run FOLDER [--public FOLDER] [--NAME=VALUE ...]

Starts one process of a service; `picloud up` does this for you. With --public it serves every user
of this machine, by a socket in that folder; `sudo picloud up --system` does that. Settings, which
HOME/picloud_config.py (c.PiCloud.NAME = VALUE) and the environment (PICLOUD_NAME) may hold too:
"""


def main(arguments: Sequence[str]) -> int:
    """Return the exit code: 0 after a clean end, 1 if the start failed, 2 for a wrong command."""
    if "--help" in arguments or "-h" in arguments:
        from picloud_services.config.load import help_text

        sys.stdout.write(f"{USAGE}\n{help_text()}\n")
        return 0
    try:
        role, paths, options = _parse(arguments)
    except ValueError as exc:
        sys.stderr.write(f"{exc}\n\n{USAGE.splitlines()[0]}\n")
        return 2
    forbid_core_dumps()
    # Each role imports its own half: neither pays for the other's memory.
    if role == "agent":
        return _run_agent(paths)
    if role in ("backup", "restore"):
        from picloud_services.app.copying import run_copying

        return run_copying(role, paths, options)
    with without_collector():
        from picloud_services.app.startup import run_control
    return run_control(paths, options)


def _run_agent(paths: ServicePaths) -> int:
    with without_collector():
        from picloud_services.agent import launcher
        from picloud_services.base.open_files import allow_open_files

        allow_open_files()
        forked = launcher.fork()  # now, while there is a single thread
        from picloud_services.agent.agent import run_agent
        from picloud_services.agent.launcher_client import LauncherClient
        from picloud_services.config import from_environment
    return run_agent(from_environment(paths), LauncherClient(forked))


def _parse(arguments: Sequence[str]) -> tuple[str, ServicePaths, list[str]]:
    role, *rest = arguments or [""]
    if role not in ("control", "agent", "backup", "restore"):
        raise ValueError(f"the first word must be control or agent, got {role!r}")
    folders: dict[str, Path] = {}
    options = []
    words = iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--home", "--run", "--public"):
            folders[name] = Path(value if equals else next(words, ""))
        else:
            options.append(word)
    for name in {"--home", "--run", *folders}:
        if name not in folders or not folders[name].is_absolute():
            raise ValueError(f"{name} must name a folder by its absolute path")
    return (
        role,
        ServicePaths(folders["--home"], folders["--run"], folders.get("--public")),
        options,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
