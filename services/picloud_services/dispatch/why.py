"""Why a queued job does not run yet, in words. Pure."""

from picloud_jupyter.protocol.jobs import CORE_TYPES, GIB, Resources
from picloud_services.dispatch.assigning import Assigner
from picloud_services.dispatch.cluster import Cluster
from picloud_services.dispatch.placement import need, never_fits
from picloud_services.jobs.spans import LiveBatch


def why_queued(
    jid: int, batch: LiveBatch, assigner: Assigner, delay_seconds: float | None, now: float
) -> str:
    """Return "queued because ..." for a job of ``batch`` that does not run."""
    return f"queued because {_reason(jid, batch, assigner, delay_seconds, now)}"


def _reason(
    jid: int, batch: LiveBatch, assigner: Assigner, delay_seconds: float | None, now: float
) -> str:
    spec, cluster, queue = batch.spec, assigner.cluster, assigner.queue
    if delay_seconds is not None:
        return f"it is run again in {max(delay_seconds, 0):.0f} s"
    if cluster.lease_with(jid) is not None:
        return "it is next in a runner that is busy or being started"
    if not cluster.nodes:
        return "no machine is connected yet; its agent is being started"
    never = never_fits(
        spec.core_type,
        spec.cores,
        [node.capacity for node in cluster.nodes.values()],
        spec.gpus,
    )
    if never:
        return f"no machine here can hold it: {never}"
    ahead = queue.ahead_of(batch.user_id, batch.priority, batch.batch, jid)
    line = (
        f"{ahead} of your jobs are ahead of it"
        if ahead != 1
        else "1 of your jobs is ahead of it"
    )
    limited = assigner.why_limited(batch.user_id, spec, now)
    return f"{limited or _shortage(spec.core_type, spec.cores, spec.gpus, cluster)}; {line}"


def _shortage(core_type: str, cores: int, gpus: int, cluster: Cluster) -> str:
    free_gpus = max(node.free.gpus for node in cluster.nodes.values())
    if gpus > free_gpus:
        return f"GPUs are taken: it needs {gpus}, {free_gpus} are free"
    total = sum(node.capacity.cores for node in cluster.nodes.values())
    busy = sum(node.used_cores for node in cluster.nodes.values())
    granted = sum(node.granted_cores for node in cluster.nodes.values())
    memory_short: list[tuple[Resources, Resources]] = []
    for node in cluster.nodes.values():
        wanted = need(core_type, cores, node.capacity)
        if wanted.memory_bytes > node.free.memory_bytes:
            memory_short.append((wanted, node.free))
    if memory_short and busy + cores <= total:
        wanted, free = memory_short[0]
        return (
            f"memory is taken: it needs {wanted.memory_bytes / GIB:.1f} GiB, "
            f"{max(free.memory_bytes, 0) / GIB:.1f} GiB are free"
        )
    wanted_cores = CORE_TYPES[core_type].share * cores
    if granted < total and busy + wanted_cores > granted:
        return (
            f"other services of this machine use cores: it needs {wanted_cores:g}, {granted:g} of "
            f"{total:g} are granted to this one, {busy:g} of them busy"
        )
    if wanted_cores > 1:
        return f"it needs {wanted_cores:g} cores at once, {busy:g} of {total:g} are busy"
    return f"{busy:g} of {total:g} cores are busy"
