"""Gates over several ranges of one map: they open exactly when the last job ends."""

import time

from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.jobs import HostPython, JobSpec, Status
from picloud_services.jobs.gates import Gate
from picloud_services.jobs.live import Change, LiveJobs
from picloud_services.jobs.spans import CODE_OF, SEALED, LiveBatch

SPEC = JobSpec("f", HostPython("/p", "/", "/", "3.11"))
COUNT = 30


def jobs(count: int) -> LiveJobs:
    live, made = LiveJobs(), LiveBatch(1, 1, SPEC, "d", 5, None, SEALED, None, 0.0)
    live.add_batch(made)
    live.add_jobs(made, 1, 0, bytes((CODE_OF[Status.QUEUED],)) * count)
    return live


def finished(gate: Gate) -> bool:
    return gate.unfinished == 0


ranges = st.lists(
    st.tuples(st.integers(1, COUNT), st.integers(0, 6)).map(
        lambda pair: (pair[0], min(pair[0] + pair[1], COUNT))
    ),
    min_size=1,
    max_size=6,
)


@given(ranges, st.permutations(range(1, COUNT + 1)), st.integers(1, 5))
def test_any_ranges_open_exactly_when_their_last_job_ends(asked, order, chunk):
    live = jobs(COUNT)
    wanted = {jid for first, last in asked for jid in range(first, last + 1)}
    opened: list[int] = []
    gate = Gate(live, asked, enough=finished, opened=lambda: opened.append(1))
    ended: set[int] = set()
    for at in order:
        last = at
        while last < min(at + chunk - 1, COUNT) and last + 1 not in ended:
            last += 1
        if at in ended:
            continue
        new = Status.ERROR if at % 3 == 0 else Status.DONE
        live.apply([Change(1, at, last, Status.QUEUED, new)])
        ended |= set(range(at, last + 1))
        assert gate.unfinished == len(wanted - ended)
        assert len(opened) == (wanted <= ended)
    span = gate.pieces[0][0]
    assert gate.failed == sum(span.code(jid) == CODE_OF[Status.ERROR] for jid in wanted)
    gate.close()
    assert span.watchers == []


def test_a_change_is_counted_once_for_two_ranges_of_a_map():
    live = jobs(3)
    opened: list[int] = []
    gate = Gate(live, [(1, 1), (3, 3)], enough=finished, opened=lambda: opened.append(1))
    live.apply([Change(1, 1, 1, Status.QUEUED, Status.DONE)])
    assert (gate.unfinished, opened) == (1, [])
    live.apply([Change(1, 3, 3, Status.QUEUED, Status.DONE)])
    assert (gate.unfinished, opened) == (0, [1])


def test_changes_of_a_gate_with_many_ranges_are_cheap():
    live = jobs(20_000)
    gate = Gate(
        live,
        [(jid, jid) for jid in range(1, 20_000, 2)],
        enough=finished,
        opened=lambda: None,
    )
    started = time.process_time()
    for jid in range(1, 1_001):
        live.apply([Change(1, jid, jid, Status.QUEUED, Status.DONE)])
    assert time.process_time() - started < 1  # 1 ms each; a walk over all ranges costs more
    assert gate.unfinished == 9_500
