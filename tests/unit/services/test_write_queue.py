"""Order and fairness of the two lanes into the store."""

import threading
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from picloud_services.base.write_queue import WriteQueue

Piece = TypeVar("Piece")


def drained(queue: WriteQueue[Piece]) -> list[list[Piece]]:
    queue.close()
    groups = []
    while not queue.is_over:
        groups.append(queue.take())
    return groups


def test_take_when_short_and_long_wait_then_they_come_in_turn() -> None:
    queue: WriteQueue[str] = WriteQueue(2)
    for name in ("L1", "L2", "L3"):
        queue.put(name)
    for name in ("s1", "s2", "s3"):
        queue.put(name, short=True)
    assert drained(queue) == [["s1", "s2"], ["L1", "L2"], ["s3"], ["L3"]]


def test_take_when_long_were_put_back_then_they_come_first_of_their_lane() -> None:
    queue: WriteQueue[str] = WriteQueue(3)
    for name in ("L1", "L2", "L3", "L4"):
        queue.put(name)
    first, *rest = queue.take()
    queue.put("s1", short=True)
    assert queue.is_urgent
    queue.put_back(rest)
    assert first == "L1"
    assert drained(queue) == [["s1"], ["L2", "L3", "L4"]]


def test_take_when_nudged_then_it_returns_nothing() -> None:
    queue: WriteQueue[str] = WriteQueue(2)
    found: list[list[str]] = []
    waiting = threading.Thread(target=lambda: found.append(queue.take()))
    waiting.start()
    queue.nudge()
    waiting.join(5)
    assert found == [[]]
    assert not queue.is_over


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60), st.integers(1, 5))
def test_take_gives_each_piece_once_and_in_the_order_of_its_lane(steps, limit) -> None:
    queue: WriteQueue[tuple[bool, int]] = WriteQueue(limit)
    taken: list[tuple[bool, int]] = []
    for number, (is_short, take) in enumerate(steps):
        queue.put((is_short, number), short=is_short)
        if not take:
            taken += queue.take()
    for group in drained(queue):
        assert len(group) <= limit
        taken += group
    for lane in (False, True):
        assert [piece for piece in taken if piece[0] is lane] == [
            (lane, number) for number, (is_short, _) in enumerate(steps) if is_short is lane
        ]
