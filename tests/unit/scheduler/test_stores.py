"""Store managers are asked in turn; the core hears of what has changed, and of those that go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.common.errors import UnavailableError
from services.scheduler import stores
from services.scheduler.events import Event, StoreChanged, StoreLost, StoreReported
from services.scheduler.residency import Stored
from services.scheduler.stores import StoreWatch
from tests.unit.scheduler.doubles import Registered, TwoStores, model, until


@asynccontextmanager
async def watching(
    held: TwoStores, peers: Registered, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[Event]]:
    monkeypatch.setattr(stores, "ROUND_S", 0.001)
    heard: list[Event] = []
    watch = StoreWatch(stores=held, peers=peers, feed=heard.append)
    running = asyncio.ensure_future(watch.run())
    try:
        yield heard
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_each_tells_all_once_and_then_what_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, peers = TwoStores(), Registered()
    one, two = model("one"), model("two")
    held.held["n1:1"] = [one]
    async with watching(held, peers, monkeypatch) as heard:
        await until(lambda: len(heard) == 2)
        assert {each.node_id for each in heard if isinstance(each, StoreReported)} == {"n1", "n2"}
        first = next(each for each in heard if getattr(each, "node_id", "") == "n1")
        assert isinstance(first, StoreReported)
        assert first.stored == (Stored(one.ref),)
        held.held["n1:1"] = [two]
        await until(lambda: len(heard) == 3)
        changed = heard[2]
        assert isinstance(changed, StoreChanged)
        assert changed.stored == (Stored(two.ref),)
        assert changed.removed == (one.ref,)


async def test_one_that_does_not_answer_keeps_what_it_told_and_stops_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, peers = TwoStores(), Registered()
    held.contents_errors["n1:1"] = UnavailableError("away")
    peers.error = UnavailableError("no registry")
    async with watching(held, peers, monkeypatch) as heard:
        await asyncio.sleep(0.01)
        assert heard == []
        peers.error = None
        await until(lambda: heard)
        assert [getattr(each, "node_id", "") for each in heard] == ["n2"]
        del held.contents_errors["n1:1"]
        await until(lambda: len(heard) == 2)


async def test_one_that_is_registered_no_more_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    held, peers = TwoStores(), Registered()
    async with watching(held, peers, monkeypatch) as heard:
        await until(lambda: len(heard) == 2)
        peers.nodes = peers.nodes[:1]
        await until(lambda: len(heard) == 3)
        lost = heard[2]
        assert isinstance(lost, StoreLost)
        assert lost.node_id == "n2"
