"""Jobs that wait for other jobs: whose cores come back, and when."""

import asyncio

from tests.tools.fake_engine import Does
from tests.tools.job_system import running_system


async def test_request_that_outlives_its_job_changes_nothing_for_the_next_in_its_slot(tmp_path):
    async with running_system(tmp_path, behaviour=lambda *_: Does(seconds=60)) as system:
        dispatcher = system.dispatcher
        first = await system.call()
        async with asyncio.timeout(20):
            while first not in system.live.running:
                await asyncio.sleep(0.005)
        left_over = dispatcher.blocked(first)
        left_over.__enter__()
        await system.service.kill(1000, [(first, first)])
        second = await system.call()
        held = dispatcher._cluster.lease_with(second)
        assert held is not None
        with dispatcher.blocked(second):
            assert (held.slot.blocked, held.slot.holding) == (1, False)
            left_over.__exit__(None, None, None)
            assert (held.slot.blocked, held.slot.holding) == (1, False)
        assert (held.slot.blocked, held.slot.holding) == (0, True)
