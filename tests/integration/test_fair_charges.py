"""What a user's share is charged with: what was seen, whatever a runner says."""

import pytest

from picloud_services.dispatch import settling
from tests.tools.fake_engine import Does
from tests.tools.job_system import USER, running_system


@pytest.mark.parametrize("says_seconds", [0.0, 0.5, 3.0])
async def test_a_job_that_says_it_ran_shorter_than_it_was_seen_to_is_charged_for_what_was_seen(
    tmp_path, monkeypatch, says_seconds
):
    monkeypatch.setattr(settling, "WAY_SECONDS", 0.1)
    does = Does(seconds=0.5, says_seconds=says_seconds)
    async with running_system(tmp_path, behaviour=lambda *_: does) as system:
        jid = await system.call()
        await system.join(jid)
        dispatcher = system.dispatcher
        used = dispatcher._assigner.fair.used(USER, dispatcher._clock.steady_seconds())
    assert used >= max(0.35, 0.9 * says_seconds)
