"""`picloud up`."""

import argparse

from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.output import Text
from picloud_jupyter.cli.service import read_service, refuse_inside_a_job
from picloud_jupyter.transport.embedded import embedded_client, ensure_running, stop
from picloud_jupyter.transport.paths import service_paths


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replace",
        action="store_true",
        help="put a fresh control plane in the place of the one that runs; running jobs go on",
    )


def _run(arguments: argparse.Namespace) -> Text:
    refuse_inside_a_job("up")
    paths = service_paths()
    replaced = arguments.replace and stop(paths, kill_jobs=False)
    started = ensure_running(paths)
    client = embedded_client(paths, start=True)
    try:
        service = read_service(client)
    finally:
        client.close()
    word = "replaced" if replaced else "started" if started else "runs already"
    return Text(
        f"the service {word}: pid {service['pid']}, {service.get('container_kind')} containers, home {service.get('home')}",
        service,
    )


COMMAND = Command(
    "up",
    "start the service of this machine, if it does not run",
    (
        "picloud up               start it (the first cloud.call does so too)",
        "picloud up --replace     after an upgrade: new code, running jobs go on",
    ),
    _run,
    _configure,
)
