"""File systems of their own for tests: small, full, read-only. Needs root."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, options: str, *, kind: str = "tmpfs") -> Iterator[Path]:
    """Mount a new file system on ``folder``, which is made, for the time of the block."""
    if os.geteuid():
        pytest.skip("a file system of its own needs root; root CI runs it")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", kind, "-o", options, "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def free_bytes(folder: Path) -> int:
    """Return what an ordinary user may still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def fill(filler: Path, leave_bytes: int = 0) -> None:
    """Make ``filler`` so large that only about ``leave_bytes`` are free beside it."""
    with filler.open("ab", buffering=0) as file:
        with contextlib.suppress(OSError):
            while (room := free_bytes(filler.parent) - leave_bytes) > 0:
                file.write(bytes(min(room, 2**20)))
