"""A job as a plain process of this machine: limits, but NO isolation. The kind of last resort.

It sees the files, the network and the processes that its user sees.
"""

import contextlib
import os
from collections.abc import Callable
from typing import NoReturn

from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_services.agent import cgroup, overlay, syscalls
from picloud_services.agent.binds import Layer
from picloud_services.agent.container import ContainerError, ContainerRequest, RunningContainer
from picloud_services.agent.job_environment import job_environment
from picloud_services.agent.process_table import (
    Table,
    descendants,
    end_all,
    marked,
    read_process,
    read_table,
)
from picloud_services.agent.spawn import failure, limit_processes, reported_error, spawn
from picloud_services.agent.uids import identity

MARK = "PICLOUD_CONTAINER"  # in the environment: finds what a crashed supervisor left behind
KILL_SECONDS = 1.0


class PlainProcess:
    """Starts jobs as processes of their own session. Holds which processes it started."""

    kind = ContainerKind.PLAIN

    def __init__(self) -> None:
        self._tree = cgroup.detect()
        self._started: dict[int, int] = {}  # pid -> when, in the kernel's ticks

    def start(self, request: ContainerRequest) -> RunningContainer:
        """Start the runner as a process.

        From now on the calling process inherits what the job leaves behind, so as to end it.

        Raises:
            ContainerError: it could not be started; nothing is left behind.
        """
        spec = request.spec
        group: tuple[str, ...] = ()
        try:
            _check_python(spec.host_python.executable)
            syscalls.adopt_orphans(wanted=True)
            overlay.prepare(request, identity(spec.user_id))
            if self._tree is not None:
                limits = cgroup.CgroupLimits(spec.memory_bytes, spec.cpu_cores, spec.pids)
                group = cgroup.create(self._tree, request.container, limits)
            pid = self._launch(request, group)
        except (OSError, ContainerError) as exc:
            with contextlib.suppress(OSError):  # it is cleaned again; `exc` is what matters
                self.clean(request, None)
            raise failure(exc) if isinstance(exc, OSError) else exc from exc
        return RunningContainer(pid=pid, init_pid=pid, cgroups=group, mounts=())

    def inside_paths(self, request: ContainerRequest) -> dict[str, str]:
        """Return what the runner's CONFIG calls home, run_dir, out_dir, bundle and code."""
        return {
            "home": Layer(request.layer_dir).at("home"),
            "run_dir": request.run_dir,
            "out_dir": request.out_dir,
            "bundle": request.bundle,
            "code": request.code,
        }

    def wait_status(self, status: int) -> int:
        """Return ``status``: the process is the runner itself."""
        return status

    def kill(self, running: RunningContainer) -> None:
        """End the process with all that it started, also what made itself independent."""
        if running.cgroups:
            cgroup.kill(running.cgroups)
        self._end(lambda table: self._members(table, running.pid))

    def clean(self, request: ContainerRequest, running: RunningContainer | None) -> None:
        """Remove the control groups and the layer, after ending what is left of the job.

        May be called twice and after a crash.

        Raises:
            OSError: a process of it cannot be ended yet; call it again later.
        """
        group = running.cgroups if running is not None else ()
        if not group and self._tree is not None:
            group = self._tree.group(request.container)
        cgroup.kill(group)
        if running is not None:
            self.kill(running)
            self._started.pop(running.pid, None)
        else:
            mark = f"{MARK}={request.container}"
            self._end(lambda table: descendants(table, marked(table, mark)))
        cgroup.remove(group)
        overlay.remove_tree(request.layer_dir)

    def _launch(self, request: ContainerRequest, group: tuple[str, ...]) -> int:
        spec = request.spec
        layer = Layer(request.layer_dir)
        places = {"home": layer.at("home"), "tmp": layer.at("tmp"), "run_dir": request.run_dir}
        variables = {MARK: request.container, **request.variables}
        environment = job_environment(spec, variables, places=places, host=dict(os.environ))
        command = [spec.host_python.executable, *request.command_tail]
        who = identity(spec.user_id)

        def become() -> NoReturn:
            cgroup.enter(group)
            os.setsid()
            syscalls.forgo_privileges()
            if not group:
                limit_processes(spec.pids)
            if who.uid != os.geteuid():
                os.setgroups(who.groups)
                os.setresgid(who.gid, who.gid, who.gid)
                os.setresuid(who.uid, who.uid, who.uid)
            os.chdir(spec.folder or places["home"])
            os.execve(command[0], command, environment)  # noqa: S606

        report, report_fd = os.pipe()
        try:
            pid = spawn(
                become,
                stdout_fd=request.stdout_fd,
                stderr_fd=request.stderr_fd,
                keep_fds=request.pass_fds,
                report_fd=report_fd,
            )
            os.close(report_fd)
            error = reported_error(os.read(report, 4096))
        finally:
            os.close(report)
        if error is not None:
            os.waitpid(pid, 0)
            raise error
        process = read_process(pid)
        if process is not None:
            self._started[pid] = process.start_ticks
        return pid

    def _members(self, table: Table, pid: int) -> set[int]:
        """The process, what descends from it, and what was orphaned and so became our child."""
        since = self._started.get(pid)
        if since is None:
            return set()
        mine = {
            child
            for child, process in table.items()
            if process.parent == os.getpid()
            and process.start_ticks >= since
            and child not in self._started
        }
        if pid in table and table[pid].start_ticks == since:
            mine.add(pid)
        return descendants(table, mine)

    def _end(self, find: Callable[[Table], set[int]]) -> None:
        end_all(find, within_seconds=KILL_SECONDS)
        table = read_table()
        for pid in find(table) - self._started.keys():
            if table[pid].parent == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def _check_python(executable: str) -> None:
    if not os.access(executable, os.X_OK):
        raise ContainerError(
            f"{executable} is not a program on this machine; "
            "submit the job again from an environment that is",
            reason="env_missing",
        )
