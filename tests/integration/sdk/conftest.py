"""A scripted router for each test."""

from collections.abc import AsyncIterator

import pytest
from brisk_client import AsyncClient

from tests.integration.sdk.scripted import ScriptedRouter, scripted_router


@pytest.fixture
async def router() -> AsyncIterator[ScriptedRouter]:
    async with scripted_router() as script:
        yield script


@pytest.fixture
async def client(router: ScriptedRouter) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(router.address, timeout_s=10.0) as made:
        yield made
