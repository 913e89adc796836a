"""What a container shows of this machine's files: the plan, made before anything is mounted.

Pure but for `host_files`, which answers questions about the host's paths. The base is the host's
own ``/``, read-only for a job; people's folders and everything changing is hidden; then what the
job needs comes back at its own path: its Python, its folder, its volumes.
"""

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from picloud_services.agent.container import ContainerError, ContainerRequest
from picloud_services.agent.host_files import HostFiles
from picloud_services.agent.mounts import (
    KERNEL_TYPES,
    LOCAL_TYPES,
    is_under,
    is_under_any,
    outermost,
)

HOME = "/home/picloud"
RUN = "/run/picloud"
HIDDEN = ("/root", "/home", "/tmp", "/var/tmp", "/run", "/srv", "/var/log", "/lost+found")  # noqa: S108
KERNEL = ("/proc", "/sys", "/dev")
SHOWN_OF_SYS = (
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
)  # read by numeric libraries
# A folder in here is shown with its owners unmapped: what root alone may read stays so.
UNMAPPED = ("/etc", "/boot", "/var")
SCRATCH = "/var/tmp"  # noqa: S108  # but this is for everybody's work
UNSHOWN = (
    "/",
    "/home",
    "/run",
)  # as a submitting folder: they hold what is the container's own
MAX_LINKS = 40  # the kernel's own limit


@dataclass(frozen=True, slots=True)
class Hide:
    """An empty folder that the job cannot write."""

    target: str


@dataclass(frozen=True, slots=True)
class Bind:
    """``source`` of the host at ``target``. ``mapped``: the submitter's files belong to the job.

    ``asked``: the submitter named it, so it is shown only as far as they may read it themselves.
    ``base``: a disk of the machine; it is left out where it is not there any more.
    """

    target: str
    source: str
    writable: bool = False
    mapped: bool = False
    recursive: bool = False
    asked: bool = False
    base: bool = False


@dataclass(frozen=True, slots=True)
class Overlay:
    """``source`` of the host at ``target``, where writes go to ``upper`` in the job's layer."""

    target: str
    source: str
    upper: str
    work: str
    mapped: bool = False
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link at ``target``."""

    target: str
    text: str


Step = Hide | Bind | Overlay | Link


@dataclass(frozen=True, slots=True)
class Layer:
    """The folders of ``layer_dir``: what the job writes, and places for us to work in."""

    folder: str

    def at(self, name: str) -> str:
        """Return the path of the part ``name``; `overlay.prepare` makes them all."""
        return f"{self.folder}/{name}"


class Planner:
    """Makes the plan for one container.

    ``own_mounts``: the base does not include what is mounted below it. ``programs`` are paths that
    must be reachable as the job's user besides the Python.
    """

    def __init__(
        self,
        request: ContainerRequest,
        host: HostFiles,
        *,
        own_mounts: bool,
        programs: Sequence[str] = (),
    ) -> None:
        self._request = request
        self._programs = programs
        self._host = host
        self._own_mounts = own_mounts
        self._uid = request.host_uid
        self._foreign = request.host_uid != request.spec.user_id
        self._layer = Layer(request.layer_dir)
        self._masks = outermost(host.real(path) for path in HIDDEN if host.exists(path))
        self._hidden = {host.real(path) for path in request.hidden}
        self._steps: dict[str, Step] = {}

    def plan(self) -> list[Step]:
        """Return the steps in the order to do them, each folder before what is inside it.

        Raises:
            ContainerError: something that the job needs is not on this machine.
        """
        self._base()
        for path in outermost(self._programs):
            self._uncover(path, always=True)
            self._show(path, path, asked=False)
        for path in self._request.libraries:  # of a driver: nobody's to ask for
            self._show(path, path, asked=False)
        self._links(self._request.libraries)
        with self._host.as_submitter():
            self._python()
            for source, target, mode in self._request.spec.volumes:
                self._show(source, target, writable=mode == "rw")
            self._folder()
        self._own()
        self._service()
        return sorted(self._steps.values(), key=lambda step: step.target.split("/"))

    def _base(self) -> None:
        kernel = [*KERNEL, *self._masks]
        # What is mounted inside the service's own folders would come to light above what hides them.
        without = [*kernel, *self._hidden] if self._own_mounts else kernel
        if self._own_mounts:
            targets = {m.target for m in self._host.mounts if m.type in LOCAL_TYPES} - {"/"}
            entries: Iterable[tuple[str, str | None]] = [(t, None) for t in targets]
        else:
            entries = self._host.top()
        for path, text in entries:
            if text is not None:
                self._add(Link(path, text))
            elif not is_under_any(path, without):
                self._add(
                    Bind(path, path, recursive=not self._own_mounts, base=self._own_mounts)
                )
        for path in self._masks:
            self._add(Hide(path))
        for path in SHOWN_OF_SYS:
            if self._host.exists(path):
                self._add(Bind(path, path))

    def _python(self) -> None:
        python = self._request.spec.host_python
        for path in outermost((python.prefix, python.base_prefix, *python.paths)):
            self._show(path, path)
        self._links((python.executable, python.prefix, *python.sys_path))
        self._need(python.executable)

    def _folder(self) -> None:
        folder = self._request.spec.folder
        if not folder:
            return
        target = self._host.real(folder)
        if is_under_any(target, KERNEL) or target in map(self._host.real, UNSHOWN):
            self._links((folder,))
            return
        self._need(folder)
        self._check_not_ours(folder)
        self._links((folder,))
        self._uncover(target)
        within = {mount.target for mount in self._host.mounts if is_under(mount.target, target)}
        if within - {target} and not self._own_mounts:
            self._add(
                Bind(target, target, recursive=True, asked=True)
            )  # a user's overlay cannot hold mounts
            return
        closed = is_under_any(target, UNMAPPED) and not is_under(target, SCRATCH)
        mapped = self._foreign and not closed
        layer = self._layer
        upper, work = layer.at("files"), layer.at("files_work")
        self._add(Overlay(target, target, upper, work, mapped, asked=True))
        for path in [p for p, step in self._steps.items() if _repeats(step, target)]:
            if path not in within:
                del self._steps[path]
        self._mounts_within(target)

    def _mounts_within(self, folder: str) -> None:
        """Show what is mounted inside ``folder``, which an overlay on it does not hold."""
        types = {mount.target: mount.type for mount in self._host.mounts}  # the uppermost
        for path, kind in types.items():
            if (
                path not in self._steps
                and path != folder
                and is_under(path, folder)
                and not self._is_hidden(path)
                and not is_under_any(path, self._hidden)
                and kind not in KERNEL_TYPES
                and self._host.may_read(path)
            ):
                self._add(Bind(path, path, asked=True))

    def _own(self) -> None:
        """What belongs to this container alone."""
        request, real = self._request, self._host.real
        run = real("/run") + RUN.removeprefix("/run")
        home = real("/home") + HOME.removeprefix("/home")
        places = [
            (home, self._layer.at("home"), True),
            (real("/tmp"), self._layer.at("tmp"), True),  # noqa: S108
            (real("/var/tmp"), self._layer.at("var_tmp"), True),  # noqa: S108
            (run, request.run_dir, False),
            (f"{run}/out", request.out_dir, True),
            (f"{run}/bundle", request.bundle, False),
            (f"{run}/written", self._layer.at("files"), False),
        ]
        if request.code:
            places.append((f"{run}/code.zip", request.code, False))
        for path, source in (
            ("/etc/resolv.conf", f"{request.run_dir}/resolv.conf"),
            ("/etc/passwd", self._layer.at("passwd")),
            ("/etc/group", self._layer.at("group")),
        ):
            if self._host.exists(real(path)) or is_under_any(real(path), self._masks):
                places.append((real(path), source, False))
        for target, source, writable in places:
            if not isinstance(self._steps.get(target), Overlay):
                self._add(Bind(target, source, writable=writable))

    def _service(self) -> None:
        """The service's own folders are never seen, whatever was shown above them."""
        shown = [step for step in self._steps.values() if isinstance(step, Bind | Overlay)]
        for path in self._hidden:
            places = {
                posixpath.normpath(posixpath.join(s.target, posixpath.relpath(path, s.source)))
                for s in shown
                if is_under(path, s.source)
            }
            for place in {path, *places}:
                if self._host.exists(path) and not self._is_hidden(place):
                    self._add(Hide(place))

    def _show(
        self, source: str, target: str, *, writable: bool = False, asked: bool = True
    ) -> None:
        """Make ``source`` visible at ``target``, unless it is already."""
        self._need(source)
        self._check_not_ours(source)
        source, target = self._host.real(source), self._host.real(target)
        closed = self._uncover(source)
        if source == target and not writable and not closed and not self._is_hidden(target):
            return
        mapped = self._foreign and (writable or closed)
        self._add(Bind(target, source, writable, mapped, recursive=True, asked=asked))

    def _uncover(self, path: str, *, always: bool = False) -> bool:
        """Hide the first folder above ``path`` that the job may not enter; say if ``path`` is closed.

        Only where the job is not the submitter, who needs no help, or ``always``.
        """
        if not self._foreign and not always:
            return False
        for folder in _ancestors(path):
            if not self._is_hidden(folder) and not self._host.is_open(folder, self._uid):
                self._add(Hide(folder))
                # Disks that are mounted in it were closed as it is.
                for below in [p for p, s in self._steps.items() if _is_base_in(s, folder)]:
                    del self._steps[below]
                break
        return not self._host.is_open(path, self._uid)

    def _is_hidden(self, path: str) -> bool:
        """Say whether ``path`` is not seen as things are now: the nearest step above it decides."""
        for folder in (path, *reversed(list(_ancestors(path)))):
            step = self._steps.get(folder)
            if step is not None:
                return isinstance(step, Hide)
        return not self._own_mounts or not self._on_root(path)

    def _on_root(self, path: str) -> bool:
        above = [mount.target for mount in self._host.mounts if is_under(path, mount.target)]
        return max(above, key=len, default="/") == "/"

    def _links(self, paths: Iterable[str]) -> None:
        """Repeat the symbolic links on the way to ``paths`` that hiding took away."""
        for path in paths:
            for place, text in _links_on(path, self._host):
                if self._is_hidden(place):
                    self._add(Link(place, text))

    def _need(self, path: str) -> None:
        if not self._host.exists(path):
            raise ContainerError(
                f"{path} is not on this machine, or may not be read by you; "
                "submit the job again from an environment that is",
                reason="env_missing",
            )

    def _check_not_ours(self, path: str) -> None:
        if is_under_any(self._host.real(path), self._hidden):
            raise ContainerError(
                f"{path} belongs to the service and is never shown to a job; use another folder"
            )

    def _add(self, step: Step) -> None:
        self._steps[step.target] = step


def _repeats(step: Step, folder: str) -> bool:
    """Say whether ``step`` shows only what the overlay on ``folder`` shows anyway."""
    if not is_under(step.target, folder) or step.target == folder:
        return False
    return isinstance(step, Link) or (
        isinstance(step, Bind) and step.source == step.target and not step.writable
    )


def _is_base_in(step: Step, folder: str) -> bool:
    return isinstance(step, Bind) and step.base and is_under(step.target, folder)


def _ancestors(path: str) -> Iterator[str]:
    """The folders above ``path``, from below ``/`` downwards."""
    end = path.find("/", 1)
    while end > 0:
        yield path[:end]
        end = path.find("/", end + 1)


def _links_on(path: str, host: HostFiles) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of each symbolic link that is followed on the way to ``path``."""
    rest = [part for part in reversed(path.split("/")) if part]
    at = ""
    for _ in range(MAX_LINKS):
        while rest:
            part = rest.pop()
            if part == "..":
                at = at.rpartition("/")[0]
            elif part != ".":
                at = f"{at}/{part}"
                text = host.link(at)
                if text is not None:
                    yield at, text
                    break
        else:
            return
        rest += [part for part in reversed(text.split("/")) if part]
        at = "" if text.startswith("/") else at.rpartition("/")[0]
