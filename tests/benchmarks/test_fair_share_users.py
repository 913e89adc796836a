"""The wait of a true user beside a true user's map of 100,000 jobs, in one service for all users. As root."""

import statistics
from collections.abc import Iterator

import pytest

from tests.benchmarks.measuring import percentile
from tests.tools.two_users import TwoUsers, User, two_users_of_a_system

pytestmark = [pytest.mark.benchmark, pytest.mark.root, pytest.mark.timeout(300)]
ROUNDS = 5

LARGE = """
import time
def work(i):
    time.sleep(0.002)
jids = cloud.map(work, range(100_000))
print(json.dumps([jids[0], jids[-1]]), flush=True)
"""
SMALL = """
import time
def work(seconds):
    time.sleep(seconds)
cloud.join(cloud.call(work, 0.05))  # a container of this user is there
rounds = []
for _ in range(given[0]):
    jids = [cloud.call(work, 0.05) for _ in range(10)]
    cloud.join(jids)
    info = cloud.info(jids, ["created", "finished"])
    rounds.append([(info[j]["finished"] - info[j]["created"]).total_seconds() for j in jids])
    time.sleep(0.5)
print(json.dumps(rounds))
"""


@pytest.fixture(scope="module")
def users() -> Iterator[TwoUsers]:
    with two_users_of_a_system() as found:
        yield found


def p95(user: User) -> float:
    """Return the p95 of the waits of ten jobs of 50 ms, the median of some rounds."""
    return statistics.median(percentile(waits, 95) for waits in user.run(SMALL, ROUNDS))


def test_small_user_beside_a_map_of_100_000(users, table):
    alone = p95(users.bob)
    first, last = users.ann.run(LARGE)
    beside = p95(users.bob)
    left = users.ann.run("print(json.dumps(cloud.status(given[0]) != 'done'))", last)
    users.ann.run("cloud.kill(range(given[0], given[1] + 1)); print(1)", first, last)
    assert left, "the large map was over too early"
    table.add(
        "fair share: p95 of 10 jobs beside another user's map of 100,000, over alone",
        beside / alone,
        2.0,
        "x",
        f"{beside * 1000:.0f} ms beside, {alone * 1000:.0f} ms alone",
    )
