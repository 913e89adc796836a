"""What a supervisor reads of an agent's frames is checked before anything is done."""

import pytest

from picloud_jupyter.protocol.frames import FrameError
from picloud_services.agent.supervision_words import check_command, read_chunk

CHUNK = {
    "t": "chunk",
    "lease": "0" * 16,
    "slot": "s",
    "jids": [[1, 3], [5, 5]],
    "function": "d" * 64,
    "function_bytes": 0,
    "files": [],
    "max_runtime_seconds": None,
}


@pytest.mark.parametrize(
    "header",
    [
        CHUNK,
        {**CHUNK, "max_runtime_seconds": 5},
        {"t": "revoke", "lease": "l"},
        {"t": "kill", "asked": "killed", "lease": None, "position": None},
        {"t": "ack", "n": 3},
        {"t": "retire"},
        {"t": "of a newer agent"},
        {},
    ],
)
def test_command_when_whole_then_it_passes(header):
    check_command(header)


@pytest.mark.parametrize(
    "name", ["lease", "slot", "jids", "function", "function_bytes", "files"]
)
@pytest.mark.parametrize("value", [None, {}, 1.5, True])
def test_chunk_when_a_field_is_wrong_then_it_is_named(name, value):
    with pytest.raises(FrameError, match=name):
        check_command({**CHUNK, name: value})


@pytest.mark.parametrize(
    "header",
    [
        {**CHUNK, "jids": [[1]]},
        {**CHUNK, "jids": [[1, "2"]]},
        {**CHUNK, "jids": [3]},
        {**CHUNK, "max_runtime_seconds": "5"},
        {"t": "revoke"},
        {"t": "kill", "asked": None},
        {"t": "ack", "n": "3"},
        {"t": "ack", "n": True},
    ],
)
def test_command_when_it_is_not_whole_then_it_is_refused(header):
    with pytest.raises(FrameError):
        check_command(header)


def test_chunk_when_read_then_its_elements_are_counted():
    assert read_chunk(CHUNK).count == 4
