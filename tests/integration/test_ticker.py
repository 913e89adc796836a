import asyncio
import logging

import pytest

from picloud_services.base.ticker import Ticker


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_start_when_begun_then_steps_again_and_again():
    runs = []

    async def step() -> None:
        runs.append(1)

    ticker = Ticker("t", 0.002, step)
    ticker.start()
    ticker.start()
    await until(lambda: len(runs) >= 3)
    await ticker.stop()
    seen = len(runs)
    await asyncio.sleep(0.01)
    assert len(runs) == seen
    assert ticker.health.runs == seen
    assert ticker.health.last_ok_at > 0


async def test_step_when_it_raises_then_is_counted_logged_and_run_again(caplog):
    caplog.set_level(logging.INFO)
    fail = True

    async def step() -> None:
        if fail:
            raise OSError("no disk")

    ticker = Ticker("prune", 0.002, step)
    ticker.start()
    await until(lambda: ticker.health.failing >= 4)
    assert ticker.health.last_error == "OSError: no disk"
    fail = False
    await until(lambda: ticker.health.failing == 0)
    await ticker.stop()
    assert ticker.health.failures >= 4
    assert ticker.health.last_error_at > 0
    assert next(r.getMessage() for r in caplog.records) == "prune failed; it goes on"
    assert "works again" in caplog.records[-1].getMessage()


async def test_wake_when_the_pause_is_long_then_steps_now():
    ran = asyncio.Event()

    async def step() -> None:
        ran.set()

    ticker = Ticker("t", 3600, step)
    ticker.start()
    await asyncio.wait_for(ran.wait(), 5)
    ran.clear()
    ticker.wake()
    await asyncio.wait_for(ran.wait(), 5)
    await ticker.stop()


async def test_stop_when_a_step_hangs_then_it_is_cancelled():
    began = asyncio.Event()

    async def step() -> None:
        began.set()
        await asyncio.Event().wait()

    ticker = Ticker("t", 1, step)
    ticker.start()
    await asyncio.wait_for(began.wait(), 5)
    await asyncio.wait_for(ticker.stop(), 5)
    await ticker.stop()


def test_ticker_when_interval_is_not_positive_then_refused():
    with pytest.raises(ValueError, match="above 0"):
        Ticker("t", 0, asyncio.sleep)  # type: ignore[arg-type]


async def test_ticker_when_idle_then_it_rests_until_resumed():
    runs = []
    is_idle = True

    async def step():
        runs.append(asyncio.get_running_loop().time())

    ticker = Ticker("t", 0.02, step, jitter=0, idle=lambda: is_idle)
    ticker.start()
    await asyncio.sleep(0.1)
    assert len(runs) == 1
    resumed_at = asyncio.get_running_loop().time()
    ticker.resume()
    await until(lambda: len(runs) == 2)
    assert runs[1] - resumed_at >= 0.015, "an interval after it was resumed"
    ticker.wake()
    await until(lambda: len(runs) == 3)
    is_idle = False
    ticker.resume()
    await until(lambda: len(runs) >= 6)
    await ticker.stop()
