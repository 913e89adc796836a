"""The wish of the system that this process ends, as a descriptor for a selector."""

import os
import signal


def termination_fd() -> int:
    """Return a descriptor that becomes readable when this process gets SIGTERM; it goes on."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read
