"""What our commands write where somebody looks: to a terminal."""

import contextlib
import os
import pty
import subprocess
import sys

from tests.tools.service_under_test import ServiceUnderTest


def on_a_terminal(service: ServiceUnderTest, *words: str) -> str:
    """Return what `picloud WORDS` writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, **service.environment, "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "picloud_jupyter.cli", *words],
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while data := os.read(ours, 65536):
            said += data
    os.close(ours)
    process.wait(30)
    return said.decode("utf-8", "replace")
