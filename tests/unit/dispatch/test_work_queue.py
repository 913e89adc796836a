"""The queue of one user, over a batch of many parts."""

from typing import Any

from picloud_jupyter.protocol.jobs import Status
from picloud_services.dispatch.work_queue import QUEUED_CODE, WorkQueue, queued_run, work_from
from picloud_services.jobs.live import Ready
from picloud_services.jobs.spans import CODE_OF, LiveBatch, Span
from tests.tools.job_system import spec

PART = 10
PARTS = 300
CODE_OF_KILLED = CODE_OF[Status.KILLED]


class Counted(list[Span]):
    """A list that counts how often it is gone through."""

    looks = 0

    def __iter__(self) -> Any:
        self.looks += 1
        return super().__iter__()


def make_queue() -> tuple[WorkQueue, LiveBatch, Counted]:
    """Return a queue with a map of many parts, whose parts came in the opposite order."""
    spans = Counted()
    batch = LiveBatch(1, 7, spec(), "f", 5, None, "sealed", PART * PARTS, 0.0, is_map=True)
    batch.spans = spans
    queue = WorkQueue()
    for part in reversed(range(PARTS)):
        first = 1 + part * PART
        spans.append(Span(first, bytearray([QUEUED_CODE] * PART), batch, part * PART))
        queue.push(work_from(Ready(1, first, PART), batch, 0.0))
    return queue, batch, spans


def test_head_when_a_map_has_many_parts_then_its_parts_are_searched_once_for_each():
    queue, _, spans = make_queue()
    taken = 0
    while (work := queue.head(7)) is not None:
        assert work.first_jid == taken + 1
        assert queued_run(work) == work.count
        taken += queue.take(work, 1).count
    assert taken == PART * PARTS
    assert spans.looks <= PARTS + 1


def test_head_when_jobs_were_ended_while_queued_then_they_are_left_out():
    queue, batch, spans = make_queue()
    for span in spans[:-1]:
        span.codes[:] = bytes([CODE_OF_KILLED]) * PART
    spans[-1].codes[:3] = bytes([CODE_OF_KILLED]) * 3
    work = queue.head(7)
    assert work is not None
    assert (work.first_jid, work.count) == (4, PART - 3)
    queue.take(work, PART - 3)
    assert queue.head(7) is None
    assert queue.remaining(batch.batch) == 0
    assert len(queue) == 0
