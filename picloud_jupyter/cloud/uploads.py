"""Where the bytes of a payload go: into the request itself, or into a file beforehand."""

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence

from picloud_jupyter.cloud.session import Session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import (
    CloudException,
    DiskFull,
    InternalError,
    PayloadTooLarge,
)
from picloud_jupyter.protocol.frames import Buffer, encode_json
from picloud_jupyter.protocol.jobs import INLINE_BYTES

_WRITE_AT_ONCE = 256
_NO_UNNAMED_FILES = {errno.EOPNOTSUPP, errno.EISDIR}  # what file systems without them answer


def check_size(parts: Sequence[Buffer], limit: int, what: str) -> int:
    """Return the size of ``parts`` in bytes.

    Raises:
        PayloadTooLarge: it is above ``limit``; ``what`` names them.
    """
    size = sum(map(len, parts))
    if size > limit:
        raise PayloadTooLarge(
            f"{what} are {size:,} bytes, more than the {limit:,} of cloud.config.max_transmit_data",
            hint="raise cloud.config.max_transmit_data, or let the job read the data from a file",
        )
    return size


def place(session: Session, parts: Sequence[Buffer]) -> tuple[bytes, Sequence[Buffer]]:
    """Return (reference of a payload as JSON, what of it travels in the request's body).

    Payloads above 64 KiB are uploaded now, and nothing of them travels in the body.
    """
    size_bytes = sum(map(len, parts))
    if size_bytes <= INLINE_BYTES:
        return b'{"size_bytes":%d}' % size_bytes, parts
    return encode_json(upload(session, parts, size_bytes)), ()


def upload(session: Session, parts: Sequence[Buffer], size_bytes: int) -> dict[str, object]:
    """Return the reference of ``parts``, which are safe with the control plane afterwards.

    Raises:
        DiskFull: they do not fit there.
        PayloadTooLarge: over the service's limit.
    """
    client = session.client
    begun = client.post(routes.UPLOADS, {"size_bytes": size_bytes, "digest": ""})
    # a service elsewhere must not choose files of this machine
    name, path = begun["upload"], begun.get("path") if session.local else None
    route = routes.UPLOAD.format(upload=name)
    if path:
        try:
            # What nobody holds is swept; we hold it until it is safe.
            with _written(path, parts) as digest:
                client.post(route, {"size_bytes": size_bytes, "digest": digest})
        except (CloudException, OSError):
            with contextlib.suppress(OSError):
                os.unlink(path)  # nobody will name it, and it takes room
            raise
    else:
        digest = _hash(parts)
        arrived = client.put_bytes(route, parts)["digest"]
        if arrived != digest:
            raise InternalError("an upload arrived with other bytes than were sent; try again")
    return {"size_bytes": size_bytes, "digest": digest, "upload": name}


def _hash(parts: Sequence[Buffer]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


@contextlib.contextmanager
def _written(path: str, parts: Sequence[Buffer]) -> Iterator[str]:
    """Write the file and give its digest; whoever asks sees it held until the block ends.

    It has a name only once all is written: a client that is killed meanwhile leaves nothing. Another
    thread computes the digest (both let go of the GIL).
    """
    found: list[str] = []
    hasher = threading.Thread(target=lambda: found.append(_hash(parts)), daemon=True)
    hasher.start()
    try:
        with _fits(path):
            file, named = _open(path)
        try:
            _hold(file)
            with _fits(path):
                _write(file, parts)
                if not named:
                    # a src_dir_fd makes os.link call linkat, which alone can follow a link of /proc
                    os.link(
                        f"/proc/self/fd/{file}", path, src_dir_fd=file, follow_symlinks=True
                    )
            hasher.join()
            yield found[0]
        finally:
            os.close(file)
    finally:
        hasher.join()


@contextlib.contextmanager
def _fits(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"a payload does not fit on the disk of {path}",
            hint="free some space, or delete finished jobs with cloud.delete",
        ) from exc


def _open(path: str) -> tuple[int, bool]:
    """Return (a new file beside ``path``, whether it has that name already)."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(os.path.dirname(path), flags | os.O_TMPFILE, 0o600), False
    except OSError as exc:
        if exc.errno not in _NO_UNNAMED_FILES:
            raise
    return os.open(path, flags | os.O_CREAT | os.O_TRUNC, 0o600), True


def _hold(file: int) -> None:
    import fcntl  # absent where no file is written anyway

    with contextlib.suppress(OSError):  # no locks there: then it is swept after a day
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write(file: int, parts: Sequence[Buffer]) -> None:
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    while views:
        written = os.writev(file, views[:_WRITE_AT_ONCE])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]
