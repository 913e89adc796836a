"""`picloud restore`."""

import argparse
import datetime

from picloud_jupyter.cli.backup import add_place, lost_words, run_copying
from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.output import Text


def _run(arguments: argparse.Namespace) -> Text:
    found = run_copying("restore", arguments)
    made = datetime.datetime.fromtimestamp(found["made_at"]).astimezone()
    lines = [f"{found['jobs']:,} jobs as of {made:%F %T} are in {found['home']}"]
    if found["unfinished"]:
        lines.append(
            f"{found['unfinished']:,} of them were not finished: they run when the service starts "
            "(one with _restartable=False that ran already ends as stalled)"
        )
    if not found["secrets"]:
        lines.append("secrets were not in the backup: set them with `picloud secret set`")
    start = "sudo picloud up --system" if arguments.system else "picloud up"
    lines.append(f"start the service with `{start}`")
    return Text("\n".join(lines) + lost_words(found["lost"]), found)


COMMAND = Command(
    "restore",
    "put a backup into a home that was not used yet",
    (
        "picloud restore jobs.tar.gz",
        "PICLOUD_HOME=~/copy picloud restore /mnt/usb/today",
        "sudo picloud restore --system jobs.tar",
    ),
    _run,
    lambda parser: add_place(parser, "what `picloud backup` made"),
)
