"""The fields of `cloud.info`: their names, and how each is found. Pure but for what it is given."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.codec import to_wire
from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.frames import FrameError, split_frame
from picloud_jupyter.protocol.jobs import CORE_TYPES, JobSpec, Status
from picloud_services.jobs.live import Running
from picloud_services.jobs.queries import ResultRow

DEFAULT_FIELDS = ("stdout", "stderr", "status", "runtime")
OUTPUT_FIELDS = frozenset({"stdout", "stderr"})
GPU_FIELDS = ("gpu.utilization", "gpu.memory")  # out of samples, by the gateway
GROUPS: dict[str, tuple[str, ...]] = {
    "memory": (
        "memory.usage",
        "memory.max_usage",
        "memory.failcnt",
        "swap.usage",
        "swap.max_usage",
        "disk.usage",
    ),
    "cputime": ("cputime.user", "cputime.system"),
    "cpu_percentage": ("cpu_percentage.user", "cpu_percentage.system"),
    "disk": ("disk.usage", "disk.read", "disk.written"),
    "network": ("network.received", "network.sent"),
    "gpu": GPU_FIELDS,
}
FIELDS = (
    *("status", "reason", "stdout", "stderr", "logging", "pilog", "exception", "runtime"),
    *("created", "started", "finished", "env", "vol", "label", "function", "attributes"),
    *("profile", "code_version", "ports", "attempt", "cost", "core_type", "cores", "node"),
    *("map", "parent_jid", "cached_from", "note", "usage_shared", "environment_id"),
    *("secrets", "gpus"),
    *("files_written", "files_left"),
    # disk.usage is in two groups
    *dict.fromkeys(name for group in GROUPS.values() for name in group),
)
PLACE_FIELDS = ("host_python", "folder")  # for jobs that submit jobs; too long for "all"


@dataclass(frozen=True, slots=True)
class JobFacts:
    """All that the store and the image know of one job."""

    jid: int
    status: Status
    reason: str | None
    message: str | None
    attempt: int
    created_at: float
    finished_at: float | None
    label: str | None
    map_id: int | None
    parent_jid: int | None
    spec: JobSpec
    environment_id: str
    record: ResultRow | None
    usage: dict[str, Any]
    running: Running | None
    why: str
    now_at: float


def expand(asked: Sequence[str] | None) -> tuple[str, ...]:
    """Return the fields that ``asked`` names, groups opened.

    Raises:
        InvalidRequest: there is no such field; near ones are named.
    """
    if asked is None:
        return DEFAULT_FIELDS
    names: list[str] = []
    for name in asked:
        if name == "all":
            names += FIELDS
        elif name in GROUPS:
            names += GROUPS[name]
        elif name in FIELDS or name in PLACE_FIELDS:
            names.append(name)
        else:
            near = difflib.get_close_matches(name, [*FIELDS, *GROUPS, "all"], n=3)
            raise InvalidRequest(
                f"there is no field {name[:80]!r}",
                hint=f"did you mean {', '.join(near)}?"
                if near
                else f"there are {', '.join([*FIELDS, *GROUPS])}",
            )
    return tuple(dict.fromkeys(names))


def values(facts: JobFacts, fields: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``fields``; output is left out, it is read from files."""
    found: dict[str, Any] = {}
    table = _table(facts)
    for name in fields:
        if name not in OUTPUT_FIELDS:
            found[name] = table.get(name)
    if "host_python" in found:
        found["host_python"] = to_wire(facts.spec.host_python)
    return found


def _table(facts: JobFacts) -> dict[str, Any]:
    spec = facts.spec
    item = facts.record.item(facts.jid) if facts.record is not None else None
    extra = (item[6] or {}) if item else {}
    started_at = item[1] if item else facts.running.started_at if facts.running else None
    runtime = item[2] if item else facts.now_at - started_at if started_at else 0.0
    cores = spec.cores * CORE_TYPES[spec.core_type].share
    price = CORE_TYPES[spec.core_type].price_per_core_hour * spec.cores / 3600
    return {
        "status": str(facts.status),
        "reason": facts.reason,
        "logging": "",
        "pilog": _platform_messages(facts, extra),
        "exception": _exception(facts),
        "runtime": max(runtime, 0.0),
        "created": facts.created_at,
        "started": started_at or None,
        "finished": facts.finished_at,
        "env": spec.environment,
        "vol": list(spec.volumes),
        "label": facts.label,
        "function": spec.function_name,
        "attributes": _attributes(facts),
        "folder": spec.folder,
        "profile": extra.get("profile"),
        "code_version": spec.code_version or None,
        "ports": {},
        "attempt": facts.attempt,
        "cost": max(runtime, 0.0) * price if facts.status is not Status.QUEUED else 0.0,
        "core_type": spec.core_type,
        "cores": spec.cores,
        "secrets": dict(spec.secrets),
        "gpus": spec.gpus,
        **(dict.fromkeys(GPU_FIELDS, 0) if spec.gpus else {}),
        "node": facts.record.node if facts.record else facts.running and facts.running.node,
        "map": facts.map_id,
        "parent_jid": facts.parent_jid,
        "cached_from": extra.get("cached_from"),
        "note": extra.get("note"),
        "files_written": (extra.get("files") or {}).get("count", 0),
        "files_left": (extra.get("files") or {}).get("left", 0),
        "environment_id": facts.environment_id,
        **_usage(facts, item, extra, runtime, cores),
    }


def _usage(
    facts: JobFacts,
    item: Sequence[Any] | None,
    extra: dict[str, Any],
    runtime: float,
    cores: float,
) -> dict[str, Any]:
    usage = facts.usage
    user, system = (item[3], item[4]) if item else (0.0, 0.0)
    percent = 100 / (runtime * cores) if runtime > 0 and cores else 0.0
    return {
        "cputime.user": user,
        "cputime.system": system,
        "cpu_percentage.user": user * percent,
        "cpu_percentage.system": system * percent,
        "memory.usage": usage.get("memory_bytes", 0),
        "memory.max_usage": extra.get("memory_peak_bytes") or usage.get("memory_peak_bytes", 0),
        "memory.failcnt": int(facts.reason == "oom"),
        "swap.usage": 0,
        "swap.max_usage": 0,
        "disk.usage": usage.get("disk_written_bytes", 0),
        "disk.read": usage.get("disk_read_bytes", 0),
        "disk.written": usage.get("disk_written_bytes", 0),
        "network.received": usage.get("network_received_bytes", 0),
        "network.sent": usage.get("network_sent_bytes", 0),
        "usage_shared": bool(usage.get("shared")) and not extra.get("memory_peak_bytes"),
    }


def _attributes(facts: JobFacts) -> dict[str, Any]:
    spec = facts.spec
    return {
        "kind": str(spec.kind),
        "label": facts.label,
        "restartable": spec.restartable,
        "core_type": spec.core_type,
        "cores": spec.cores,
        "environment": spec.environment,
        "volumes": list(spec.volumes),
        "max_runtime_seconds": spec.max_runtime_seconds,
        "profile": spec.profile,
        "kill_process": spec.kill_process,
        "variables": [name for name, _ in spec.variables],
        "network": str(spec.network),
        "retries": spec.retries.count,
        "cache": spec.cache,
        "fast_serialization": spec.fast_serialization,
        "depends_on_errors": spec.depends_on_errors,
        "folder": spec.folder,
        "parent_jid": facts.parent_jid,
        "host_name": spec.host_name,
        "process_id": spec.process_id,
        "client_version": spec.client_version,
        "python_version": spec.host_python.version,
    }


def _platform_messages(facts: JobFacts, extra: dict[str, Any]) -> str:
    lines = [facts.why, facts.message or "", extra.get("note") or ""]
    if facts.attempt > 1:
        lines.append(f"This is attempt {facts.attempt}.")
    return "\n".join(line for line in lines if line)


def _exception(facts: JobFacts) -> str | None:
    if facts.status not in (Status.ERROR, Status.KILLED, Status.STALLED):
        return None
    if facts.record is not None:
        traceback = failure_text(facts.record.body(facts.jid))
        if traceback:
            return traceback
    return facts.message


def failure_text(body: bytes) -> str:
    """Return the traceback in a failure frame; "" if it is not one. The pickled rest is not read."""
    if not body:
        return ""
    try:
        header, _ = split_frame(body)
    except (FrameError, json.JSONDecodeError):
        return ""
    return str(header.get("traceback") or header.get("message") or "")
