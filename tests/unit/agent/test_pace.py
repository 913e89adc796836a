"""When a supervisor lets bytes gather, and when never."""

from picloud_services.agent.pace import HOLD_SECONDS, Pace


def test_hold_when_the_last_element_may_be_next_is_none():
    pace = Pace()
    pace.begin(0.0)
    assert pace.hold(0.1, 0, finished=0, remaining=1) == 0
    assert pace.hold(0.1, 0, finished=4, remaining=1) == 0


def test_hold_when_many_tiny_elements_are_to_come_is_bounded():
    pace = Pace()
    pace.begin(0.0)
    assert pace.hold(0.002, 0, finished=50, remaining=950) == HOLD_SECONDS
    assert 0 < pace.hold(0.018, 0, finished=990, remaining=20) < HOLD_SECONDS


def test_hold_when_a_pipe_fills_fast_is_none():
    pace = Pace()
    pace.begin(0.0)
    assert pace.hold(0.001, 65536, finished=50, remaining=950) == 0


def test_hold_when_lines_come_one_by_one_begins_after_some():
    pace = Pace()
    pace.begin(0.0)
    holds = [pace.hold(1 + i * 0.0001, 10, finished=0, remaining=1) for i in range(20)]
    assert holds[:8] == [0.0] * 8
    assert holds[-1] == HOLD_SECONDS
    assert pace.hold(2.0, 10, finished=0, remaining=1) == 0
