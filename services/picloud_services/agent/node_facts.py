"""What this machine offers: its capacity, the kind of container and of network that work here."""

import asyncio
import hashlib
import json
import logging
import os
import secrets
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from picloud_jupyter.protocol.codec import from_wire, to_wire
from picloud_jupyter.protocol.frames import decode_header
from picloud_jupyter.protocol.jobs import ContainerKind, LimitsGrade, Resources
from picloud_jupyter.protocol.nodes import KindTrial, NodeReport
from picloud_jupyter.transport.paths import make_private
from picloud_services.agent import cgroup, network, trial
from picloud_services.agent.container import ContainerError
from picloud_services.agent.gpus import GpuFacts, find_gpus
from picloud_services.agent.network import NetworkChoice, choose_network
from picloud_services.agent.network_plan import NetworkMode
from picloud_services.agent.uids import host_uid, identity
from picloud_services.base.filesystem import write_atomically
from picloud_services.base.single_instance import boot_id
from picloud_services.config import Settings

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.8  # of what is available; the rest is for the services and the page cache


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What was found out about this machine when the agent started."""

    report: NodeReport
    program: str
    network: NetworkChoice
    gpus: GpuFacts = field(default_factory=GpuFacts)


@dataclass(frozen=True, slots=True)
class _Tried:
    """What was tried, as it is kept in trials.json until the next boot."""

    key: str  # a digest of what the trials depend on
    trials: tuple[KindTrial, ...]
    network_mode: NetworkMode
    network_program: str
    network_why: str


async def find_facts(settings: Settings) -> NodeFacts:
    """Return the facts of this machine.

    Kinds are tried once per boot and anew when a program or what this process may do has changed;
    at each start where none isolates.

    Raises:
        ContainerError: the kind that the settings demand does not work here; says why.
    """
    tried = await _tried_once(settings)
    chosen = trial.choose(tried.trials, settings.container_kind or None)
    tree = await asyncio.to_thread(cgroup.detect)
    gpus = await asyncio.to_thread(find_gpus, settings.gpu_devices)
    plain = chosen.kind is ContainerKind.PLAIN
    if settings.paths.public is not None and chosen.kind is not ContainerKind.ROOT:
        why = next(t.why for t in tried.trials if t.kind is ContainerKind.ROOT)
        raise ContainerError(
            "a service of every user needs containers of the kind root, where jobs run as the user "
            f"who submits them; here that kind does not work: {why or 'another one was demanded'}"
        )
    report = NodeReport(
        node=os.uname().nodename,
        boot_id=secrets.token_hex(8),
        process_id=os.getpid(),
        capacity=replace(find_capacity(settings, tree), gpus=len(gpus.gpus)),
        container_kind=chosen.kind,
        limits_grade=LimitsGrade.WATCHED if plain else cgroup.grade(tree),
        network=tried.network_mode.value,
        logs=str(settings.home / "logs"),
        trials=tried.trials,
        gpus=gpus.gpus,
        gpu_note=gpus.note,
        network_note=tried.network_why,
    )
    choice = NetworkChoice(tried.network_mode, tried.network_program, tried.network_why)
    return NodeFacts(report, chosen.program, choice, gpus)


async def _tried_once(settings: Settings) -> _Tried:
    path = _shared_folder(settings) / "trials.json"
    try:
        kept = from_wire(_Tried, decode_header(path.read_bytes()))
    except (OSError, ValueError):  # not tried yet, or by another version of ours
        kept = None
    layers = settings.home / "layers"
    layers.mkdir(mode=0o700, exist_ok=True)
    key = _key(settings, layers)
    if (
        kept is not None
        and kept.key == key
        # Where no kind isolates, somebody may have mended that since.
        and (settings.container_kind or not trial.is_plain_only(kept.trials))
    ):
        return kept
    trials = tuple(await asyncio.to_thread(trial.try_kinds, str(layers)))
    chosen = trial.choose(trials, settings.container_kind or None)
    who = identity(job_uid(chosen.kind, os.geteuid(), settings.home))
    choice = await choose_network(chosen.kind, who.uid, who.gid)
    if settings.network and choice.mode is not NetworkMode.HOST:
        choice = NetworkChoice(
            NetworkMode(settings.network), choice.program, "chosen in the settings"
        )
    found = _Tried(key, trials, choice.mode, choice.program, choice.why)
    try:
        write_atomically(path, json.dumps(to_wire(found)).encode())
    except OSError as exc:  # a full disk costs the next start another trial
        log.warning("%s cannot be written: %s", path, exc)
    return found


def _key(settings: Settings, layers: Path) -> str:
    """Return a digest that is another one where the trials may come out otherwise.

    Not every disk can hold layers, and bubblewrap may come from our own environment.
    """
    ours = (boot_id(), os.geteuid(), sys.prefix, settings.container_kind, settings.network)
    text = repr((ours, layers.stat().st_dev, trial.conditions(), network.conditions()))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _shared_folder(settings: Settings) -> Path:
    """Return a private folder of this user for what all its services on this machine share."""
    folder = settings.run.parent / f"picloud-{os.geteuid()}"
    try:
        make_private(folder)
    except OSError:  # somebody else has that name: then this service shares with none
        return settings.run
    return folder


def job_uid(kind: ContainerKind, user_id: int, home: Path) -> int:
    """Return the uid that jobs of ``user_id`` have on the host in containers of ``kind``."""
    return host_uid(user_id, str(home)) if kind is ContainerKind.ROOT else os.geteuid()


def find_capacity(settings: Settings, tree: cgroup.CgroupTree | None) -> Resources:
    """Return the cores and the memory that jobs may use together."""
    folders = [Path(folder) for _, folder in tree.folders] if tree else []
    cores = settings.cores or min(
        [len(os.sched_getaffinity(0)), *filter(None, map(_quota_cores, folders))]
    )
    memory_bytes = settings.memory_bytes or int(
        MEMORY_SHARE * min([available_bytes(), *filter(None, map(_limit_bytes, folders))])
    )
    return Resources(cores, memory_bytes)


def available_bytes() -> int:
    """Return the memory that new processes may take without swapping, as the kernel estimates."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _quota_cores(folder: Path) -> float | None:
    """Return the CPU quota that ``folder`` sets for us, in cores; None without one."""
    if text := _read(folder / "cpu.max"):  # v2: "max 100000" or "150000 100000"
        quota, _, period = text.partition(" ")
    else:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not quota.isdecimal():
        return None  # "max", "-1" or no such file
    return int(quota) / int(period)


def _limit_bytes(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (text := _read(folder / name)).isdecimal():
            return int(text)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # another controller's folder, or another version of cgroup
        return ""
