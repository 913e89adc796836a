import dataclasses
from collections import Counter
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from picloud_jupyter.protocol.jobs import HostPython, SandboxSpec
from picloud_services.agent.stock import (
    CHUNKS_PER_CONTAINER,
    CROWD_SECONDS,
    IDLE_SECONDS,
    MAX_ELEMENTS,
    Demand,
    Retire,
    Sandbox,
    Send,
    Start,
    Stock,
    Wear,
)

GIB = 1024**3
SPEC = SandboxSpec(1000, HostPython("python", "/", "/", "3"), memory_bytes=GIB)
A, B = Sandbox("a", SPEC), Sandbox("b", SPEC)


def make_stock(prestart_limit: int = 0) -> Stock:
    names = map("c{}".format, count(1))
    return Stock(lambda: next(names), prestart_limit=prestart_limit)


def chunk(
    stock: Stock, lease: str, slot: str = "s", sandbox: Sandbox = A, now: float = 0, **how
):
    return stock.chunk(Demand(lease, slot, sandbox, **how), now)


def test_chunk_when_nothing_is_warm_then_a_container_starts_and_gets_it():
    assert chunk(make_stock(), "l1") == [Start("c1", A), Send("c1", "l1")]


def test_chunk_when_its_slot_has_a_container_then_that_one_gets_it():
    stock = make_stock()
    chunk(stock, "l1")
    assert chunk(stock, "l2") == [Send("c1", "l2")]


def test_chunk_when_two_are_there_already_then_it_waits_for_the_first_to_end():
    stock = make_stock()
    chunk(stock, "l1")
    chunk(stock, "l2")
    assert chunk(stock, "l3") == []
    assert stock.ended("c1", "l1", None, 1) == [Send("c1", "l3")]


def test_chunk_when_another_slot_released_an_equal_sandbox_then_it_is_used_again():
    stock = make_stock()
    chunk(stock, "l1")
    stock.ended("c1", "l1", None, 1)
    assert stock.release("s", 1) == []
    assert chunk(stock, "l2", slot="t", sandbox=Sandbox("a", SPEC)) == [Send("c1", "l2")]


def test_chunk_when_the_warm_one_has_another_sandbox_then_a_new_one_starts():
    stock = make_stock()
    chunk(stock, "l1")
    stock.ended("c1", "l1", None, 1)
    stock.release("s", 1)
    assert chunk(stock, "l2", sandbox=B) == [Start("c2", B), Send("c2", "l2")]


def test_chunk_when_its_slot_changes_sandbox_then_it_waits_for_the_running_one():
    stock = make_stock()
    chunk(stock, "l1")
    assert chunk(stock, "l2", sandbox=B) == []
    assert stock.ended("c1", "l1", None, 1) == [Start("c2", B), Send("c2", "l2")]


def test_single_use_when_it_ends_then_its_container_retires_and_another_is_ready():
    stock = make_stock(prestart_limit=2)
    first = chunk(stock, "l1", single_use=True)
    assert first == [Start("c1", A), Send("c1", "l1"), Start("c2", A)]
    assert stock.ended("c1", "l1", None, 1) == [Retire("c1")]
    assert chunk(stock, "l2", single_use=True) == [Send("c2", "l2"), Start("c3", A)]


def test_single_use_when_the_slot_has_a_used_container_then_a_fresh_one_serves_it():
    stock = make_stock()
    chunk(stock, "l1")
    stock.ended("c1", "l1", None, 1)
    assert chunk(stock, "l2", single_use=True) == [Start("c2", A), Send("c2", "l2")]


def test_fresh_when_it_ends_then_its_container_serves_on():
    stock = make_stock()
    chunk(stock, "l1", fresh=True)
    stock.ended("c1", "l1", None, 1)
    assert chunk(stock, "l2") == [Send("c1", "l2")]


def test_ended_when_the_runner_grew_over_a_quarter_of_its_limit_then_it_retires():
    stock = make_stock()
    chunk(stock, "l1")
    assert stock.ended("c1", "l1", Wear(1, rss_bytes=GIB // 2), 1) == []
    chunk(stock, "l2")
    assert stock.ended("c1", "l2", Wear(1, rss_bytes=GIB // 2 + GIB // 4), 2) == []
    chunk(stock, "l3")
    assert stock.ended("c1", "l3", Wear(1, rss_bytes=GIB // 2 + GIB // 4 + 1), 3) == [
        Retire("c1")
    ]


def test_ended_when_threads_or_children_are_left_over_then_it_retires():
    for wear in (
        Wear(1, threads=1),
        Wear(1, children=1),
        Wear(1, spent=True),
        Wear(MAX_ELEMENTS),
    ):
        stock = make_stock()
        chunk(stock, "l1")
        assert stock.ended("c1", "l1", wear, 1) == [Retire("c1")]


def test_ended_when_worn_with_a_chunk_behind_it_then_that_one_runs_first():
    stock = make_stock()
    chunk(stock, "l1")
    chunk(stock, "l2")
    assert stock.ended("c1", "l1", Wear(1, threads=1), 1) == []
    assert chunk(stock, "l3") == []
    actions = stock.ended("c1", "l2", None, 2)
    assert actions == [Retire("c1"), Start("c2", A), Send("c2", "l3")]


def test_lost_when_chunks_wait_then_another_container_starts_for_them():
    stock = make_stock()
    for lease in ("l1", "l2", "l3"):
        chunk(stock, lease)
    assert stock.lost("c1", 1) == [Start("c2", A), Send("c2", "l3")]


def test_withdraw_when_the_chunk_waits_then_it_is_never_sent():
    stock = make_stock()
    for lease in ("l1", "l2", "l3"):
        chunk(stock, lease)
    assert stock.withdraw("l3")
    assert not stock.withdraw("l1")
    assert stock.ended("c1", "l1", None, 1) == []


def test_tick_when_idle_for_a_minute_then_only_the_newest_stays():
    stock = make_stock()
    for number in (1, 2, 3):
        chunk(stock, f"l{number}", slot=f"s{number}")
    for number in (1, 2, 3):
        stock.ended(f"c{number}", f"l{number}", None, number)
        stock.release(f"s{number}", number)
    assert stock.tick(CROWD_SECONDS, 10**12) == []
    assert stock.tick(CROWD_SECONDS + 2, 10**12) == [Retire("c1"), Retire("c2")]
    assert stock.tick(IDLE_SECONDS, 10**12) == []
    assert stock.tick(IDLE_SECONDS + 3, 10**12) == [Retire("c3")]


def test_tick_when_idle_ones_fill_half_of_free_memory_then_the_oldest_retire():
    stock = make_stock()
    for number in (1, 2):
        chunk(stock, f"l{number}", slot=f"s{number}")
    for number in (1, 2):
        stock.ended(f"c{number}", f"l{number}", Wear(1, rss_bytes=100), number)
        stock.release(f"s{number}", number)
    assert stock.tick(3, free_bytes=400) == []
    assert stock.tick(3, free_bytes=399) == [Retire("c1")]


def test_attach_when_it_has_leases_then_it_gets_no_other_and_retires_after_them():
    stock = make_stock()
    stock.attach("old", A, "s", ["l1"], 0)
    assert chunk(stock, "l2") == []
    assert stock.ended("old", "l1", None, 1) == [
        Retire("old"),
        Start("c1", A),
        Send("c1", "l2"),
    ]


def test_attach_when_it_is_idle_then_it_is_warm_stock():
    stock = make_stock()
    stock.attach("old", A, "old", [], 0)
    assert chunk(stock, "l1") == [Send("old", "l1")]


class StockMachine(RuleBasedStateMachine):
    """Any order of events: what is promised of containers, slots and chunks holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stock = make_stock(prestart_limit=2)
        self.now = 0.0
        self.leases = count(1)
        self.demands: dict[str, Demand] = {}
        self.waiting: set[str] = set()
        self.sandboxes: dict[str, Sandbox] = {}  # of living containers
        self.running: dict[str, list[str]] = {}
        self.ran: dict[str, list[str]] = {}
        self.sent: Counter[str] = Counter()
        self.released: set[str] = set()

    def do(self, actions) -> None:
        for action in actions:
            if isinstance(action, Start):
                assert action.container not in self.ran
                self.sandboxes[action.container] = action.sandbox
                self.running[action.container] = []
                self.ran[action.container] = []
            elif isinstance(action, Send):
                self.sends(action)
            else:
                assert not self.running.pop(action.container), "it retired with a chunk"
                del self.sandboxes[action.container]

    def sends(self, action: Send) -> None:
        demand = self.demands[action.lease]
        container = action.container
        self.sent[action.lease] += 1
        self.waiting.remove(action.lease)
        assert self.sandboxes[container] == demand.sandbox
        before = self.ran[container]
        assert not (demand.needs_unused and before)
        assert not any(self.demands[lease].single_use for lease in before)
        slots = {self.demands[lease].slot for lease in self.running[container]}
        assert slots <= {demand.slot}, "two slots share a container"
        elsewhere = [
            name
            for name, leases in self.running.items()
            if name != container and any(self.demands[x].slot == demand.slot for x in leases)
        ]
        assert not elsewhere, "one slot runs in two containers"
        before.append(action.lease)
        self.running[container].append(action.lease)

    @rule(
        slot=st.sampled_from("xyz"),
        sandbox=st.sampled_from([A, B]),
        single_use=st.booleans(),
        fresh=st.booleans(),
    )
    def chunk(self, slot, sandbox, single_use, fresh):
        lease = f"l{next(self.leases)}"
        demand = self.demands[lease] = Demand(lease, slot, sandbox, single_use, fresh)
        self.waiting.add(lease)
        self.do(self.stock.chunk(demand, self.now))

    @precondition(lambda self: any(self.running.values()))
    @rule(data=st.data(), threads=st.integers(0, 1), rss=st.sampled_from([0, 10, GIB]))
    def end(self, data, threads, rss):
        container = data.draw(st.sampled_from([c for c, r in self.running.items() if r]))
        lease = self.running[container].pop(0)
        wear = Wear(1, rss_bytes=rss, threads=threads)
        self.do(self.stock.ended(container, lease, wear, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def lose(self, data):
        container = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[container]
        del self.sandboxes[container]
        self.do(self.stock.lost(container, self.now))

    @rule(slot=st.sampled_from("xyz"))
    def release(self, slot):
        self.do(self.stock.release(slot, self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data):
        lease = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.stock.withdraw(lease)
        self.waiting.remove(lease)

    @rule(seconds=st.sampled_from([0.0, 30.0, 700.0]), free=st.sampled_from([0, 10**12]))
    def tick(self, seconds, free):
        self.now += seconds
        self.do(self.stock.tick(self.now, free))

    @invariant()
    def no_chunk_is_sent_twice_and_none_is_over_the_limit(self):
        assert not any(n > 1 for n in self.sent.values())
        assert all(len(leases) <= CHUNKS_PER_CONTAINER for leases in self.running.values())

    @invariant()
    def what_waits_waits_for_something_that_runs(self):
        busy = {
            self.demands[lease].slot for leases in self.running.values() for lease in leases
        }
        assert {self.demands[lease].slot for lease in self.waiting} <= busy

    def teardown(self) -> None:
        while any(self.running.values()):
            for container, leases in list(self.running.items()):
                if leases and container in self.running:
                    self.do(self.stock.ended(container, leases.pop(0), None, self.now))
        assert not self.waiting
        self.do(self.stock.release_all(self.now))
        self.do(self.stock.tick(self.now + IDLE_SECONDS, 10**12))
        assert not self.running, "a container outlived everything"


TestStock = StockMachine.TestCase
TestStock.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


GPU = Sandbox("g", dataclasses.replace(SPEC, gpus=1))
OTHER_GPU = Sandbox("h", dataclasses.replace(SPEC, gpus=1))
TWO_GPUS = Sandbox("i", dataclasses.replace(SPEC, gpus=2))


def make_gpu_stock(gpus: int) -> Stock:
    names = map("c{}".format, count(1))
    return Stock(lambda: next(names), prestart_limit=4, gpus=gpus)


def test_gpus_when_an_idle_container_has_the_device_then_it_retires_first():
    stock = make_gpu_stock(1)
    chunk(stock, "l1", sandbox=GPU)
    stock.ended("c1", "l1", None, 1)  # its slot has not been released yet
    assert chunk(stock, "l2", "t", OTHER_GPU) == [
        Retire("c1"),
        Start("c2", OTHER_GPU),
        Send("c2", "l2"),
    ]
    assert stock.release("s", 2) == []
    assert chunk(stock, "l3", "s", A) == [Start("c3", A), Send("c3", "l3")]


def test_gpus_when_devices_are_left_then_idle_containers_stay():
    stock = make_gpu_stock(2)
    chunk(stock, "l1", sandbox=GPU)
    stock.ended("c1", "l1", None, 1)
    stock.release("s", 1)
    assert Retire("c1") not in chunk(stock, "l2", "t", OTHER_GPU)
    stock.ended("c2", "l2", None, 2)
    stock.release("t", 2)
    assert chunk(stock, "l3", "u", TWO_GPUS)[:2] == [Retire("c1"), Retire("c2")]


def test_gpus_when_the_same_sandbox_is_wanted_then_its_warm_container_serves():
    stock = make_gpu_stock(1)
    chunk(stock, "l1", sandbox=GPU)
    stock.ended("c1", "l1", None, 1)
    stock.release("s", 1)
    assert chunk(stock, "l2", "t", GPU) == [Send("c1", "l2")]


def test_gpus_when_jobs_are_single_use_then_none_is_started_ahead():
    stock = make_gpu_stock(4)
    done = chunk(stock, "l1", sandbox=GPU, single_use=True)
    assert done == [Start("c1", GPU), Send("c1", "l1")]


def test_gpus_when_idle_for_a_minute_then_the_device_is_given_back():
    stock = make_gpu_stock(1)
    chunk(stock, "l1", sandbox=GPU)
    stock.ended("c1", "l1", None, 1)
    stock.release("s", 1)
    assert stock.tick(1 + CROWD_SECONDS - 1, 10 * GIB) == []
    assert stock.tick(1 + CROWD_SECONDS, 10 * GIB) == [Retire("c1")]
