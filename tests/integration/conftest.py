"""A gateway of the test's own, and a client of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.tools.gateway_harness import GatewayUnderTest, Peer, connected, serving


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with serving(tmp_path) as started:
        yield started


@pytest.fixture
async def peer(gateway: GatewayUnderTest) -> AsyncIterator[Peer]:
    async with connected(gateway.api) as opened:
        yield opened
