"""Decides how a job's samples are thinned and turned into rates. Pure.

Counters (CPU, disk, network) are thinned without loss: the difference between two kept samples is
the exact total between them. Memory and processes keep their maximum over what was thinned away,
use of GPUs its mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from picloud_jupyter.protocol.metrics import ResourceSample

DEFAULT_GAP_SECONDS = 5.0  # samples come each second; five lost ones are a hole, not a line


@dataclass(frozen=True, slots=True)
class UsagePoint:
    """Use between two neighbouring samples: means over ``seconds`` that end at ``at``.

    ``cpu_cores`` is mean cores busy, ``memory_bytes`` the maximum, the rest bytes per second.
    """

    at: float
    seconds: float
    cpu_cores: float
    memory_bytes: int
    disk_read_bytes_per_second: float
    disk_written_bytes_per_second: float
    network_received_bytes_per_second: float
    network_sent_bytes_per_second: float
    processes: int
    approximate: bool = False


def split_runs(
    samples: Sequence[ResourceSample], *, gap_seconds: float = DEFAULT_GAP_SECONDS
) -> list[list[ResourceSample]]:
    """Return ``samples`` (in order of time) cut where nobody measured or a counter began anew.

    A counter that went down belongs to another container: the job was run again.
    """
    runs: list[list[ResourceSample]] = []
    previous: ResourceSample | None = None
    for sample in samples:
        if (
            previous is None
            or sample.at - previous.at > gap_seconds
            or _began_anew(previous, sample)
        ):
            runs.append([])
        runs[-1].append(sample)
        previous = sample
    return runs


def thin(
    samples: Sequence[ResourceSample],
    max_points: int,
    *,
    gap_seconds: float = DEFAULT_GAP_SECONDS,
) -> list[ResourceSample]:
    """Return at most ``max_points`` samples that tell the same story, gaps kept as gaps.

    Each run of samples keeps its first and its last, so that totals stay exact; in between, equal
    spans of time keep their last sample, with the maximum of memory and processes. If there are
    more runs than points allow, the newest runs win.

    Raises:
        ValueError: ``max_points`` is below 2.
    """
    if max_points < 2:
        raise ValueError(f"max_points must be at least 2, got {max_points}")
    if len(samples) <= max_points:
        return list(samples)
    runs = split_runs(samples, gap_seconds=gap_seconds)[-(max_points // 2) :]
    spare = max_points - sum(min(len(run), 2) for run in runs)
    inner = sum(max(len(run) - 2, 0) for run in runs)
    thinned: list[ResourceSample] = []
    for run in runs:
        share = spare * max(len(run) - 2, 0) // inner if inner else 0
        thinned += _thin_run(run, share)
    return thinned


def rates(
    samples: Sequence[ResourceSample], *, gap_seconds: float = DEFAULT_GAP_SECONDS
) -> list[list[UsagePoint]]:
    """Return one list of points per run of samples; a run of one sample has none."""
    return [
        [_point(before, after) for before, after in pairwise(run) if after.at > before.at]
        for run in split_runs(samples, gap_seconds=gap_seconds)
    ]


def _began_anew(before: ResourceSample, after: ResourceSample) -> bool:
    return (
        after.cpu_seconds < before.cpu_seconds
        or after.disk_read_bytes < before.disk_read_bytes
        or after.disk_written_bytes < before.disk_written_bytes
        or after.network_received_bytes < before.network_received_bytes
        or after.network_sent_bytes < before.network_sent_bytes
    )


def _thin_run(run: list[ResourceSample], inner: int) -> list[ResourceSample]:
    """Return the ends of ``run`` and at most ``inner`` samples between them."""
    if len(run) - 2 <= inner:
        return run
    first, last = run[0], run[-1]
    span = (last.at - first.at) / (inner + 1)
    kept: list[ResourceSample] = [first]
    bucket: list[ResourceSample] = []
    number = 0
    for sample in run[1:-1]:
        here = min(int((sample.at - first.at) / span), inner) if span > 0 else 0
        if here != number and bucket:
            kept.append(_merge(bucket))
            bucket = []
        number = here
        bucket.append(sample)
    kept.append(_merge([*bucket, last]))
    return kept


def _merge(bucket: list[ResourceSample]) -> ResourceSample:
    return replace(
        bucket[-1],
        memory_bytes=max(s.memory_bytes for s in bucket),
        processes=max(s.processes for s in bucket),
        approximate=any(s.approximate for s in bucket),
        gpu_percent=sum(s.gpu_percent for s in bucket) / len(bucket),
        gpu_memory_bytes=max(s.gpu_memory_bytes for s in bucket),
    )


def _point(before: ResourceSample, after: ResourceSample) -> UsagePoint:
    seconds = after.at - before.at
    return UsagePoint(
        at=after.at,
        seconds=seconds,
        cpu_cores=(after.cpu_seconds - before.cpu_seconds) / seconds,
        memory_bytes=max(before.memory_bytes, after.memory_bytes),
        disk_read_bytes_per_second=(after.disk_read_bytes - before.disk_read_bytes) / seconds,
        disk_written_bytes_per_second=(after.disk_written_bytes - before.disk_written_bytes)
        / seconds,
        network_received_bytes_per_second=(
            after.network_received_bytes - before.network_received_bytes
        )
        / seconds,
        network_sent_bytes_per_second=(after.network_sent_bytes - before.network_sent_bytes)
        / seconds,
        processes=after.processes,
        approximate=before.approximate or after.approximate,
    )
