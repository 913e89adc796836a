"""Words about failed elements."""

import errno

import pytest

from picloud_jupyter.serialize.failure import read_failure
from picloud_kernels.runner.words import describe_raised


@pytest.mark.parametrize(
    ("exc", "reason", "words"),
    [
        (ValueError("v"), "error", "v"),
        (SystemExit(3), "error", "sys.exit(3)"),
        (KeyboardInterrupt(), "error", "SIGINT"),
        (MemoryError(), "error", "memory"),
        (OSError(errno.ENOSPC, "No space left"), "disk_full", "free some space"),
        (OSError(errno.ENOENT, "No such file"), "error", "No such file"),
    ],
)
def test_describe_raised_gives_reason_and_words(exc, reason, words):
    found, body = describe_raised(exc)
    assert found == reason
    assert words in read_failure(body).message
    assert type(exc).__name__ in read_failure(body).traceback
