"""What store managers have: asked in turn, and told to the core when it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Never

from services.common.clock import monotonic_s
from services.common.errors import BriskError
from services.common.log import get_logger
from services.scheduler.events import Event, StoreChanged, StoreLost, StoreReported
from services.scheduler.ports import Peer, Peers, StoreContents, Stores

log = get_logger(__name__)

ROUND_S: Final = 2.0  # between two questions to a store manager, in a small cluster
_ASKED_MAX: Final = 32  # at a time
_PER_S_MAX: Final = 200  # questions a second: a large cluster is asked more rarely


class StoreWatch:
    """Asks every store manager that is registered what it has."""

    def __init__(self, *, stores: Stores, peers: Peers, feed: Callable[[Event], None]) -> None:
        self._stores = stores
        self._peers = peers
        self._feed = feed
        self._known: dict[str, StoreContents] = {}  # by node
        self._asking = asyncio.Semaphore(_ASKED_MAX)

    async def run(self) -> Never:
        """Ask for ever. Cancelling ends it."""
        while True:
            peers = await self._registered()
            if peers is not None:
                self._forget_all_but({peer.node_id for peer in peers})
                await asyncio.gather(*(self._ask(peer) for peer in peers))
            await asyncio.sleep(max(ROUND_S, len(peers or ()) / _PER_S_MAX))

    async def _registered(self) -> tuple[Peer, ...] | None:
        try:
            return await self._peers.stores()
        except BriskError as error:
            log.debug("store managers cannot be listed", reason=error.reason)
            return None

    def _forget_all_but(self, present: set[str]) -> None:
        for node_id in [each for each in self._known if each not in present]:
            del self._known[node_id]
            self._feed(StoreLost(now_s=monotonic_s(), node_id=node_id))

    async def _ask(self, peer: Peer) -> None:
        async with self._asking:
            try:
                contents = await self._stores.contents(peer.address)
            except BriskError as error:  # the registry says when it is gone for good
                log.debug("store manager does not answer", node=peer.node_id, reason=error.reason)
                return
        before = self._known.get(peer.node_id)
        self._known[peer.node_id] = contents
        if before is None:
            self._feed(
                StoreReported(
                    now_s=monotonic_s(),
                    node_id=peer.node_id,
                    stored=contents.stored,
                    busy_s=contents.busy_s,
                )
            )
        elif before != contents or contents.busy_s > 0.0:
            self._feed(_difference(peer.node_id, before, contents))


def _difference(node_id: str, before: StoreContents, now: StoreContents) -> StoreChanged:
    was = set(before.stored)
    left = {each.ref for each in now.stored}
    return StoreChanged(
        now_s=monotonic_s(),
        node_id=node_id,
        stored=tuple(each for each in now.stored if each not in was),
        removed=tuple(each.ref for each in before.stored if each.ref not in left),
        busy_s=now.busy_s,
    )
