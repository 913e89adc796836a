"""The supervisor's state machine: against a model of a runner, in any order of events."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_services.agent.pace import FLUSH_SECONDS
from picloud_services.agent.supervision import (
    CLOSED_SECONDS,
    STOP_SECONDS,
    Supervision,
)
from picloud_services.agent.supervision_words import (
    HELLO_SECONDS,
    DropChunk,
    Exited,
    Kill,
    LeasedChunk,
    Leave,
    Phase,
    Report,
    Return,
    SendChunk,
    Started,
    StartFailed,
    StopRunner,
    TakeBack,
)


class World:
    """A runner, its pipes and an agent's ledger around one machine."""

    def __init__(self) -> None:
        self.now = 0.0
        self.machine = Supervision(now=0.0, orphan_seconds=1000.0)
        self.tokens = 0
        self.chunk: str | None = None  # what the runner works on
        self.element: int | None = None  # what it runs
        self.next = 0
        self.socket: list[tuple[str, Any]] = []
        self.pipes = [0, 0]
        self.read_markers: dict[str, list[int]] = {}
        self.counts: dict[str, int] = {}
        self.covered: Counter[tuple[str, int]] = Counter()
        self.ran: set[tuple[str, int]] = set()
        self.over: set[str] = set()
        self.told: list[object] = []
        self.killed = False
        self.left = False
        self.exit: Exited | None = None
        self.is_broken = False  # somebody spoke in the runner's name: its link is read no more
        self.died_running: tuple[str, int] | None = None

    # what the supervisor's shell does with actions
    def do(self, actions) -> None:
        for action in actions:
            match action:
                case SendChunk(lease):
                    assert self.chunk is None
                    assert self.tokens == 0
                    self.chunk, self.next = lease, 0
                    self.tokens = self.counts[lease]
                    self.read_markers[lease] = [0, 0]
                case TakeBack(lease):
                    taken, self.tokens = self.tokens, 0
                    self.do(self.machine.taken_back(lease, taken, self.now))
                case Report(lease, items, _, end):
                    for position in items:
                        assert min(self.read_markers[lease]) > position or self.exiting
                        self.covered[lease, position] += 1
                    if end:
                        assert lease not in self.over
                        self.over.add(lease)
                case Return(lease, first, count, over):
                    for position in range(first, first + count):
                        assert (lease, position) not in self.ran
                        self.covered[lease, position] += 1
                    if over:
                        self.over.add(lease)
                case Kill():
                    self.killed = True
                case Exited(lease=lease, position=position, begun=begun):
                    self.exit = action
                    if lease is not None:
                        assert lease not in self.over
                        self.over.add(lease)
                        assert (position is None) == (begun == 0)
                        for began in range(position or 0, (position or 0) + begun):
                            assert (lease, began) in self.ran
                            self.covered[lease, began] += 1
                case Leave():
                    self.left = True
                case StartFailed(lease=str(lease)):
                    self.told.append(action)
                    assert not any(of == lease for of, _ in self.ran)
                    assert lease not in self.over
                    self.over.add(lease)
                    for position in range(self.counts[lease]):
                        self.covered[lease, position] = 1  # those not returned before
                case StartFailed() | Started() | StopRunner() | DropChunk():
                    self.told.append(action)

    exiting = False

    # what happens
    def give(self, lease: str, count: int) -> None:
        self.counts[lease] = count
        self.do(self.machine.chunk(LeasedChunk(lease, "s", count), self.now))

    def take(self) -> None:
        if self.chunk is None or self.element is not None or self.killed:
            return
        if self.tokens and self.next < self.counts[self.chunk]:
            self.tokens -= 1
            self.element = self.next
            self.ran.add((self.chunk, self.next))
        else:
            self.socket.append(("end", self.chunk))
            self.chunk = None

    def finish(self) -> None:
        if self.element is None or self.killed:
            return
        self.pipes = [count + 1 for count in self.pipes]
        self.socket.append(("result", self.element))
        self.next, self.element = self.next + 1, None

    def intrude(self) -> None:
        self.is_broken = True
        self.do(self.machine.broken("sent noise", self.now))

    def read_socket(self, most: int = 10**9) -> None:
        if self.is_broken:
            return
        items = []
        while self.socket and most:
            most -= 1
            kind, value = self.socket.pop(0)
            if kind == "result":
                items.append(value)
                continue
            if items:
                self.do(self.machine.results(items, len(items), self.now))
            items = []
            self.do(self.machine.end(value, self.now))
        if items:
            self.do(self.machine.results(items, len(items), self.now))

    def read_pipe(self, stream: int, most: int = 10**9) -> None:
        count = min(self.pipes[stream], most)
        chunk = self.machine.current
        if count:
            assert chunk is not None
            self.pipes[stream] -= count
            self.read_markers[chunk.lease][stream] += count
            self.do(self.machine.markers(stream, count, self.now))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        left = self.tokens if self.machine.wants_tokens(self.now) else None
        self.do(self.machine.time(self.now, left))

    def die(self, status: int = 9) -> None:
        """End the process; the shell reads its links and pipes to their end."""
        if self.exit or self.machine.phase is Phase.GONE:
            return
        if self.element is not None and self.chunk is not None:
            self.died_running = (self.chunk, self.element)
        self.chunk = self.element = None
        self.read_socket()
        for stream in (0, 1):
            if self.machine.current:
                self.read_pipe(stream)
        self.exiting = True
        self.do(self.machine.exited(status, 0, self.tokens))
        self.tokens = 0


def ready_world() -> World:
    world = World()
    world.do(world.machine.hello(0.0))
    return world


def used_world() -> World:
    """Return one whose runner has run a chunk."""
    world = ready_world()
    world.give("0", 1)
    world.take()
    world.finish()
    world.take()
    world.read_socket()
    world.read_pipe(0)
    world.read_pipe(1)
    return world


STEPS = st.one_of(
    st.tuples(st.just("give"), st.integers(1, 6)),
    st.tuples(st.just("take"), st.just(0)),
    st.tuples(st.just("take"), st.just(0)),
    st.tuples(st.just("finish"), st.just(0)),
    st.tuples(st.just("finish"), st.just(0)),
    st.tuples(st.just("read_socket"), st.integers(1, 4)),
    st.tuples(st.just("read_out"), st.integers(1, 4)),
    st.tuples(st.just("read_err"), st.integers(1, 4)),
    st.tuples(st.just("tick"), st.sampled_from([0.001, 0.021, 0.3])),
    st.tuples(st.just("revoke"), st.integers(0, 5)),
    st.tuples(st.just("kill_at"), st.integers(0, 5)),
    st.tuples(st.just("kill"), st.just(0)),
    st.tuples(st.just("retire"), st.just(0)),
    st.tuples(st.just("room"), st.booleans()),
    st.tuples(st.just("hello"), st.just(0)),
    st.tuples(st.just("intrude"), st.just(0)),
    st.tuples(st.just("die"), st.just(0)),
)


def play(world: World, name: str, value: int) -> None:
    leases = list(world.counts)
    match name:
        case "give":
            world.give(f"{len(leases):016x}", value)
        case "take" | "finish" | "die" | "intrude":
            getattr(world, name)()
        case "read_socket":
            world.read_socket(value)
        case "read_out":
            world.read_pipe(0, value)
        case "read_err":
            world.read_pipe(1, value)
        case "tick":
            world.tick(value)
        case "revoke" if leases:
            world.do(world.machine.revoke(leases[-1 - value % len(leases)], world.now))
        case "kill_at" if leases:
            world.do(world.machine.kill("killed", leases[-1], value, world.now))
        case "kill":
            world.do(world.machine.kill("killed", None, None, world.now))
        case "retire":
            world.do(world.machine.retire(world.now))
        case "room":
            world.do(world.machine.room(has_room=bool(value), now=world.now))
        case "hello":
            world.do(world.machine.hello(world.now))


@given(st.booleans(), st.lists(STEPS, max_size=60))
def test_any_order_of_events_covers_each_element_once(ready, steps):
    world = ready_world() if ready else World()
    for name, value in steps:
        play(world, name, value)
        assert all(times == 1 for times in world.covered.values())
    world.die()
    failed = any(isinstance(told, StartFailed) and not told.lease for told in world.told)
    everything = {(lease, p) for lease, count in world.counts.items() for p in range(count)}
    if failed:
        assert not world.ran
        assert set(world.covered) <= everything
    else:
        assert world.covered == Counter(everything)
        assert world.over == set(world.counts)
        if world.died_running:
            assert world.exit is not None
            assert world.exit.position is not None
            last = world.exit.position + world.exit.begun - 1
            assert (world.exit.lease, last) == world.died_running
    world.do(world.machine.acknowledged())
    assert world.left


@given(st.lists(STEPS, max_size=60))
def test_any_order_of_events_asks_for_a_timer_only_in_the_future_of_what_was_done(steps):
    world = ready_world()
    for name, value in steps:
        play(world, name, value)
        world.tick(0.0)
        at = world.machine.next_at()
        assert at is None or at > world.now


@given(st.data())
def test_an_untrusted_runner_may_say_anything_and_still_each_element_is_covered_once(data):
    machine = Supervision(now=0.0, orphan_seconds=1000.0)
    actions = [
        *machine.hello(0.0),
        *machine.chunk(LeasedChunk("a", "s", 4), 0.0),
        *machine.chunk(LeasedChunk("b", "s", 3), 0.0),
    ]
    fed = 0
    for _ in range(data.draw(st.integers(0, 12))):
        said = data.draw(
            st.sampled_from(["results", "out", "err", "end a", "end b", "spent a", "hello"])
        )
        count = data.draw(st.integers(1, 6))
        match said.split():
            case ["results"]:
                actions += machine.results(list(range(fed, fed + count)), 1, 0.0)
                fed += count
            case ["out"]:
                actions += machine.markers(0, count, 0.0)
            case ["err"]:
                actions += machine.markers(1, count, 0.0)
            case ["end", lease]:
                actions += machine.end(lease, 0.0)
            case ["spent", lease]:
                actions += machine.end(lease, 0.0, count - 1)
            case _:
                actions += machine.hello(0.0)
    actions += machine.exited(9, 0, data.draw(st.integers(0, 4)))
    if any(isinstance(action, StartFailed) for action in actions):
        return  # it broke the protocol before it ran anything: both leases failed to start
    counts = Counter[str]()
    for action in actions:
        match action:
            case Report(lease, items):
                counts[lease] += len(items)
            case Return(lease, _, count):
                counts[lease] += count
            case Exited(lease=str(lease), begun=begun):
                counts[lease] += begun
    assert counts == {"a": 4, "b": 3}


def test_a_chunk_waits_until_the_runner_is_ready():
    machine = Supervision(now=0.0, orphan_seconds=9.0)
    assert machine.chunk(LeasedChunk("a", "s", 2), 0.0) == []
    assert machine.hello(0.0) == [SendChunk("a")]


def test_a_finished_chunk_is_one_report_that_ends_it_and_the_next_one_starts():
    world = ready_world()
    world.give("a", 1)
    world.give("b", 1)
    world.take()
    world.finish()
    world.take()
    world.read_socket()
    assert not world.covered
    world.read_pipe(0)
    assert not world.covered
    world.read_pipe(1)
    assert world.covered == {("a", 0): 1}
    assert world.over == {"a"}
    assert world.chunk == "b"


def test_a_result_is_reported_after_20_ms_though_the_chunk_goes_on():
    world = ready_world()
    world.give("a", 3)
    world.take()
    world.finish()
    world.take()
    world.read_socket()
    world.read_pipe(0)
    world.read_pipe(1)
    assert not world.covered
    world.now += FLUSH_SECONDS
    actions = world.machine.time(world.now, world.tokens)
    assert actions == [Report("a", [0], 1, end=False)]


def test_large_results_are_reported_at_once():
    machine = Supervision(now=0.0, orphan_seconds=9.0)
    machine.hello(0.0)
    machine.chunk(LeasedChunk("a", "s", 3), 0.0)
    machine.markers(0, 1, 0.0)
    machine.markers(1, 1, 0.0)
    assert machine.results(["x"], 300_000, 0.0) == [Report("a", ["x"], None, end=False)]


def test_an_element_is_said_to_run_once_its_token_is_gone():
    world = ready_world()
    world.give("a", 2)
    world.tick(0.03)
    assert not world.told
    world.take()
    world.tick(0.03)
    world.tick(0.03)
    assert world.told == [Started("a", 0)]


def test_a_revoke_returns_what_had_not_started():
    world = ready_world()
    world.give("a", 5)
    world.take()
    assert world.machine.revoke("a", 0.0) == [TakeBack("a")]
    assert world.machine.taken_back("a", 4, 0.0) == [Return("a", 1, 4, over=False)]


def test_a_revoke_returns_no_more_than_there_is_whatever_is_in_the_pipe():
    world = ready_world()
    world.give("a", 3)
    world.take()
    world.finish()
    world.read_socket()
    assert world.machine.taken_back("a", 99, 0.0) == [Return("a", 1, 2, over=False)]


def test_a_kill_of_an_element_that_has_not_started_spares_the_running_one():
    world = ready_world()
    world.give("a", 5)
    world.take()
    world.do(world.machine.kill("killed", "a", 3, 0.0))
    assert not world.killed
    assert set(world.covered) == {("a", p) for p in range(1, 5)}


def test_a_kill_of_the_running_element_kills_and_exited_names_it():
    world = ready_world()
    world.give("a", 5)
    world.take()
    world.tick(0.03)
    world.do(world.machine.kill("killed", "a", 0, world.now))
    assert world.killed
    world.die()
    assert world.exit == Exited("a", 0, 1, 9, 0, "killed", "")


def test_a_kill_of_a_finished_element_is_answered_and_kills_nothing():
    world = ready_world()
    world.give("a", 1)
    world.take()
    world.finish()
    world.read_socket()
    actions = world.machine.kill("killed", "a", 0, 0.0)
    assert actions == [TakeBack("a")]
    assert world.machine.taken_back("a", 0, 0.0) == [Return("a", 1, 0, over=False)]


def test_an_element_over_its_max_runtime_is_killed_as_timeout():
    world = ready_world()
    world.counts["a"] = 2
    world.do(world.machine.chunk(LeasedChunk("a", "s", 2, max_runtime_seconds=1.0), 0.0))
    world.tick(5.0)  # loading the function does not count
    world.take()
    world.tick(0.03)
    world.tick(0.9)
    assert world.machine.phase is Phase.READY
    world.tick(0.2)
    world.die()
    assert world.exit == Exited("a", 0, 1, 9, 0, "timeout", "")
    assert world.covered[("a", 1)] == 1


def test_past_the_limit_of_unsent_results_the_next_chunk_waits():
    machine = ready_world().machine
    machine.room(has_room=False, now=0.0)
    assert machine.chunk(LeasedChunk("a", "s", 2), 0.0) == []
    assert machine.room(has_room=True, now=0.0) == [SendChunk("a")]


def test_retire_lets_the_running_chunk_end_then_stops_and_at_last_kills():
    world = ready_world()
    world.give("a", 1)
    world.give("b", 1)
    world.do(world.machine.retire(0.0))
    assert world.over == {"b"}
    world.take()
    world.finish()
    world.take()
    world.read_socket()
    world.read_pipe(0)
    world.read_pipe(1)
    assert world.told == [DropChunk("b"), StopRunner()]
    world.tick(STOP_SECONDS + 0.1)
    assert world.killed
    world.die()
    assert world.exit == Exited(None, None, 0, 9, 0, "shutdown", "")


def test_a_runner_that_is_never_ready_is_a_failed_start():
    world = World()
    world.give("a", 2)
    world.tick(HELLO_SECONDS + 1)
    assert world.killed
    world.do(world.machine.exited(9, 0, 0, "no module"))
    (failed,) = world.told
    assert isinstance(failed, StartFailed)
    assert "not ready within 60 seconds; it said: no module" in failed.message
    assert not world.covered


def test_a_runner_that_was_told_to_end_before_it_was_ready_gives_back_what_waits():
    world = World()
    world.give("a", 2)
    world.do(world.machine.kill("shutdown", None, None, 0.0))
    world.do(world.machine.exited(9, 0, 0))
    assert world.over == {"a"}
    assert set(world.covered) == {("a", 0), ("a", 1)}
    assert world.exit == Exited(None, None, 0, 9, 0, "shutdown", "")


@pytest.mark.parametrize("is_ready", [False, True])
@pytest.mark.parametrize(
    ("status", "oom_count", "reason"),
    [(256, 0, "start_failed"), (11, 0, "start_failed"), (9, 0, "lost_worker"), (9, 1, "oom")],
)
def test_a_runner_that_ends_before_its_first_element_failed_to_start_or_was_lost(
    status, oom_count, reason, is_ready
):
    world = ready_world() if is_ready else World()
    world.give("a", 2)
    world.do(world.machine.exited(status, oom_count, world.tokens))
    (failed,) = world.told
    assert isinstance(failed, StartFailed)
    assert (failed.lease, failed.reason) == (None, reason)
    assert world.exit is None


@pytest.mark.parametrize(
    ("asked", "reason"),
    [("oom", "oom"), ("broken", "lost_worker"), ("disk_full", "lost_worker")],
)
def test_a_container_that_was_ended_for_what_it_did_before_it_began_is_not_just_given_back(
    asked, reason
):
    """Else a job that does so each time, while its function is loaded, would be begun for ever."""
    world = ready_world()
    world.give("a", 2)
    world.do(world.machine.kill(asked, None, None, 0.0))
    world.die()
    (failed,) = world.told
    assert isinstance(failed, StartFailed)
    assert (failed.lease, failed.reason) == (None, reason)


@pytest.mark.parametrize("status", [9, 11, 256])
def test_a_used_runner_that_ends_before_it_begins_another_chunk_loses_that_start(status):
    world = used_world()
    world.give("a", 2)
    world.give("b", 1)
    world.die(status)
    failed = world.told[0]
    assert isinstance(failed, StartFailed)
    assert (failed.lease, failed.reason) == ("a", "lost_worker")
    assert world.over == {"0", "a", "b"}
    assert set(world.covered) == {("0", 0), ("a", 0), ("a", 1), ("b", 0)}
    assert world.exit == Exited(None, None, 0, status, 0, None, "")


def test_a_chunk_that_comes_after_the_exit_is_returned():
    world = used_world()
    world.die()
    world.give("late", 2)
    assert world.over == {"0", "late"}


def test_a_payload_that_cannot_be_opened_fails_its_lease_alone():
    world = ready_world()
    world.give("a", 2)
    world.give("b", 1)
    actions = world.machine.chunk_failed("a", "no such file", 0.0)
    assert actions == [StartFailed("a", "start_failed", "no such file"), SendChunk("b")]


def test_an_orphan_is_killed_and_leaves_without_being_heard():
    world = ready_world()
    world.tick(1001.0)
    assert world.killed
    world.die()
    world.tick(2.0)
    assert world.left
    assert world.exit is not None
    assert world.exit.asked == "shutdown"


def test_a_runner_that_closes_its_link_but_stays_is_killed():
    world = ready_world()
    world.give("a", 1)
    world.take()
    world.do(world.machine.closed(0.0))
    world.tick(CLOSED_SECONDS + 0.1)
    assert world.killed
    world.die()
    assert world.exit is not None
    assert "closed the runner's own file descriptors" in world.exit.message


@pytest.mark.parametrize("what", ["results", "markers", "end"])
def test_a_runner_that_speaks_without_a_chunk_is_killed(what):
    machine = Supervision(now=0.0, orphan_seconds=9.0)
    machine.hello(0.0)
    actions = {
        "results": lambda: machine.results(["x"], 1, 0.0),
        "markers": lambda: machine.markers(0, 1, 0.0),
        "end": lambda: machine.end("a", 0.0),
    }[what]()
    assert actions == [Kill()]
    *_, end = machine.exited(9, 0, 0)
    assert isinstance(end, Exited | StartFailed)
    assert "broke the protocol" in end.message


def test_what_began_before_its_runner_was_broken_off_is_not_given_back_as_not_begun():
    world = ready_world()
    world.give("a", 6)
    world.take()
    world.finish()
    world.read_socket()
    for _ in range(3):  # said behind the words that nobody believes, and never heard
        world.take()
        world.finish()
    world.take()
    world.intrude()
    world.die()
    assert world.exit is not None
    assert (world.exit.position, world.exit.begun, world.exit.asked) == (1, 4, "broken")
    assert world.covered == {("a", position): 1 for position in range(6)}


def test_what_is_said_behind_a_broken_word_is_not_believed():
    machine = ready_world().machine
    machine.chunk(LeasedChunk("a", "s", 2), 0.0)
    assert machine.broken("sent noise", 0.0) == [Kill()]
    assert machine.results([0, 1], 2, 0.0) == []
    assert machine.end("a", 0.0) == []
    assert machine.exited(9, 0, 0)[0] == Exited(
        "a", 0, 2, 9, 0, "broken", "the runner broke the protocol: it sent noise"
    )


def test_one_that_was_to_be_killed_cannot_be_told_among_many_that_began():
    world = ready_world()
    world.give("a", 3)
    world.take()
    world.finish()
    world.take()
    world.do(world.machine.kill("timeout", None, None, world.now))
    world.intrude()
    world.die()
    assert world.exit is not None
    assert (world.exit.position, world.exit.begun, world.exit.asked) == (0, 2, "broken")


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_runner_that_is_not_believed_before_its_first_element_loses_that_start(is_ready):
    world = ready_world() if is_ready else World()
    world.give("a", 2)
    world.intrude()
    world.die()
    (failed,) = world.told
    assert isinstance(failed, StartFailed)
    assert failed.reason == "lost_worker"  # free, and not for ever
    assert "broke the protocol" in failed.message


def test_tokens_that_a_runner_made_hide_nothing_that_was_seen_running():
    world = ready_world()
    world.give("a", 3)
    world.take()
    world.tick(0.03)
    assert world.machine.taken_back("a", 99, 0.0) == [Return("a", 1, 2, over=False)]
    world = ready_world()
    world.give("a", 3)
    world.take()
    world.tick(0.03)
    world.tokens = 99
    world.die()
    assert world.covered == {("a", position): 1 for position in range(3)}


def test_a_spent_runner_gives_back_what_it_did_not_begin_and_serves_no_more():
    machine = Supervision(now=0.0, orphan_seconds=9.0)
    machine.hello(0.0)
    machine.chunk(LeasedChunk("a", "s", 5), 0.0)
    machine.chunk(LeasedChunk("b", "s", 3), 0.0)
    machine.markers(0, 2, 0.0)
    machine.markers(1, 2, 0.0)
    machine.results([0, 1], 2, 0.0)
    assert machine.end("a", 0.0, 3) == [
        Return("a", 2, 3, over=False),
        DropChunk("b"),
        Return("b", 0, 3, over=True),
        Report("a", [0, 1], None, end=True),
        StopRunner(),
    ]
    late = machine.chunk(LeasedChunk("c", "s", 1), 0.0)
    assert late == [Return("c", 0, 1, over=True)]


def test_a_runner_that_gives_back_more_than_is_left_is_not_believed():
    machine = Supervision(now=0.0, orphan_seconds=9.0)
    machine.hello(0.0)
    machine.chunk(LeasedChunk("a", "s", 5), 0.0)
    machine.results([0], 1, 0.0)
    assert machine.end("a", 0.0, 5) == [Kill()]
