"""`picloud backup`."""

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.exit_codes import REFUSED, ExitWith
from picloud_jupyter.cli.output import Text, format_bytes
from picloud_jupyter.cli.service import refuse_inside_a_job
from picloud_jupyter.cli.system_service import require_root
from picloud_jupyter.protocol.errors import Unreachable, error_from_wire
from picloud_jupyter.transport.embedded import service_environment, start_command
from picloud_jupyter.transport.paths import service_paths, system_paths


def add_place(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the positional FILE|FOLDER and --system."""
    parser.add_argument("place", metavar="FILE|FOLDER", help=text)
    parser.add_argument(
        "--system", action="store_true", help="the service of every user of this machine"
    )


def run_copying(
    word: str, arguments: argparse.Namespace, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what the service's own program says of a backup that it made or restored.

    Raises:
        CloudException: it refused; the words are its own.
    """
    refuse_inside_a_job(word)
    if arguments.system:
        require_root(word)
    paths = system_paths() if arguments.system else service_paths()
    place = os.path.abspath(arguments.place) + ("/" if arguments.place.endswith("/") else "")
    done = subprocess.run(
        [*start_command(paths, word), *options, place],
        env=service_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise Unreachable(
            f"`picloud {word}` ended with code {done.returncode}:\n{done.stderr[-4000:]}",
            retry=False,
        ) from None
    if done.returncode:
        raise error_from_wire(found)
    return found


def lost_words(lost: Sequence[str]) -> str:
    """Return a line on files that a backup lacks because they were damaged; "" if there are none."""
    if not lost:
        return ""
    shown = ", ".join(lost[:5]) + (" ..." if len(lost) > 5 else "")
    were = "file was" if len(lost) == 1 else "files were"
    return f"\n{len(lost):,} {were} damaged, unreadable or gone already and not in the backup: {shown}"


def _configure(parser: argparse.ArgumentParser) -> None:
    add_place(
        parser,
        "a new tar file (compressed if it ends in gz), or an empty folder; a new folder ends in /",
    )
    parser.add_argument(
        "--secrets",
        action="store_true",
        help="also the values of secrets; without it they are to be set again",
    )


def _run(arguments: argparse.Namespace) -> Text | ExitWith:
    found = run_copying("backup", arguments, ["--secrets"] if arguments.secrets else [])
    with_secrets = "secrets too" if found["secrets"] else "without secrets"
    text = (
        f"{found['jobs']:,} jobs with their results and output, {with_secrets}: "
        f"{format_bytes(found['bytes'])} in {arguments.place}{lost_words(found['lost'])}"
    )
    if not found["lost"]:
        return Text(text, found)
    text += "\nThe rest of it is whole and can be restored. Keep older backups: they may have what is missing."
    return ExitWith(REFUSED, Text(text, found))


COMMAND = Command(
    "backup",
    "copy all jobs, results and output into a file or folder, while the service runs",
    (
        "picloud backup jobs.tar.gz              one file, compressed",
        "picloud backup /mnt/usb/today/          a new folder",
        "picloud backup --secrets jobs.tar       with the values of your secrets: keep it safe",
        "sudo picloud backup --system jobs.tar   of every user of this machine",
    ),
    _run,
    _configure,
)
