"""The words for bwrap. Pure."""

import os
from collections.abc import Mapping, Sequence

from picloud_services.agent.binds import Bind, Hide, Overlay, Step
from picloud_services.agent.container import ContainerError

NAMESPACES = (
    "--unshare-user",
    "--unshare-ipc",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-uts",
    "--unshare-cgroup-try",
)


def layout(steps: Sequence[Step]) -> list[str]:
    """Return the arguments that lay out the files by ``steps``; without steps our own ``/`` is shown."""
    if not steps:
        return ["--bind", "/", "/"]
    words: list[str] = []
    for step in steps:
        words += _step(step)
    return words


def seal(steps: Sequence[Step]) -> list[str]:
    """Return the last arguments: what `layout` left writable for the sake of mount points is closed."""
    hidden = [step.target for step in steps if isinstance(step, Hide)]
    return [word for path in (*hidden, "/") for word in ("--remount-ro", path)] if steps else []


def _step(step: Step) -> list[str]:
    if isinstance(step, Hide):
        return ["--perms", "0755", "--tmpfs", step.target]
    if isinstance(step, Bind):
        return ["--bind" if step.writable else "--ro-bind", step.source, step.target]
    if isinstance(step, Overlay):
        return ["--overlay-src", step.source, "--overlay", step.upper, step.work, step.target]
    return ["--symlink", step.text, step.target]


def isolation(
    folder: str,
    memory_bytes: int,
    variables: Mapping[str, str],
    devices: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """Return the arguments of everything but the files; the job begins in ``folder``.

    Devices and shared memory are the container's own, the latter at most ``memory_bytes``;
    ``devices`` are those of the host that are shown, as (where they are, path inside).
    """
    words = [
        *NAMESPACES,
        "--die-with-parent",
        "--new-session",
        *("--proc", "/proc", "--dev", "/dev"),
        *(word for pair in devices for word in ("--dev-bind", *pair)),
        *("--remount-ro", "/dev"),
        *("--perms", "1777", "--size", str(memory_bytes), "--tmpfs", "/dev/shm"),  # noqa: S108
        *("--chdir", folder, "--clearenv"),
    ]
    for name, value in variables.items():
        words += ["--setenv", name, value]
    return words


def packed(words: Sequence[str]) -> bytes:
    """Return ``words`` as bwrap reads them from a descriptor: each ends where a NUL character is.

    Raises:
        ContainerError: one has such a character, so that its rest would be words of its own.
    """
    for word in words:
        if "\0" in word:
            raise ContainerError(
                f"a path or a variable of this job has a NUL character in it: {word[:200]!r}"
            )
    return b"\0".join(os.fsencode(word) for word in words)
