"""`picloud down`."""

import argparse

from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.output import Text
from picloud_jupyter.cli.service import refuse_inside_a_job
from picloud_jupyter.cli.system_service import require_root, stop_system
from picloud_jupyter.transport.embedded import stop
from picloud_jupyter.transport.paths import service_paths, system_paths


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--purge", action="store_true", help="also remove all jobs, results and logs"
    )
    parser.add_argument(
        "--system", action="store_true", help="the service of every user of this machine"
    )
    # for systemd's own stop
    parser.add_argument("--keep-unit", action="store_true", help=argparse.SUPPRESS)


def _run(arguments: argparse.Namespace) -> Text:
    refuse_inside_a_job("down")
    if arguments.system:
        require_root("down")
        paths = system_paths()
        ran = stop_system(paths, purge=arguments.purge, keep_unit=arguments.keep_unit)
    else:
        paths = service_paths()
        ran = stop(paths, kill_jobs=True, purge=arguments.purge)
    words = ["the service is down" if ran else "the service was not running"]
    if arguments.purge:
        words.append(f"what it kept in {paths.home} is removed")
    return Text("; ".join(words), {"ran": ran, "purged": arguments.purge})


COMMAND = Command(
    "down",
    "stop the service; running jobs end, and restartable ones run again after the next start",
    (
        "picloud down             stop; jobs and results are kept",
        "picloud down --purge     stop, and remove everything the service ever kept",
        "sudo picloud down --system",
    ),
    _run,
    _configure,
)
