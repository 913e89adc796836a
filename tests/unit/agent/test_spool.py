"""Frames stay until they are acknowledged."""

from picloud_jupyter.protocol.frames import split_frame
from picloud_services.agent.spool import Spool


def test_add_numbers_frames_and_keeps_the_order_of_fields():
    spool = Spool()
    spool.add("batch", {"lease": "a", "items": []}, b"x")
    header, body = split_frame(spool.add("batch", {"lease": "b", "items": [1]}, b"y", b"z"))
    assert list(header.items()) == [("t", "batch"), ("n", 2), ("lease", "b"), ("items", [1])]
    assert bytes(body) == b"yz"


def test_acknowledge_forgets_what_is_at_most_the_number():
    spool = Spool()
    kept = [spool.add("batch", {"k": k}) for k in range(4)]
    spool.acknowledge(2)
    assert list(spool) == kept[2:]
    assert spool.size_bytes == sum(map(len, kept[2:]))
    spool.acknowledge(2)
    spool.acknowledge(99)
    assert len(spool) == 0
    assert spool.size_bytes == 0


def test_add_when_all_were_acknowledged_goes_on_counting():
    spool = Spool()
    spool.add("batch", {})
    spool.acknowledge(1)
    assert split_frame(spool.add("exited", {}))[0]["n"] == 2
