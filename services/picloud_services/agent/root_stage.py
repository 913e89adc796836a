"""Carries out a plan as root: a mount namespace of our own whose root is the container's."""

import contextlib
import os
import stat
from collections.abc import Sequence

from picloud_services.agent import syscalls
from picloud_services.agent.binds import Bind, Hide, Layer, Link, Overlay, Step

_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV


def build(steps: Sequence[Step], layer: Layer, owner: int, user_namespace: int | None) -> None:
    """Give the calling process a root folder made by ``steps``; the host's is let go of.

    ``owner`` is the job's uid; ``user_namespace`` maps the submitter's files to it, None where
    the kernel cannot. All sources are opened before the root changes and all targets are walked
    after it, so that a link in a folder of the user leads nowhere else.

    Raises:
        OSError: with the path that could not be shown in ``filename``.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount_at("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    root = layer.at("root")
    _overlay("/", layer.at("upper"), layer.at("work"), root)
    syscalls.mount_at("tmpfs", layer.at("empty"), "tmpfs", _FLAGS, "mode=755,size=1m")
    opened = [_open(step, layer, owner, user_namespace) for step in steps]
    # For bwrap alone, which covers them with those of the container.
    kernel = {
        path: syscalls.clone_mount(path, read_only=False, devices=True)
        for path in ("/proc", "/dev")
    }
    syscalls.replace_root(root)
    for path, place in kernel.items():
        _attach(place, path)
    for step, tree in zip(steps, opened, strict=True):
        if isinstance(step, Link):
            _make_parents(step.target)
            with contextlib.suppress(FileExistsError):
                os.symlink(step.text, step.target)
        elif tree is not None:
            _attach(tree, step.target)


def _open(step: Step, layer: Layer, owner: int, user_namespace: int | None) -> int | None:
    """A detached mount for ``step``, with everything that the job must not be able to do off."""
    if isinstance(step, Hide):
        empty = layer.at("empty")
        place = f"{empty}/{len(os.listdir(empty))}"
        os.mkdir(place, 0o755)
        return syscalls.clone_mount(place, read_only=False)
    if isinstance(step, Overlay):
        return _open_overlay(step, layer, owner, user_namespace)
    if isinstance(step, Bind):
        mapped = user_namespace if step.mapped else None
        if step.mapped and step.writable and mapped is None:
            raise PermissionError(
                1, "this kernel cannot map its owner to the job's", step.source
            )
        return syscalls.clone_mount(
            step.source,
            read_only=not step.writable,
            recursive=step.recursive and mapped is None,
            user_namespace=mapped,
        )
    return None


def _open_overlay(step: Overlay, layer: Layer, owner: int, user_namespace: int | None) -> int:
    lower, place = step.source, layer.at("files_root")
    if step.mapped and user_namespace is not None:
        with contextlib.suppress(OSError):  # a file system that cannot map: read as "others" do
            tree = syscalls.clone_mount(lower, read_only=True, user_namespace=user_namespace)
            syscalls.attach_mount(tree, place)
            lower = place
    found = os.stat(step.source)
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
    finally:
        for file in files:
            os.close(file)


def _attach(tree: int, target: str) -> None:
    try:
        syscalls.attach_mount(os.dup(tree), target)
    except FileNotFoundError:
        _make_parents(target)
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.mkdir(target, 0o755)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        syscalls.attach_mount(os.dup(tree), target)
    finally:
        os.close(tree)


def _make_parents(path: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
