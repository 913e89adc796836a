"""`picloud doctor`."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.exit_codes import REFUSED, ExitWith
from picloud_jupyter.cli.gpu_words import gpu_words, gpus_of
from picloud_jupyter.cli.output import Text
from picloud_jupyter.cli.service import isolation_words, read_service, serves_words
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.transport.embedded import service_environment
from picloud_jupyter.transport.endpoint import Endpoint
from picloud_jupyter.transport.paths import is_set_up, system_paths

TRIAL_SECONDS = 60.0
_TRY_KINDS = (
    "import dataclasses, json, sys; from picloud_services.agent.trial import try_kinds; "
    "print(json.dumps([dataclasses.asdict(t) for t in try_kinds(sys.argv[1] or None)]))"
)


def _run(_arguments: argparse.Namespace) -> Text | ExitWith:
    try:
        service = read_service(session().client)
    except CloudException as exc:
        endpoint = session().client.endpoint
        if endpoint.embedded is None and not endpoint.system:
            raise
        trials, problem = _try_kinds((endpoint.embedded or system_paths()).home)
        value = {"running": False, "error": str(exc), "trials": trials}
        name = "service of this machine" if endpoint.system else "service"
        text = f"The {name} does not run:\n{_indent(str(exc))}\n\n{describe_trials(trials, None)}{problem}"
        return ExitWith(REFUSED, Text(text, value))
    if not service.get("container_kind"):
        return _without_agent(service)
    trials = service.get("trials") or []
    head = [
        f"The service runs (pid {service.get('pid')}, version {service.get('version')}).",
        f"It serves {serves_words(service)}.{_other_service(session().client.endpoint)}",
        f"Containers: {isolation_words(service)}. Limits: {service.get('limits_grade')}. Network: {service.get('network')}.",
        f"GPUs: {gpu_words(service)}.",
    ]
    if service.get("limits_grade") == "watched":
        head.append(
            "Limits that are watched: memory is looked at several times a second; "
            "`picloud host-setup --dry-run` says whether the kernel could enforce them here."
        )
    if service.get("network_note"):
        head.append(f"No better network: {service['network_note']}.")
    text = "\n".join(head) + "\n\n" + describe_trials(trials, service.get("container_kind"))
    return Text(
        text,
        {
            "running": True,
            "scope": service.get("scope"),
            "container_kind": service.get("container_kind"),
            "limits_grade": service.get("limits_grade"),
            "network": service.get("network"),
            "network_note": service.get("network_note", ""),
            "gpus": gpus_of(service),
            "trials": trials,
        },
    )


def _without_agent(service: dict[str, Any]) -> ExitWith:
    """What is known of a service that has nobody who makes containers."""
    lines = ["The service runs, but no agent does: jobs wait."]
    log = Path(str(service.get("home"))) / "agent.log"
    if not os.access(log, os.R_OK):
        trials: list[dict[str, Any]] = []
        lines.append(f"Its user finds the reason in {log} on {service.get('host')}.")
    else:
        trials, problem = _try_kinds(log.parent)
        lines += [_indent(_last_error(log)), "", describe_trials(trials, None) + problem]
    value = {
        "running": True,
        "scope": service.get("scope"),
        "container_kind": None,
        "trials": trials,
    }
    return ExitWith(REFUSED, Text("\n".join(lines), value))


def _last_error(log: Path) -> str:
    """Return the words of the last error in a log of JSON lines, and where it is."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        try:
            found = json.loads(line)
        except ValueError:  # printed by something else than a logger
            continue
        if isinstance(found, dict) and found.get("level") == "error":
            last = str(found.get("traceback") or found.get("message")).strip().splitlines()[-1]
            return f"{last}\n(the last error in {log})"
    return f"(no error in {log})"


def _other_service(endpoint: Endpoint) -> str:
    if endpoint.embedded is not None and is_set_up(system_paths()):
        return " There is a service of every user too: unset PICLOUD_HOME to use that."
    return ""


def describe_trials(trials: list[dict[str, Any]], chosen: str | None) -> str:
    """Return each kind of container with what its trial said, and the line that mends it."""
    lines = ["Kinds of container, best first:"]
    for trial in trials:
        kind = trial.get("kind")
        state = "works" if trial.get("works") else "does not work"
        mark = "  <- chosen" if kind == chosen else ""
        lines.append(f"  {kind:<9} {state}{mark}")
        if trial.get("program"):
            lines.append(f"            program: {trial['program']}")
        if trial.get("why"):
            lines.append(f"            because: {trial['why']}")
        if trial.get("mend"):
            lines.append(f"            to mend: {trial['mend']}")
    return "\n".join(lines)


def _try_kinds(home: Path) -> tuple[list[dict[str, Any]], str]:
    """The trials, made here and now; with what went wrong if they cannot be made.

    They are made on the disk of the service, as not every disk can hold a layer.
    """
    places = [place for place in (home / "layers", home) if os.access(place, os.W_OK)]
    where = str(places[0]) if places else ""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TRY_KINDS, where],
            capture_output=True,
            text=True,
            check=False,
            timeout=TRIAL_SECONDS,
            cwd="/",
            env=service_environment(),
        )
        if done.returncode:
            said = done.stderr.strip() or f"the trial ended with {done.returncode}"
            return [], f"\n  could not be tried: {said.splitlines()[-1]}"
        return json.loads(done.stdout), ""
    except (OSError, ValueError, subprocess.TimeoutExpired) as exc:
        return [], f"\n  could not be tried: {exc}"


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


COMMAND = Command(
    "doctor",
    "say which kind of container is used, why the others are not, and what would mend them",
    (
        "picloud doctor           also works when the service cannot start",
        "picloud -o json doctor   the same as JSON",
    ),
    _run,
)
