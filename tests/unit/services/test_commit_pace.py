"""When short work is committed on the loop."""

from picloud_services.base.commit_pace import CommitPace


def paced(*milliseconds: float) -> bool:
    pace = CommitPace()
    for figure in milliseconds:
        pace.measure(figure / 1000)
    return pace.is_fast


def test_is_fast_when_a_busy_machine_delays_some_commits_then_still() -> None:
    assert paced(*[0.4] * 5, *[9.0] * 10)


def test_is_fast_when_the_disk_is_slow_then_not_any_more() -> None:
    assert not paced(*[5.0] * 14, 0.4)


def test_is_fast_when_the_disk_is_quick_again_then_again() -> None:
    assert paced(*[5.0] * 15, *[0.4] * 5)
