"""What a job occupies, where it fits, and the words where it fits nowhere. Pure."""

from collections.abc import Iterable, Mapping

from picloud_jupyter.protocol.jobs import CORE_TYPES, Resources

ROUNDING = 1e-6  # 5 x 0.2 cores are one core


def need(core_type: str, cores: int, capacity: Resources, gpus: int = 0) -> Resources:
    """Return what one job occupies on a node with ``capacity``.

    Memory per core is what the core type promises, cut to what the node has per core.

    >>> need("c1", 1, Resources(2, 3 * 1024**3))
    Resources(cores=1.0, memory_bytes=1610612736, gpus=0)
    """
    kind = CORE_TYPES[core_type]
    per_core = min(kind.memory_bytes, int(capacity.memory_bytes / capacity.cores))
    return Resources(kind.share * cores, per_core * cores, gpus)


def fits(wanted: Resources, free: Resources) -> bool:
    """Return whether ``wanted`` is within ``free`` in every dimension."""
    return (
        wanted.cores <= free.cores + ROUNDING
        and wanted.memory_bytes <= free.memory_bytes
        and wanted.gpus <= free.gpus
    )


def subtract(free: Resources, wanted: Resources) -> Resources:
    """Return what is left; it may be negative while blocked jobs wake up."""
    return Resources(
        round(free.cores - wanted.cores, 6),
        free.memory_bytes - wanted.memory_bytes,
        free.gpus - wanted.gpus,
    )


def add(free: Resources, wanted: Resources) -> Resources:
    """Return ``free`` with ``wanted`` given back."""
    return Resources(
        round(free.cores + wanted.cores, 6),
        free.memory_bytes + wanted.memory_bytes,
        free.gpus + wanted.gpus,
    )


def choose_node(
    core_type: str,
    cores: int,
    nodes: Mapping[str, tuple[Resources, Resources]],
    gpus: int = 0,
) -> str | None:
    """Return the node, of (capacity, free) each, where a job fits and leaves the least idle.

    GPUs weigh most: a job without goes where there are none, as long as there is room.
    """
    best: str | None = None
    best_left = (0, 0.0)
    for node, (capacity, free) in nodes.items():
        wanted = need(core_type, cores, capacity, gpus)
        if not fits(wanted, free):
            continue
        left = (free.gpus - wanted.gpus, free.cores - wanted.cores)
        if best is None or left < best_left:
            best, best_left = node, left
    return best


def never_fits(
    core_type: str, cores: int, capacities: Iterable[Resources], gpus: int = 0
) -> str:
    """Return why no node can ever hold a job, and what would fit; "" if one can."""
    known = list(capacities)
    if not known or any(fits(need(core_type, cores, c, gpus), c) for c in known):
        return ""
    if any(fits(need(core_type, cores, c), c) for c in known):
        return _too_many_gpus(gpus, max(c.gpus for c in known))
    kind = CORE_TYPES[core_type]
    most = max(c.cores for c in known)
    largest = max((n for n in kind.core_counts if n * kind.share <= most + ROUNDING), default=0)
    words = (
        f"_cores={cores} of type {core_type} asks for {cores * kind.share:g} cores, "
        f"and the largest machine here gives jobs {most:g} cores"
    )
    fitting = f"_cores={largest} of this type fits" if largest else "no count of this type fits"
    return f"{words}; {fitting}"


def _too_many_gpus(gpus: int, most: int) -> str:
    if not most:
        return (
            f"_gpu={gpus} asks for a GPU, and no machine here has one that jobs may use "
            "(`picloud doctor` says what was found)"
        )
    has = "1 GPU" if most == 1 else f"{most} GPUs"
    return f"_gpu={gpus} asks for more than there is: the machine with most here has {has}; _gpu={most} fits"
