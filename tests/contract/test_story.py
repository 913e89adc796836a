"""A job's story out of a real store, on SQLite and on PostgreSQL."""

import itertools
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from picloud_jupyter.protocol.errors import NotFound
from picloud_jupyter.protocol.jobs import RetryPolicy
from picloud_services.base.clock import SystemClock
from picloud_services.base.logs import AppendedLog, LineFormatter
from picloud_services.base.sql import Statement
from picloud_services.jobs.story import Stories
from tests.tools.fake_engine import Does
from tests.tools.job_system import USER, System, running_system
from tests.tools.postgresql_server import fresh_database, private_server

_names = itertools.count()
_FORGET = Statement("DELETE FROM results")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with private_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return ""
    return fresh_database(request.getfixturevalue("server"), f"story{next(_names)}")


@pytest.fixture
async def system(tmp_path, url) -> AsyncIterator[System]:
    """A service whose log is written where stories look for it."""
    log, handler = logging.getLogger("picloud_services"), AppendedLog(tmp_path / "service.log")
    handler.setFormatter(LineFormatter("control"))
    before = log.level
    log.setLevel(logging.INFO)  # which also forgets what loggers below it remember
    log.addHandler(handler)
    async with running_system(tmp_path, url=url) as found:
        yield found
    log.removeHandler(handler)
    log.setLevel(before)


def stories(system: System, tmp_path) -> Stories:
    why = system.service.whys.why
    return Stories(system.database, system.live, why, system.engine, tmp_path, SystemClock())


async def texts(system, tmp_path, jid, source="store"):
    story = await stories(system, tmp_path).story(USER, jid)
    return [step.text for step in story.steps if step.source == source]


async def test_story_of_each_attempt_that_was_asked_for(system, tmp_path):
    system.engine.behaviour = lambda chunk, _at, _argument: Does(
        "error" if chunk.attempt < 3 else "done"
    )
    jid = await system.call(retries=RetryPolicy(count=2))
    await system.join(jid)
    found = await texts(system, tmp_path, jid)
    assert [text[-11:] for text in found if text.startswith("given to")] == [
        "(attempt 1)",
        "(attempt 2)",
        "(attempt 3)",
    ]
    assert len([text for text in found if text.endswith("; it is run again")]) == 2
    assert found[-1] == "done"
    log = await texts(system, tmp_path, jid, "log")
    assert any("queued again, attempt 3: its attempt failed" in text for text in log)


async def test_story_of_an_attempt_that_ended_among_others_is_found_by_the_log(
    system, tmp_path
):
    system.engine.behaviour = lambda chunk, _at, argument: Does(
        "error" if argument == b"3" and chunk.attempt == 1 else "done"
    )
    jids = await system.map([b"%d" % n for n in range(8)], retries=RetryPolicy(count=1))
    await system.join(jids)
    story = await stories(system, tmp_path).story(USER, jids[0][0] + 3)
    attempts = [step.attempt for step in story.steps if step.text.startswith("given to")]
    assert attempts == [1, 2]
    assert story.not_known == ()
    (tmp_path / "service.log").unlink()
    story = await stories(system, tmp_path).story(USER, jids[0][0] + 3)
    told = [step.attempt for step in story.steps if step.text.startswith("given to")]
    assert told == [1, 2] or "attempt 1" in story.not_known[0]


async def test_story_when_results_were_removed_says_what_is_not_known(system, tmp_path):
    jid = await system.call()
    await system.join(jid)
    await system.database.write(lambda tx: tx.run(_FORGET))
    story = await stories(system, tmp_path).story(USER, jid)
    assert [step.text for step in story.steps if step.source == "store"] == [
        "submitted as a call",
        "done",
    ]
    assert "older than is kept" in story.not_known[0]


async def test_story_of_dependencies_and_of_what_still_waits(system, tmp_path):
    first = await system.call()
    await system.join(first)
    system.engine.behaviour = lambda *_: Does(seconds=60)
    slow = await system.call()
    met = await system.call(depends_on=((first, first),))
    waiting = await system.call(depends_on=((slow, slow),))
    assert f"waits for job {first}" in await texts(system, tmp_path, met)
    now = await texts(system, tmp_path, waiting, "now")
    assert now == [f"waiting for job {slow} to finish"]
    await system.service.kill(USER, None)
    story = await stories(system, tmp_path).story(USER, waiting)
    assert (story.reason, story.status) == ("killed", "killed")


async def test_story_of_somebody_else_s_job_is_unknown(system, tmp_path):
    jid = await system.call()
    await system.join(jid)
    with pytest.raises(NotFound):
        await stories(system, tmp_path).story(USER + 1, jid)
