"""Carries out a plan as root: a mount namespace of our own whose root is the container's."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence

from picloud_services.agent import syscalls
from picloud_services.agent.binds import Bind, Hide, Layer, Link, Overlay, Step
from picloud_services.agent.container import ContainerError
from picloud_services.base.user_rights import Rights, file_rights, may_open

_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV
STAGE = "/dev/shm"  # noqa: S108  # bwrap covers it with the container's own


def staged(devices: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return where `build` puts each of ``devices`` for bwrap, with its path inside."""
    return [(f"{STAGE}/{number}", inside) for number, (_, inside) in enumerate(devices)]


def build(
    steps: Sequence[Step],
    layer: Layer,
    owner: int,
    user_namespace: int | None,
    submitter: Rights | None = None,
    *,
    devices: Sequence[tuple[str, str]] = (),
) -> None:
    """Give the calling process a root folder made by ``steps``; the host's is let go of.

    ``owner`` is the job's uid; ``user_namespace`` maps the submitter's files to it, None where
    the kernel cannot. All sources are opened before the root changes and all targets are walked
    after it, so that a link in a folder of the user leads nowhere else. What the ``submitter`` asked
    for is opened with their rights (None: root's), and what was opened then is what is shown.
    Of ``devices``, pairs of paths, see `staged`.

    Raises:
        OSError: with the path that could not be shown in ``filename``.
        ContainerError: the submitter may not read it.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount_at("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    root = layer.at("root")
    _overlay("/", layer.at("upper"), layer.at("work"), root)
    syscalls.mount_at("tmpfs", layer.at("empty"), "tmpfs", _FLAGS, "mode=755,size=1m")
    opened = [_open(step, layer, owner, user_namespace, submitter) for step in steps]
    by_target = {step.target: step for step in steps}
    # For bwrap alone, which covers them with those of the container.
    kernel = {
        path: syscalls.clone_mount(path, read_only=False, devices=True)
        for path in ("/proc", "/dev")
    }
    files = [
        syscalls.clone_mount(source, read_only=False, devices=True) for source, _ in devices
    ]
    syscalls.replace_root(root)
    for path, place in kernel.items():
        _attach(place, path)
    if files:
        syscalls.mount_at("tmpfs", STAGE, "tmpfs", _FLAGS, "mode=755,size=64k")
    for (place_of_file, _), file in zip(staged(devices), files, strict=True):
        _attach(file, place_of_file)
    for step, tree in zip(steps, opened, strict=True):
        if isinstance(step, Link):
            _link(step)
        elif tree is not None:
            # A place to mount at that is missing is made in a folder of the user by the user.
            around = _step_around(step.target, by_target)
            is_users = isinstance(around, Bind) and around.writable
            _attach(tree, step.target, submitter if is_users else None)


def _step_around(target: str, by_target: Mapping[str, Step]) -> Step | None:
    """The step that shows the folder which ``target`` is in, None if that is the base."""
    while target != "/":
        target = os.path.dirname(target)
        if target in by_target:
            return by_target[target]
    return None


def _open(
    step: Step,
    layer: Layer,
    owner: int,
    user_namespace: int | None,
    submitter: Rights | None,
) -> int | None:
    """A detached mount for ``step``, with everything that the job must not be able to do off."""
    if isinstance(step, Hide):
        empty = layer.at("empty")
        place = f"{empty}/{len(os.listdir(empty))}"
        os.mkdir(place, 0o755)
        return syscalls.clone_mount(place, read_only=False)
    if isinstance(step, Overlay):
        with _source(step, submitter) as source:
            return _open_overlay(step, source, layer, owner, user_namespace, submitter)
    if isinstance(step, Bind):
        mapped = user_namespace if step.mapped else None
        if step.mapped and step.writable and mapped is None:
            raise PermissionError(
                1, "this kernel cannot map its owner to the job's", step.source
            )
        try:
            with _source(step, submitter) as source:
                return syscalls.clone_mount(
                    source,
                    read_only=not step.writable,
                    recursive=step.recursive and mapped is None,
                    user_namespace=mapped,
                )
        except FileNotFoundError:
            if not step.base:  # else it was unmounted after the plan was made
                raise
    return None


@contextlib.contextmanager
def _source(step: Bind | Overlay, submitter: Rights | None) -> Iterator[str]:
    """A path of what the step shows; if the submitter asked for it, of what they opened."""
    if submitter is None or not step.asked:
        yield step.source
        return
    writable = isinstance(step, Bind) and step.writable
    with file_rights(submitter):
        try:
            file = os.open(step.source, os.O_PATH | os.O_CLOEXEC)
        except OSError as exc:
            raise _refusal(step.source, exc.strerror) from exc
        enter = os.X_OK if stat.S_ISDIR(os.fstat(file).st_mode) else 0
        allowed = may_open(file, os.R_OK | enter | (os.W_OK if writable else 0))
    try:
        if not allowed:
            raise _refusal(step.source, "it may not be written to" if writable else "closed")
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def _refusal(path: str, why: str | None) -> ContainerError:
    return ContainerError(
        f"{path} cannot be shown to this job, for you may not use it yourself ({why})",
        reason="env_missing",
    )


def _open_overlay(
    step: Overlay,
    source: str,
    layer: Layer,
    owner: int,
    user_namespace: int | None,
    submitter: Rights | None,
) -> int:
    if submitter is not None and not os.access(source, os.R_OK | os.X_OK):
        # Root may read less there than the user, as on NFS, and it is root who would mount the overlay.
        return syscalls.clone_mount(source, read_only=True)
    lower, place = source, layer.at("files_root")
    if step.mapped and user_namespace is not None:
        with contextlib.suppress(OSError):  # a file system that cannot map: read as "others" do
            tree = syscalls.clone_mount(lower, read_only=True, user_namespace=user_namespace)
            syscalls.attach_mount(tree, place)
            lower = place
    found = os.stat(source)
    mode = stat.S_IMODE(found.st_mode) | (0o700 if step.mapped else 0)
    os.chmod(step.upper, mode & 0o777)
    os.chown(step.upper, owner if step.mapped else found.st_uid, -1)
    _overlay(lower, step.upper, step.work, place)
    return syscalls.clone_mount(place, read_only=False)


def _overlay(lower: str, upper: str, work: str, target: str) -> None:
    """Mount an overlay; paths go as descriptors, as they may hold any letter and are seen inside."""
    files = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (lower, upper, work)]
    options = "userxattr,volatile,lowerdir={},upperdir={},workdir={}".format(
        *(f"/proc/self/fd/{file}" for file in files)
    )
    try:
        syscalls.mount_at("overlay", target, "overlay", _FLAGS, options)
    except OSError as exc:
        exc.filename = f"an overlay at {target}"
        raise
    finally:
        for file in files:
            os.close(file)


def _attach(tree: int, target: str, maker: Rights | None = None) -> None:
    """Mount ``tree`` at ``target``, which is made with the rights of ``maker`` where it is missing.

    Never through a symbolic link: one in a folder of the user could lead to where root alone may
    write, in a folder of somebody else that is shown too.
    """
    try:
        try:
            place = syscalls.open_no_links(target)
        except FileNotFoundError:
            with file_rights(maker):
                place = _place(target, is_folder=stat.S_ISDIR(os.fstat(tree).st_mode))
        try:
            syscalls.attach_mount(os.dup(tree), place)
        except OSError as exc:
            exc.filename = target
            raise
        finally:
            os.close(place)
    except OSError as exc:
        if exc.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise ContainerError(
            f"nothing can be shown at {target}: a link or a file is on the way there, "
            "or a folder is to be shown over a file; choose another path inside"
        ) from exc
    finally:
        os.close(tree)


def _place(target: str, *, is_folder: bool) -> int:
    """A descriptor of ``target``; what is missing of it is made."""
    try:
        return syscalls.open_no_links(target)
    except FileNotFoundError:
        pass
    folder, name = os.path.split(target)
    above = _place(folder, is_folder=True)
    try:
        with contextlib.suppress(FileExistsError):
            if is_folder:
                os.mkdir(name, 0o755, dir_fd=above)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=above))
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    finally:
        os.close(above)


def _link(step: Link) -> None:
    folder, name = os.path.split(step.target)
    above = _place(folder, is_folder=True)
    try:
        with contextlib.suppress(FileExistsError):
            os.symlink(step.text, name, dir_fd=above)
    finally:
        os.close(above)
