"""Runs code in a container of one kind, without an agent; for root also as an ordinary user."""

import codecs
import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.jobs import ContainerKind, HostPython, SandboxSpec
from picloud_services.agent import cgroup, overlay, trial
from picloud_services.agent.container import Container, ContainerRequest, RunningContainer
from picloud_services.agent.kinds import make_container
from picloud_services.agent.uids import host_uid

ORDINARY_UID = 54_321  # nobody's
SECONDS = 30.0


@dataclasses.dataclass
class Ended:
    """What came of a container."""

    out: str
    err: str
    status: int
    seconds: float
    oom_count: int = 0
    during: Any = None

    @property
    def words(self) -> Any:
        """The last line of its output as JSON."""
        assert self.out.strip(), self.err
        return json.loads(self.out.splitlines()[-1])


@dataclasses.dataclass
class Lab:
    """Makes containers of ``kind`` in ``folder``, as ``uid``."""

    kind: ContainerKind
    folder: Path
    uid: int

    @property
    def isolated(self) -> bool:
        return self.kind is not ContainerKind.PLAIN

    def run(
        self,
        code: str,
        *,
        during: Callable[[Container, RunningContainer, ContainerRequest], Any] | None = None,
        arguments: tuple[str, ...] = (),
        request: dict[str, Any] | None = None,
        **spec: Any,
    ) -> Ended:
        """Run ``code`` in a new container until it ends; ``during`` is called once it runs."""

        def work() -> dict[str, Any]:
            return dataclasses.asdict(self._run(code, during, arguments, request or {}, spec))

        return Ended(**self.do(work))

    def do(self, work: Callable[[], Any]) -> Any:
        """Return ``work()``, called as our user; what it returns must be JSON."""
        return work() if self.uid == os.geteuid() else as_user(self.uid, work)

    def container(self) -> Container:
        """Return a maker of containers, for the process that calls."""
        facts = trial.read_facts()
        program = facts.programs[-1 if self.kind is ContainerKind.ROOTLESS else 0]
        return make_container(self.kind, program)

    def request(self, out: int, err: int, **changes: Any) -> ContainerRequest:
        """Return a request whose folders exist."""
        name = uuid.uuid4().hex[:12]
        base = self.folder / name
        for part in ("run", "out", "layer", "bundle"):
            (base / part).mkdir(parents=True)
        (base / "bundle" / "main.py").write_text("print('bundle')")
        (base / "code.zip").write_text("zip")
        spec = SandboxSpec(user_id=self.uid, host_python=python_of_tests())
        made = ContainerRequest(
            container=name,
            spec=dataclasses.replace(spec, **changes.pop("spec", {})),
            run_dir=str(base / "run"),
            out_dir=str(base / "out"),
            layer_dir=str(base / "layer"),
            bundle=str(base / "bundle"),
            code=str(base / "code.zip"),
            stdout_fd=out,
            stderr_fd=err,
            pass_fds=(),
            host_uid=host_uid(self.uid, str(self.folder)),
        )
        return dataclasses.replace(made, **changes)

    def _run(self, code, during, arguments, changes, spec) -> Ended:
        container = self.container()
        out, out_fd = os.pipe()
        err, err_fd = os.pipe()
        tail = ("-S", "-E", "-s", "-c", code, *arguments)
        request = self.request(out_fd, err_fd, spec=spec, command_tail=tail, **changes)
        began = time.monotonic()
        try:
            running = container.start(request)
        finally:
            os.close(out_fd)
            os.close(err_fd)
        try:
            seen = during(container, running, request) if during else None
            text, complaint = read_all(out, err)
            status = wait(running.pid)
            oom_count = 0
            if running.cgroups:
                reader = cgroup.CgroupReader(running.cgroups)
                oom_count = reader.read().oom_count
                reader.close()
        finally:
            container.kill(running)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(running.pid, os.WNOHANG)
            container.clean(request, running)
            os.close(out)
            os.close(err)
        assert not os.path.exists(request.layer_dir)
        seconds = time.monotonic() - began
        return Ended(text, complaint, container.wait_status(status), seconds, oom_count, seen)


def wait(pid: int) -> int:
    """Return the wait status of our child ``pid``, which must end soon."""
    end_at = time.monotonic() + SECONDS
    while time.monotonic() < end_at:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    raise AssertionError(f"process {pid} did not end within {SECONDS} seconds")


def read_all(*files: int) -> list[str]:
    """Return what comes out of ``files`` until all are closed at the other end."""
    texts = dict.fromkeys(files, b"")
    waiting = set(files)
    while waiting:
        ready, _, _ = select.select(list(waiting), [], [], SECONDS)
        assert ready, f"no end of output within {SECONDS} seconds; so far {texts}"
        for file in ready:
            data = os.read(file, 65536)
            texts[file] += data
            if not data:
                waiting.discard(file)
    return [text.decode("utf-8", "replace") for text in texts.values()]


def as_user(uid: int, work: Callable[[], Any]) -> Any:
    """Return ``work()``, called in a child process of the user ``uid``."""
    for name in ("ascii", "utf-8", "latin-1"):
        codecs.lookup(name)  # loaded now: this Python's own files may be root's alone
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            answer = {"value": work()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with open(write, "w", encoding="utf-8") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        answer = json.loads(file.read())
    os.waitpid(pid, 0)
    assert "value" in answer, answer["error"]
    return answer["value"]


def python_of_tests() -> HostPython:
    """Return a Python that the calling user may run: ours if possible, else the system's."""
    ours = os.access(sys.executable, os.X_OK)
    return describe_python(sys.executable if ours else "/usr/bin/python3")


def describe_python(executable: str) -> HostPython:
    """Return what a submitter with ``executable`` would say of it."""
    code = "import json, sys; print(json.dumps([sys.prefix, sys.base_prefix, sys.path, sys.version_info[:3]]))"
    ran = subprocess.run(
        [executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        timeout=30,
    )
    prefix, base_prefix, path, version = json.loads(ran.stdout)
    places = [prefix, base_prefix, *(p for p in path if p and os.path.exists(p))]
    return HostPython(
        executable=executable,
        prefix=prefix,
        base_prefix=base_prefix,
        version=".".join(map(str, version)),
        paths=tuple(dict.fromkeys(map(os.path.realpath, places))),
        sys_path=tuple(p for p in path if p),
    )


@contextlib.contextmanager
def open_labs(prefix: str) -> Iterator[dict[str, Lab]]:
    """Give `labs` in a folder of their own, and remove it with what a failed test left, however deep."""
    place = Path(tempfile.mkdtemp(prefix=prefix))
    place.chmod(0o711)
    try:
        yield labs(place)
    finally:
        overlay.remove_tree(str(place))


def labs(tmp: Path) -> dict[str, Lab]:
    """Return a lab per kind that this machine should have; folders are open to their users."""
    found = {}
    for kind in kinds_here():
        uid = os.geteuid()
        if kind is ContainerKind.ROOTLESS and uid == 0:
            uid = ORDINARY_UID
        folder = tmp / kind.value
        folder.mkdir()
        os.chown(folder, uid, uid if uid != os.geteuid() else -1)
        found[kind.value] = Lab(kind, folder, uid)
    return found


def kinds_here() -> list[ContainerKind]:
    """Return the kinds that are tested: all three as root, what a user may have otherwise."""
    if os.geteuid() == 0:
        return list(ContainerKind)
    return [ContainerKind.ROOTLESS, ContainerKind.PLAIN]


def isolated_kinds() -> list[str]:
    """Return those of them that isolate."""
    return [kind.value for kind in kinds_here() if kind is not ContainerKind.PLAIN]
