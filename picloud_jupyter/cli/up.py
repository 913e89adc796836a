"""`picloud up`."""

import argparse
import os

from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.output import Text
from picloud_jupyter.cli.service import read_service, refuse_inside_a_job
from picloud_jupyter.cli.system_service import require_root, start_system, uses_systemd
from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.transport.embedded import embedded_client, ensure_running, stop
from picloud_jupyter.transport.paths import ServicePaths, is_set_up, service_paths, system_paths


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replace",
        action="store_true",
        help="put a fresh control plane in the place of the one that runs; running jobs go on",
    )
    parser.add_argument(
        "--system",
        action="store_true",
        help="one service for every user of this machine, each with their own jobs; for root",
    )


def _run(arguments: argparse.Namespace) -> Text:
    refuse_inside_a_job("up")
    if arguments.system:
        return _run_system(replace=arguments.replace)
    system = system_paths()
    if is_set_up(system) and not os.environ.get("PICLOUD_HOME"):
        if arguments.replace:
            raise InvalidRequest(
                "the service that serves you is that of every user of this machine",
                hint="sudo picloud up --system --replace",
            )
        words = "the service of every user of this machine serves you (PICLOUD_HOME chooses one of your own)"
        return _describe(system, words)
    paths = service_paths()
    replaced = arguments.replace and stop(paths, kill_jobs=False)
    started = ensure_running(paths)
    word = "replaced" if replaced else "started" if started else "runs already"
    return _describe(paths, f"the service {word}")


def _run_system(*, replace: bool) -> Text:
    require_root("up")
    paths = system_paths()
    word = start_system(paths, replace=replace)
    keeper = (
        "systemd starts it with the machine"
        if uses_systemd(paths)
        else "started directly: nothing starts it again with the machine, as systemd does not run it"
    )
    return _describe(paths, f"the service of this machine {word} ({keeper})")


def _describe(paths: ServicePaths, words: str) -> Text:
    client = embedded_client(paths, start=paths.public is None)
    try:
        service = read_service(client)
    finally:
        client.close()
    kind = service.get("container_kind")
    made = f"{kind} containers" if kind else "no containers yet: `picloud doctor` says why"
    return Text(f"{words}: pid {service['pid']}, {made}, home {service.get('home')}", service)


COMMAND = Command(
    "up",
    "start the service of this machine, if it does not run",
    (
        "picloud up               start it (the first cloud.call does so too)",
        "picloud up --replace     after an upgrade: new code, running jobs go on",
        "sudo picloud up --system one service for every user of this machine",
    ),
    _run,
    _configure,
)
