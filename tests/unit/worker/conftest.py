"""What the tests of this folder share."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.worker.engine import DeviceEngine
from tests.unit.worker.instances_house import House


@pytest.fixture
async def house() -> AsyncIterator[House]:
    engine = DeviceEngine("cpu:0")
    engine.start()
    with ThreadPoolExecutor(1) as executor:
        house = House(executor, engine)
        yield house
        await house.instances.close()
        for decoder in house.starter.decoders:
            decoder.allowed.release(1_000_000)
        assert await asyncio.to_thread(engine.close, 10)
