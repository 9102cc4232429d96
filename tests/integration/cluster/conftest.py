"""Deployments that end with their test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from brisk_client import AsyncClient, NotFoundError

Deploy = Callable[..., Awaitable[str]]
_POLL_S = 0.02
_numbers: Iterator[int] = count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test here the time that processes take on a busy machine."""
    for item in items:
        if "integration/cluster" in item.nodeid:
            item.add_marker(pytest.mark.timeout(300), append=False)


@pytest.fixture
async def deploy(client: AsyncClient, folder_of: Callable[[str], Path]) -> AsyncIterator[Deploy]:
    """Return a function that deploys a tiny model under a name of its own and returns the name."""
    names: list[str] = []

    async def make(kind: str = "llama", **spec: float | None) -> str:
        name = f"{kind}-{next(_numbers)}"
        names.append(name)
        await client.deploy(name, source=folder_of(kind), **spec)  # type: ignore[arg-type]
        return name

    yield make
    for name in names:
        with suppress(NotFoundError):
            await client.delete(name)


async def until(holds: Callable[[], Awaitable[bool]], what: str, *, within_s: float = 20.0) -> None:
    """Return once `holds`; fail naming `what` if it does not in time."""
    try:
        async with asyncio.timeout(within_s):
            while not await holds():  # noqa: ASYNC110  (another process' state, no event)
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        pytest.fail(f"not within {within_s:g} s: {what}")


async def residents(client: AsyncClient, name: str) -> int:
    """Return how many instances of a deployment there are."""
    return sum(entry.deployment == name for entry in await client.instances())
