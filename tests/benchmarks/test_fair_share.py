"""What a user with little to do waits beside users with very much: the true dispatcher and store, two cores.

The engine is a fake one whose elements take their time on timers, so that the figures are of decisions
and commits, not of a busy machine. Waits are from submission to the end of each job.
"""

import asyncio
import statistics

import pytest

from tests.benchmarks.measuring import PERF, percentile
from tests.tools.fake_engine import Chunk, Does, FakeEngine
from tests.tools.job_system import System, function, running_system

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(300)]
LARGE, LARGER, SMALL = 1001, 1002, 1003  # and each round another small one
ROUNDS = 5
SMALL_JOBS = 10


def takes(_chunk: Chunk, _position: int, argument: bytes) -> Does:
    return Does(seconds=float(argument))


async def small_waits(system: System, user_id: int, seconds: float) -> list[float]:
    """Return how long each of a small user's jobs took from its submission on."""
    waits: list[float] = []

    async def one() -> None:
        started = PERF()
        jid = await system.call(str(seconds).encode(), user_id=user_id, func=function(b"small"))
        await system.join(jid, user_id=user_id, seconds=60)
        waits.append(PERF() - started)

    await asyncio.gather(*(one() for _ in range(SMALL_JOBS)))
    return waits


async def rounds(system: System, first_user: int, seconds: float) -> float:
    """Return the p95 of small users' waits, the median of some rounds."""
    found = []
    for user_id in range(first_user, first_user + ROUNDS):
        await asyncio.sleep(0.3)  # warm slots of the round before are gone
        found.append(percentile(await small_waits(system, user_id, seconds), 95))
    return statistics.median(found)


@pytest.mark.parametrize("count", [10_000, 100_000])
@pytest.mark.parametrize("seconds", [0.05, 0.2])
async def test_small_user_beside_large_maps(tmp_path, table, count, seconds):
    async with running_system(
        tmp_path, engine=FakeEngine(behaviour=takes, keep=False)
    ) as system:
        alone = await rounds(system, SMALL, seconds)
        maps = {
            user: await system.map([b"0.005"] * count, user_id=user, func=function(b"large"))
            for user in (LARGE, LARGER)
        }
        await asyncio.sleep(4.0)
        beside = await rounds(system, SMALL + ROUNDS, seconds)
        for user in maps:
            left = (await system.service.counts(user)).get("queued", 0)
            assert left > count / 20, "the large maps were over too early"
            await system.service.kill(user, None)
    table.add(
        f"fair share: p95 of 10 jobs of {seconds * 1000:.0f} ms beside 2 x {count:,}, over alone",
        beside / alone,
        2.0,
        "x",
        f"{beside * 1000:.0f} ms beside, {alone * 1000:.0f} ms alone",
    )
