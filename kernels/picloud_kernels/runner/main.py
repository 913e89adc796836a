"""Entry of the runner: ``PYTHON -S -E -s -u BUNDLE/picloud_kernels/runner/main.py CONFIG``.

Says hello before anything is imported: from then on chunks may be sent. They wait in the socket
while the interpreter gets ready. Only builtin modules until then: each import is time that a
fresh container's first job waits.
"""

import posix
import sys

LINK_FD = 3
TOKEN_FD = 4
WIRE_VERSION = 1  # as protocol.frames has them; a test compares
OLDEST_WIRE_VERSION = 1
_PAGE_BYTES = posix.sysconf("SC_PAGE_SIZE")


def open_memory() -> int:
    """Return a descriptor for `rss_bytes`."""
    return posix.open("/proc/self/statm", posix.O_RDONLY | posix.O_CLOEXEC)


def rss_bytes(memory_fd: int) -> int:
    """Return the resident memory of this process."""
    return int(posix.pread(memory_fd, 200, 0).split(None, 2)[1]) * _PAGE_BYTES


def hello_frame(memory_fd: int) -> bytes:
    """Return the runner's first frame; put together by hand, as nothing is imported yet."""
    python = ".".join(map(str, sys.version_info[:3]))
    header = (
        f'{{"t":"hello","wire":{WIRE_VERSION},"oldest":{OLDEST_WIRE_VERSION},"role":"runner",'
        f'"pid":{posix.getpid()},"python_version":"{python}","rss_bytes":{rss_bytes(memory_fd)}}}'
    ).encode()
    return len(header).to_bytes(4, "big") + bytes(8) + header


def main() -> None:
    """Serve one supervisor until it says stop or closes the link."""
    memory_fd = open_memory()
    posix.write(LINK_FD, hello_frame(memory_fd))
    import json

    config = json.loads(sys.argv[1])
    sys.path[0] = config["bundle"]  # not this file's folder: its modules would shadow others
    from picloud_kernels.runner.serve import serve

    serve(
        config,
        link_fd=LINK_FD,
        token_fd=TOKEN_FD,
        memory_fd=memory_fd,
        rss_bytes=rss_bytes,
    )


if __name__ == "__main__":
    main()
