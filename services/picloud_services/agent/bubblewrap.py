"""Containers made with bubblewrap: the kinds ``root`` and ``rootless``.

As root we lay out the files ourselves, become the job's user, and only then start bwrap, which
would otherwise leave the job root on the host. As anybody else bwrap lays them out.
"""

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Sequence
from typing import NoReturn

from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_services.agent import cgroup, overlay, root_stage, seccomp, syscalls
from picloud_services.agent.binds import (
    HOME,
    RUN,
    Layer,
    Planner,
    Step,
)
from picloud_services.agent.bubblewrap_arguments import isolation, layout, packed, seal
from picloud_services.agent.container import (
    LOST_START,
    ContainerError,
    ContainerRequest,
    RunningContainer,
)
from picloud_services.agent.host_files import HostFiles
from picloud_services.agent.job_environment import job_environment
from picloud_services.agent.mounts import parse_mountinfo
from picloud_services.agent.process_table import read_process
from picloud_services.agent.spawn import failure, limit_processes, reported_error, spawn
from picloud_services.agent.uids import Identity, identity
from picloud_services.agent.user_namespace import OwnerMap
from picloud_services.base.user_rights import Rights

START_SECONDS = 20.0  # made in milliseconds; but a dead network disk must not hang us for ever
KILL_SECONDS = 1.0
PLACES = {"home": HOME, "tmp": "/tmp", "run_dir": RUN}  # noqa: S108  # inside the container


class BubblewrapContainer:
    """Makes containers of ``kind`` with the bwrap at ``program``."""

    def __init__(self, kind: ContainerKind, program: str) -> None:
        self.kind = kind
        self._program = os.path.realpath(program)
        self._as_root = kind is ContainerKind.ROOT
        self._tree = cgroup.detect()

    def start(self, request: ContainerRequest) -> RunningContainer:
        """Start the runner in a new container; returns when its first process exists.

        Raises:
            ContainerError: it could not be made; nothing is left behind but what `clean` may
                have to be called for again.
        """
        who = identity(request.host_uid)
        if who.uid == 0:
            raise ContainerError("a job never runs as root on this machine; this one was to")
        seccomp.program(os.uname().machine)  # where there is none, nothing is begun
        report, report_fd = os.pipe()
        gate_fd, gate = os.pipe()
        pid, maker = 0, os.getpid()

        def become() -> NoReturn:
            syscalls.end_with(maker)  # else it would lay out files that are nobody's
            self._become(request, who, report_fd, gate_fd)

        try:
            pid = spawn(
                become,
                stdout_fd=request.stdout_fd,
                stderr_fd=request.stderr_fd,
                keep_fds=(*request.pass_fds, report_fd, gate_fd),
                report_fd=report_fd,
            )
            os.close(report_fd)
            report_fd = -1
            group, init_pid = self._limit(request, pid, report)
            os.write(gate, b"1")
        except (OSError, ContainerError) as exc:
            if pid:
                _end(pid)  # one that hangs in a dead disk for longer is left to whoever cleans
                os.waitpid(pid, os.WNOHANG)
            with contextlib.suppress(OSError):  # the same: `exc` is what matters
                self.clean(request, None)
            raise failure(exc) if isinstance(exc, OSError) else exc from exc
        finally:
            for file in (report, report_fd, gate_fd, gate):
                if file >= 0:
                    os.close(file)
        return RunningContainer(pid=pid, init_pid=init_pid, cgroups=group, mounts=())

    def inside_paths(self, request: ContainerRequest) -> dict[str, str]:
        """Return what the runner's CONFIG calls home, run_dir, out_dir, bundle and code."""
        return {
            "home": HOME,
            "run_dir": RUN,
            "out_dir": f"{RUN}/out",
            "bundle": f"{RUN}/bundle",
            "code": f"{RUN}/code.zip" if request.code else "",
        }

    def wait_status(self, status: int) -> int:
        """Return the runner's wait status: bwrap says 128 + n for the signal n.

        A runner that ends itself with a code above 128 looks like one that a signal ended.
        """
        code = os.waitstatus_to_exitcode(status)
        return code - 128 if 128 < code <= 128 + signal.NSIG else status

    def kill(self, running: RunningContainer) -> None:
        """End every process of the container: with its first process the kernel ends them all."""
        for pid, parent in ((running.init_pid, running.pid), (running.pid, os.getpid())):
            process = read_process(pid)
            if process is not None and process.parent == parent:
                _end(pid)
        cgroup.kill(running.cgroups)

    def clean(self, request: ContainerRequest, running: RunningContainer | None) -> None:
        """Remove the control groups and the layer, after killing what is left of the container.

        Mounts are gone with its last process. May be called twice and after a crash.

        Raises:
            OSError: a process of it cannot be ended yet; call it again later.
        """
        group = running.cgroups if running is not None else ()
        if not group and self._tree is not None:
            group = self._tree.group(request.container)
        cgroup.kill(group)
        cgroup.remove(group)
        overlay.remove_tree(request.layer_dir)

    def _limit(
        self, request: ContainerRequest, pid: int, report: int
    ) -> tuple[tuple[str, ...], int]:
        """Make the control groups and put the container into them, while ``pid`` prepares it.

        The kernel lets the first process wait until all processors have taken note, about as long
        as the preparation takes; so it is this process that waits. Nothing of the job runs before:
        bwrap waits at the gate.
        """
        group: tuple[str, ...] = ()
        if self._tree is not None:
            spec = request.spec
            limits = cgroup.CgroupLimits(spec.memory_bytes, spec.cpu_cores, spec.pids)
            group = cgroup.create(self._tree, request.container, limits)
            with contextlib.suppress(ProcessLookupError):  # then the report says why
                cgroup.enter(group, pid)
        init_pid = _first_process(pid, report, request.stderr_fd)
        process = read_process(init_pid)
        if process is not None and process.parent != pid:
            # bwrap is the user's by now, who may have written into its report from outside; what
            # is put into the group gets its limits and dies with it.
            raise ContainerError(
                f"process {init_pid}, which is said to be the container's first, is not bubblewrap's"
            )
        with contextlib.suppress(
            ProcessLookupError
        ):  # then bwrap said why, as of a runner's end
            cgroup.enter(group, init_pid)
        return group, init_pid

    def _become(
        self, request: ContainerRequest, who: Identity, report_fd: int, gate_fd: int
    ) -> NoReturn:
        """Prepare everything in the child and become bwrap."""
        owners = None
        if self._as_root and who.uid != request.spec.user_id:
            owners = OwnerMap(request.spec.user_id, who.uid)  # takes as long as what follows
        submitter = None
        if self._as_root and request.spec.user_id != 0:  # root's job, or rights of another
            submitter = Rights(who.uid, who.gid, who.groups)
        steps = self._plan(request, submitter)
        overlay.prepare(request, who)
        if self._as_root:
            self._enter_root(request, who, steps, owners, submitter)
        elif self._tree is None:
            limit_processes(request.spec.pids)
        filter_fd = _memory_file("seccomp", seccomp.program(os.uname().machine))
        numbers = {"--info-fd": report_fd, "--block-fd": gate_fd, "--seccomp": filter_fd}
        arguments = self._arguments(request, steps, numbers)
        arguments_fd = _memory_file("arguments", packed(arguments))
        command = ["bwrap", "--args", str(arguments_fd), "--"]
        command += [request.spec.host_python.executable, *request.command_tail]
        os.execve(self._program, command, {})  # noqa: S606

    def _plan(self, request: ContainerRequest, submitter: Rights | None) -> list[Step]:
        for path, _ in request.devices:
            os.stat(path)  # bwrap would complain only when the container counts as made
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            host = HostFiles(parse_mountinfo(file.read()), submitter)
        programs = _program_files(self._program) if self._as_root else ()
        return Planner(request, host, own_mounts=self._as_root, programs=programs).plan()

    def _enter_root(
        self,
        request: ContainerRequest,
        who: Identity,
        steps: Sequence[Step],
        owners: OwnerMap | None,
        submitter: Rights | None,
    ) -> None:
        """Lay out the files and become the job's user for good."""
        names = owners.open() if owners is not None else None
        root_stage.build(
            steps, Layer(request.layer_dir), who.uid, names, submitter, devices=request.devices
        )
        if owners is not None:
            owners.close()
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)

    def _arguments(
        self, request: ContainerRequest, steps: Sequence[Step], numbers: dict[str, int]
    ) -> list[str]:
        """What bwrap is told; through a descriptor, so that a job does not see it."""
        spec = request.spec
        variables = job_environment(
            spec, request.variables, places=PLACES, host=dict(os.environ)
        )
        shown = () if self._as_root else steps
        devices = root_stage.staged(request.devices) if self._as_root else request.devices
        arguments = [
            *layout(shown),
            *isolation(spec.folder or HOME, spec.memory_bytes, variables, devices),
            *seal(shown),
        ]
        for name, file in numbers.items():
            arguments += [name, str(file)]
        return arguments


def _end(pid: int) -> None:
    """Kill ``pid`` and wait up to a second until it is dead; it is reaped by its parent."""
    with contextlib.suppress(ProcessLookupError):
        death = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            select.select([death], [], [], KILL_SECONDS)
        finally:
            os.close(death)


def _program_files(program: str) -> tuple[str, ...]:
    """What must be there to run ``program``: bwrap of a wheel has a library beside its package."""
    package = os.path.dirname(os.path.dirname(program))
    libraries = f"{package}.libs"
    return (package, libraries) if os.path.isdir(libraries) else (program,)


def _memory_file(name: str, data: bytes) -> int:
    file = os.memfd_create(name, 0)  # for bwrap, which closes it
    os.write(file, data)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _first_process(pid: int, report: int, stderr_fd: int) -> int:
    """Return the pid that ``pid``, which is bwrap by then, reports.

    Raises:
        OSError: our own preparation failed.
        ContainerError: bwrap refused, or was killed.
    """
    text, end_at = b"", time.monotonic() + START_SECONDS
    while not text.endswith((b"}", b"}\n")):
        if not select.select([report], [], [], max(0.0, end_at - time.monotonic()))[0]:
            raise ContainerError(
                f"the container was not made within {START_SECONDS:.0f} seconds; "
                "a disk that it shows may not answer"
            )
        data = os.read(report, 4096)
        if not data:
            break
        text += data
    error = reported_error(text)
    if error is not None:
        raise error
    if not text.endswith((b"}", b"}\n")):
        if _was_killed(pid):
            raise ContainerError(
                "bubblewrap was killed (SIGKILL) while it made the container", reason=LOST_START
            )
        complaint = _complaint(stderr_fd) or "it said nothing"
        raise ContainerError(f"bubblewrap could not make the container: {complaint}")
    return int(json.loads(text)["child-pid"])


def _was_killed(pid: int) -> bool:
    """Return whether our child ``pid``, which closed its report, was killed; it stays to be reaped."""
    death = os.pidfd_open(pid)
    try:
        select.select([death], [], [], KILL_SECONDS)
    finally:
        os.close(death)
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended is not None and (ended.si_code, ended.si_status) == (
        os.CLD_KILLED,
        signal.SIGKILL,
    )


def _complaint(stderr_fd: int) -> str:
    """What bwrap wrote to its stderr, read through the other end of that pipe."""
    with contextlib.suppress(OSError):
        file = os.open(f"/proc/self/fd/{stderr_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(file, 4096).decode("utf-8", "replace").strip()
        finally:
            os.close(file)
    return ""
