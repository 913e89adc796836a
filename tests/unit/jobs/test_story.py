"""A story of a job that ends while it is read."""

from types import SimpleNamespace
from typing import Any

from picloud_jupyter.protocol.jobs import Status
from picloud_services.base.clock import SystemClock
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.story import Stories
from picloud_services.jobs.story_facts import StoryFacts


def facts(status: str, finished_at: float | None) -> StoryFacts:
    return StoryFacts(
        *(7, 1000, status, None, "", 1, 10.0, finished_at, "f", None, 3, True, 0, 2, None),
        kill_wished=False,
        retry_at=None,
    )


async def test_story_when_the_job_ends_while_the_logs_are_read_then_that_is_told(tmp_path):
    known = [facts("queued", None), facts("done", 11.0)]

    class Store:  # the part of a store that is used
        async def read(self, _work: object) -> StoryFacts:
            return known.pop(0)

    store: Any = Store()
    live: Any = LiveJobs()
    live.status = lambda _jid: Status.DONE  # its map still runs
    outputs: Any = SimpleNamespace()
    stories = Stories(store, live, lambda _jid: "", outputs, tmp_path, SystemClock())
    story = await stories.story(1000, 7)
    assert (story.status, story.summary) == ("done", "The function returned.")
    assert story.steps[-1].text == "done"
