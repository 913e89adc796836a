"""Completion of the words and values of ``%%picloud`` and ``%picloud``."""

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

from picloud_jupyter.cloud.session import service, session
from picloud_jupyter.magics.arguments import PARSER
from picloud_jupyter.magics.commands import COMMANDS
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.protocol.jobs import CORE_TYPES

_RECENT_JOBS = 200
_OPTIONS = [option for action in PARSER._actions for option in action.option_strings]  # noqa: SLF001  # argparse has no other way
_LONG = {
    option: action.option_strings[0]
    for action in PARSER._actions  # noqa: SLF001
    for option in action.option_strings
}


def complete(shell: Any, event: Any) -> list[str]:  # noqa: ANN401  # IPython's
    """Return what may stand at the cursor; IPython's hook ``complete_command``."""
    words = event.text_until_cursor.split()
    if event.symbol and words:
        words = words[:-1]
    command, *before = words or [""]
    if command == "%picloud" and not before:
        return sorted(COMMANDS)
    if command == "%picloud" and before[0] != "config":
        return [str(jid) for jid in recent_jids(shell)]
    return suggest(shell, before, event.symbol)


def recent_jids(shell: Any) -> list[int]:  # noqa: ANN401
    """Return the jobs of this notebook, the newest first."""
    magics = shell.magics_manager.registry.get("PicloudMagics")
    return [] if magics is None else magics.jobs.jids[::-1]


def suggest(shell: Any, before: Sequence[str], symbol: str) -> list[str]:  # noqa: ANN401
    """Return what may follow the words ``before`` and begins with ``symbol``."""
    option = _LONG.get(before[-1], "") if before else ""
    if option == "--type":
        found: Iterable[str] = CORE_TYPES
    elif option == "--cores":
        found = map(str, CORE_TYPES[_given_type(before)].core_counts)
    elif option in ("--file", "--fetch", "--vol"):
        found = _paths(symbol, folders_only=option != "--file")
    elif option == "--label":
        found = _labels()
    elif option in ("--input", "--output"):
        found = (name for name in shell.user_ns if not name.startswith("_"))
    else:
        found = _OPTIONS
    return sorted(text for text in found if text.startswith(symbol))


def _given_type(before: Sequence[str]) -> str:
    for option, value in itertools.pairwise(before):
        if _LONG.get(option) == "--type" and value in CORE_TYPES:
            return value
    return "c1"


def _paths(text: str, *, folders_only: bool) -> list[str]:
    folder, name = os.path.split(text)
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError:
        return []
    return [
        os.path.join(folder, entry) + ("/" if is_folder else "")
        for entry, is_folder in listed
        if (is_folder or not folders_only) and entry.startswith(name)
    ]


def _labels() -> set[str]:
    """Labels of recent jobs; none where nothing is connected, as completing starts no service."""
    if service().opened is None:
        return set()
    try:
        jobs = session().client.get(routes.JOBS, {"limit": _RECENT_JOBS})["jobs"]
    except CloudException:
        return set()
    return {job["label"] for job in jobs if job["label"]}
