"""Jobs that wait for their time: who comes when, and what a look costs."""

from picloud_services.dispatch.delayed import Delayed
from picloud_services.jobs.live import Ready


def ready(jid: int, seconds: float, batch: int = 1) -> Ready:
    return Ready(batch, jid, 1, delay_seconds=seconds)


def test_take_when_due_then_in_order_of_time_and_once():
    waiting = Delayed()
    for jid, seconds in ((1, 3.0), (2, 1.0), (3, 2.0)):
        waiting.add(ready(jid, seconds), 10.0)
    assert waiting.seconds_left(1, 11.0) == 2.0
    assert waiting.take(10.5, {1}) == []
    assert [item.first_jid for item in waiting.take(12.0, {1})] == [2, 3]
    assert waiting.seconds_left(2, 12.0) is None
    assert [item.first_jid for item in waiting.take(13.0, {1})] == [1]
    assert not waiting


def test_take_when_its_batch_is_gone_then_dropped_before_its_time():
    waiting = Delayed()
    waiting.add(ready(1, 1e6, batch=1), 0.0)
    waiting.add(ready(2, 2e6, batch=2), 0.0)
    assert waiting.take(1.0, {2}) == []
    assert len(waiting) == 1


def test_add_when_it_waits_already_then_the_new_time_counts():
    waiting = Delayed()
    waiting.add(ready(1, 1.0), 0.0)
    waiting.add(ready(1, 5.0), 0.0)
    assert waiting.take(2.0, {1}) == []
    assert len(waiting.take(5.0, {1})) == 1
    assert not waiting


def test_take_when_many_wait_then_only_the_next_is_looked_at():
    waiting = Delayed()
    for jid in range(10_000):
        waiting.add(ready(jid, 60.0 + jid), 0.0)

    class Batches:
        asked = 0

        def __contains__(self, batch: object) -> bool:
            self.asked += 1
            return batch == 1

    batches = Batches()
    assert waiting.take(1.0, batches) == []
    assert batches.asked == 1
