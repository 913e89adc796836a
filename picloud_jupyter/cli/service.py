"""What the words about the service share."""

import time
from typing import Any

from picloud_jupyter.cli.output import format_bytes
from picloud_jupyter.cli.quota_words import used_of
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import NotAllowed
from picloud_jupyter.transport.client import Client
from picloud_jupyter.transport.inside import current_job

AGENT_SECONDS = 10.0


def read_service(client: Client) -> dict[str, Any]:
    """Return what the control plane says of the service, once its agent has reported.

    Only a service that was started just now has to be asked again; after ten seconds it is taken as
    it is.
    """
    deadline_at = time.monotonic() + AGENT_SECONDS
    pause = 0.01
    while True:
        service: dict[str, Any] = client.get(routes.SERVICE)
        if service.get("container_kind") or time.monotonic() > deadline_at:
            return service
        time.sleep(pause)
        pause = min(0.02, pause * 1.5)


def refuse_inside_a_job(word: str) -> None:
    """Return if this is no job.

    Raises:
        NotAllowed: it is one.
    """
    if current_job() is not None:
        raise NotAllowed(
            f"`picloud {word}` cannot be used inside a job: the service is not the job's"
        )


def isolation_words(service: dict[str, Any]) -> str:
    """Return which containers are used, and whether they isolate."""
    kind = service.get("container_kind") or "unknown"
    return "plain: jobs are NOT ISOLATED from this account" if kind == "plain" else str(kind)


def serves_words(service: dict[str, Any]) -> str:
    """Return whom the service serves, and as whom it knows the caller."""
    if service.get("scope") == "system":
        return f"every user of this machine; you are uid {service.get('user_id')}"
    return f"uid {service.get('user_id')} alone"


def _use_words(service: dict[str, Any]) -> str:
    user = service.get("user")
    return ", ".join(f"{name} {text}" for name, text in used_of(user).items()) if user else ""


def describe_service(service: dict[str, Any], now: float) -> str:
    """Return the answer of GET /v1/service for people; ``now`` in UTC seconds."""
    from picloud_jupyter.cloud.progress import format_seconds  # with all of the API

    disk = service.get("disk") or {}
    capacity = service.get("capacity") or {}
    counts = service.get("counts") or {}
    age = format_seconds(max(0.0, now - service.get("started_at", now)))
    jobs = ", ".join(f"{number:,} {status}" for status, number in counts.items() if number)
    lines = [
        (
            "service",
            f"pid {service.get('pid')}, agent pid {service.get('agent_pid')}, up for {age}, version {service.get('version')}",
        ),
        ("serves", serves_words(service)),
        ("isolation", isolation_words(service)),
        ("limits", str(service.get("limits_grade"))),
        ("network", str(service.get("network"))),
        (
            "capacity",
            f"{capacity.get('cores', 0):g} cores, {format_bytes(capacity.get('memory_bytes', 0))} of memory",
        ),
        ("jobs", jobs or "none"),
        ("you use", _use_words(service)),
        ("home", str(service.get("home"))),
        (
            "disk",
            f"{format_bytes(disk.get('home_bytes', 0))} used (results {format_bytes(disk.get('blobs_bytes', 0))}, logs {format_bytes(disk.get('logs_bytes', 0))}), {format_bytes(disk.get('free_bytes', 0))} free",
        ),
    ]
    if service.get("note"):
        lines.append(("note", str(service["note"])))
    return "\n".join(f"{name:<10} {text}" for name, text in lines)
