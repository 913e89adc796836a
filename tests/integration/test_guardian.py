import asyncio
import contextlib
import os
import signal
import sys

import pytest

from picloud_services.agent.guardian import Guardian, Other, read_agent_process
from picloud_services.base.ticker import Ticker
from tests.tools.running_agent import until

# Says who it is in the file argv[1], adds a line to argv[2], and stays; or ends at once with argv[3].
SCRIPT = """
import json, os, sys, time
start = int(open('/proc/self/stat').read().rpartition(')')[2].split()[19])
open(sys.argv[2], 'a').write(f'{os.getpid()} {os.getsid(0)}\\n')
if len(sys.argv) > 3: sys.exit(1)
open(sys.argv[1] + '.new', 'w').write(json.dumps({'pid': os.getpid(), 'start_time': start}))
os.rename(sys.argv[1] + '.new', sys.argv[1])
time.sleep(60)
"""


class Watched:
    def __init__(self, folder) -> None:
        self.record, self.starts = folder / "record", folder / "starts"
        self.intent, self.wanted = folder / "intent", True

    def other(self, *arguments: str) -> Other:
        command = (sys.executable, "-c", SCRIPT, str(self.record), str(self.starts), *arguments)
        log = self.record.with_name("log")
        return Other("other", command, {}, log, lambda: self.process() is not None)

    def process(self):
        return read_agent_process(self.record)

    def lines(self) -> list[str]:
        return self.starts.read_text().splitlines() if self.starts.exists() else []


@pytest.fixture
async def watched(tmp_path):
    watched = Watched(tmp_path)
    yield watched
    if process := watched.process():
        process.kill()


@contextlib.asynccontextmanager
async def watching(watched, other):
    guardian = Guardian(other, wanted=lambda: watched.wanted, intent=watched.intent)

    async def look() -> None:
        guardian.look()

    ticker = Ticker("guardian", 0.1, look)
    ticker.start()
    try:
        yield
    finally:
        assert ticker.health.failures == 0
        await ticker.stop()


async def looked_a_few_times() -> None:
    await asyncio.sleep(0.8)


async def test_look_when_the_other_is_killed_then_it_is_back_within_five_seconds(watched):
    async with watching(watched, watched.other()):
        await until(watched.process, 5)
        first = watched.process()
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: watched.process() not in (None, first), 5)
        pid, session = watched.lines()[-1].split()
        assert pid == session, "it ends with the session of who started it"


async def test_look_when_it_is_not_wanted_then_it_stays_down(watched):
    watched.wanted = False
    async with watching(watched, watched.other()):
        await looked_a_few_times()
        assert watched.lines() == []
        watched.wanted = True
        await until(watched.process, 5)


async def test_look_when_the_user_wants_the_service_down_then_it_stays_down(watched):
    watched.intent.touch()
    async with watching(watched, watched.other()):
        await looked_a_few_times()
        assert watched.lines() == []


async def test_look_when_it_lives_already_then_no_other_is_started(watched):
    async with watching(watched, watched.other()):
        await until(watched.process, 5)
    async with watching(watched, watched.other()):
        await looked_a_few_times()
    assert len(watched.lines()) == 1


async def test_look_when_it_crashes_over_and_over_then_it_is_started_less_and_less(watched):
    async with watching(watched, watched.other("crash")):
        await until(lambda: len(watched.lines()) == 4, 10)
        await looked_a_few_times()
        assert len(watched.lines()) <= 5  # the sixth start comes a second after the fifth
