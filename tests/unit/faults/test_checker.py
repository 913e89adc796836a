"""The checker itself: what it would notice, and that a row which strikes nothing is not clean."""

from picloud_jupyter.transport.paths import ServicePaths
from tests.faults.__main__ import run
from tests.faults.catalog import MOST_MISSES, Fault, Trial
from tests.faults.invariants import BatchRow, Figures, JobRow, Picture, check
from tests.faults.journal import Event
from tests.faults.picture import cgroups_of_containers, find_leftovers


def submitted(token: str, jids: list[int], **facts: object) -> list[Event]:
    submit = {"do": "submit", "token": token, "kind": "call", **facts}
    return [submit, {"do": "acked", "token": token, "jids": jids}]


def broken(events: list[Event], jids: list[int]) -> list[str]:
    """Return what is said of jobs that are all done, each by its first attempt."""
    picture = Picture()
    picture.jobs = {jid: JobRow(jid, jid, "done", None, 1) for jid in jids}
    counts = {"waiting": 0, "queued": 0, "done": 1, "error": 0, "killed": 0, "stalled": 0}
    picture.batches = {jid: BatchRow(jid, None, 0, counts) for jid in jids}
    picture.user_counts = {"done": len(jids)}
    ran = {"attempt": 1, "lease": "l"}
    effects = [{"what": what, "jid": jid, **ran} for jid in jids for what in ("start", "end")]
    return [str(violation) for violation in check(events, effects, picture, Figures())]


def test_a_map_with_all_its_jobs_breaks_nothing():
    assert broken(submitted("t", [1, 2], count=2) + submitted("u", [3]), [1, 2, 3]) == []


def test_i1_a_map_that_was_given_fewer_jobs_than_it_has_elements():
    found = broken(submitted("t", [1, 2], count=3), [1, 2])
    assert found == ["I1: the submit t of 3 jobs was given 2"]


def test_i1_a_job_that_was_given_out_for_two_submits():
    found = broken(submitted("t", [1]) + submitted("u", [1]), [1])
    assert found == ["I1: job 1 was given out for t, u"]


def test_i7_a_layer_whose_container_is_named_by_a_service_that_is_down(tmp_path):
    paths = ServicePaths(tmp_path / "home", tmp_path / "run")
    for folder in (paths.home / "layers" / "0123456789ab", paths.run / "c" / "0123456789ab"):
        folder.mkdir(parents=True)
    known = cgroups_of_containers()
    assert find_leftovers(paths, known, down=False) == []
    left = find_leftovers(paths, known, down=True)
    assert left == ["the layer 0123456789ab of a container that is gone"]


def test_rounds_that_miss_do_not_count():
    trial = Trial(seed=1, wanted=3)
    tried = []
    for number, _ in enumerate(trial.rounds()):
        tried.append(number)
        if number % 2:
            trial.miss()
    assert (trial.count, tried, trial.violations) == (3, [0, 1, 2, 3, 4], [])


def test_rounds_that_only_miss_end_and_are_refused():
    trial = Trial(seed=1, wanted=3)
    for _ in trial.rounds():
        trial.miss()
    assert trial.count == 0
    assert [v.text for v in trial.violations] == [
        f"{MOST_MISSES} times in a row there was nothing to strike"
    ]


def test_a_row_that_strikes_nothing_is_not_clean():
    row = run(Fault("idle", lambda _trial: None, 1, 1), 1, ci=True)
    assert [v.text for v in row.violations] == ["it found nothing to strike"]
    row = run(Fault("idle", lambda _trial: None, 1, 1), 1, ci=True, seconds=0)
    assert (row.violations, row.figures) == ([], {"not tried:": "there was no time left"})
    assert run(Fault("idle", lambda _trial: None, 0, 1), 1, ci=True).violations == []
