"""What the tests of this folder share."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.common.running_server import Running, run


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with run() as it:
        yield it
