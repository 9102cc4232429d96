"""A running store manager with a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.broken_models import good_folder
from tests.integration.storemgr.nodes import Node, Stub, running, stub_of


@pytest.fixture
def node(tmp_path: Path, redis_url: str) -> Iterator[Node]:
    """Run a store manager on an empty folder."""
    with running(Node(tmp_path / "data", redis_url)) as node:
        yield node


@pytest_asyncio.fixture
async def stub(node: Node) -> AsyncIterator[Stub]:
    """Give a client of the store manager."""
    async with stub_of(node) as stub:
        yield stub


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Return a folder that can be imported."""
    return good_folder(tmp_path / "good")
