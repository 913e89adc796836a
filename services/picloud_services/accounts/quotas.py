"""What a user may still do within a quota, and the words where it is reached. Pure.

Quotas here are quotas in force: 0 is no limit. A reached quota ends nothing: new jobs are refused,
queued ones wait and go on when the quota is raised or space is freed.
"""

from dataclasses import dataclass, fields

from picloud_jupyter.protocol.jobs import Resources
from picloud_jupyter.protocol.users import Quota, cost_words

ROUNDING = 1e-6
NOTHING = Resources(0.0, 0)
NO_LIMITS = Quota(0.0, 0, 0, 0.0)
RAISE = "whoever runs this service may raise it: picloud user quota"
_UNITS = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))


@dataclass(frozen=True, slots=True)
class Standing:
    """What the jobs of a user have cost and occupy, as of a commit."""

    cost: float = 0.0
    disk_bytes: int = 0


def in_force(own: Quota, default: Quota) -> Quota:
    """Return what holds for a user with the quota ``own`` where the service has ``default``.

    >>> in_force(Quota(cores=2), Quota(cores=4, cost=0, disk_bytes=10))
    Quota(cores=2, memory_bytes=0, disk_bytes=10, cost=0)
    """
    values = {}
    for field in fields(Quota):
        value = getattr(own, field.name)
        values[field.name] = (getattr(default, field.name) if value is None else value) or 0
    return Quota(**values)


def why_not_now(quota: Quota, held: Resources, wanted: Resources) -> str:
    """Return why a job may not start beside what the user's other jobs hold; "" if it may.

    >>> why_not_now(Quota(cores=2), Resources(2.0, 0), Resources(1.0, 0))
    'your jobs hold 2 cores, and your quota is 2 cores'
    >>> why_not_now(Quota(cores=2), Resources(1.0, 0), Resources(1.0, 0))
    ''
    """
    never = why_never(quota, wanted)
    if never:
        return never
    if quota.cores and held.cores + wanted.cores > quota.cores + ROUNDING:
        return f"your jobs hold {_cores(held.cores)}, and your quota is {_cores(quota.cores)}"
    if quota.memory_bytes and held.memory_bytes + wanted.memory_bytes > quota.memory_bytes:
        return (
            f"your jobs hold {size_words(held.memory_bytes)} of memory and it needs "
            f"{size_words(wanted.memory_bytes)}, and your quota is {size_words(quota.memory_bytes)}"
        )
    return ""


def why_never(quota: Quota, wanted: Resources) -> str:
    """Return why a job may not start even if no other of the user runs; "" if it may."""
    if quota.cores and wanted.cores > quota.cores + ROUNDING:
        return f"it needs {_cores(wanted.cores)}, and your quota is {_cores(quota.cores)}"
    if quota.memory_bytes and wanted.memory_bytes > quota.memory_bytes:
        return (
            f"it needs {size_words(wanted.memory_bytes)} of memory, and your quota is "
            f"{size_words(quota.memory_bytes)}"
        )
    return ""


def why_paused(quota: Quota, standing: Standing) -> str:
    """Return why nothing of the user starts, whatever it needs; "" if something may."""
    if quota.cost and standing.cost >= quota.cost:
        return f"your jobs have cost {cost_words(standing.cost)}, and your quota is {cost_words(quota.cost)}"
    if quota.disk_bytes and standing.disk_bytes >= quota.disk_bytes:
        return (
            f"your jobs occupy {size_words(standing.disk_bytes)} of the disk, and your quota is "
            f"{size_words(quota.disk_bytes)}"
        )
    return ""


def why_no_room(quota: Quota, standing: Standing, more_bytes: int) -> str:
    """Return why ``more_bytes`` may not be stored for the user; "" if they may."""
    if not quota.disk_bytes or standing.disk_bytes + more_bytes <= quota.disk_bytes:
        return ""
    return (
        f"your jobs occupy {size_words(standing.disk_bytes)} of the disk, this needs "
        f"{size_words(more_bytes)} more, and your quota is {size_words(quota.disk_bytes)}"
    )


def size_words(size_bytes: int) -> str:
    """Return a size for people.

    >>> size_words(1536 * 1024**2), size_words(12)
    ('1.5 GiB', '12 bytes')
    """
    for name, unit in _UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} bytes"


def _cores(count: float) -> str:
    return f"{count:g} core" if count == 1 else f"{count:g} cores"
