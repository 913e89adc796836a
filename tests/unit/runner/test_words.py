"""Words about failed elements."""

import errno
from collections.abc import Callable

import pytest

from picloud_jupyter.serialize import payload
from picloud_jupyter.serialize.failure import read_failure
from picloud_jupyter.serialize.payload import PayloadError
from picloud_kernels.runner.words import describe_raised, traceback_text


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


def test_traceback_when_a_file_of_the_user_is_called_like_ours_then_it_is_shown():
    code = compile("def fail():\n    raise ValueError('v')", "/home/ann/payload.py", "exec")
    names: dict[str, Callable[[], None]] = {}
    exec(code, names)  # a function of another file
    with pytest.raises(ValueError, match="v") as caught:
        names["fail"]()
    assert caught.value.__traceback__ is not None
    alone = caught.value.with_traceback(caught.value.__traceback__.tb_next)
    assert '"/home/ann/payload.py", line 2, in fail' in traceback_text(alone)


def test_traceback_when_loading_failed_then_without_our_frames():
    with pytest.raises(PayloadError) as caught:
        payload.load(b"\x63")
    assert caught.value.__traceback__ is not None
    alone = caught.value.with_traceback(caught.value.__traceback__.tb_next)
    assert payload.__file__ not in traceback_text(alone)
