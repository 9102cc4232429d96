"""One leadership at work: feeds the core, does what it wants done, reports how that went.

The core's state has one owner, this object, and `feed` is a plain call, so events never overlap.
Whatever takes time is a task of the reign's group: it ends with the reign.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from contextvars import Context
from typing import Any, Final, Never

from services.common.clock import monotonic_s
from services.common.errors import BriskError, InvalidArgumentError
from services.common.log import get_logger
from services.common.model import StartProgress
from services.common.placement import WorkerState
from services.scheduler import actions, events, journal
from services.scheduler.core import decide, new_state
from services.scheduler.deployment import Deployment
from services.scheduler.estimates import Priors
from services.scheduler.explanations import Explanations
from services.scheduler.orders import Orders
from services.scheduler.ports import Peer, Peers, Stores, Workers
from services.scheduler.state import Limits, State
from services.scheduler.stores import StoreWatch
from services.scheduler.streams import Mailbox, RouteBoard, RouteChange

log = get_logger(__name__)

_EXPORT_S: Final = 1.0
_QUESTIONS_MAX: Final = 64  # workers asked at a time


class Reign:
    """What the leader of one epoch knows and does."""

    def __init__(
        self,
        *,
        epoch: int,
        term: int,
        workers: Workers,
        stores: Stores,
        peers: Peers,
        limits: Limits,
        priors: Priors,
        watchers_max: int,
        why_over: Callable[[], BriskError],
    ) -> None:
        self.epoch = epoch
        now_s = monotonic_s()
        journal.begin(epoch=epoch, term=term, now_s=now_s, limits=limits, priors=priors)
        self.state: State = new_state(
            epoch=epoch, term=term, now_s=now_s, limits=limits, priors=priors
        )
        self.explanations = Explanations()
        self._board = RouteBoard(watchers_max)
        self._orders = Orders(
            epoch=epoch,
            workers=workers,
            spawn=self.spawn,
            feed=self.feed,
            deposed=self.depose,
        )
        self._peers = peers
        self._store_watch = StoreWatch(stores=stores, peers=peers, feed=self.feed)
        self._why_over = why_over
        self._mailboxes: dict[str, Mailbox] = {}
        self._registered: dict[str, Peer] = {}
        self._questions = asyncio.Semaphore(_QUESTIONS_MAX)
        self._timer: asyncio.TimerHandle | None = None
        self._group = asyncio.TaskGroup()
        self._is_over = False
        self._deposed = asyncio.Event()
        self._broken = asyncio.Event()

    # --- its life ---

    async def run(self, deployments: Iterable[Deployment], opened: Callable[[], None]) -> Never:
        """Lead until cancelled; `opened` is called when callers may come.

        Callers are sent away early if a worker or Redis says that there is a newer leader. Raises
        if a decision failed: what the core knows cannot be trusted any more.
        """
        try:
            async with self._group:
                for deployment in deployments:
                    put = events.DeploymentPut(now_s=monotonic_s(), deployment=deployment)
                    self.feed(put, is_beginning=True)
                    await asyncio.sleep(0)  # there may be very many, and a lease to renew
                self.spawn(self._follow_workers())
                self.spawn(self._store_watch.run())
                self.spawn(self._export())
                self.spawn(self._fail_if_broken())
                opened()
                await self._deposed.wait()
                self._close()
                await asyncio.Event().wait()
        finally:
            self._close()
        raise AssertionError("unreachable")

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do `work` until it is done or the reign is over."""
        return self._group.create_task(work)

    def depose(self) -> None:
        """Stop leading: somebody knows a newer leader. The lease will say so in a moment."""
        self._deposed.set()

    def check(self) -> None:
        """Raise what callers hear when the reign is over, if it is."""
        if self._is_over:
            raise self._why_over()

    # --- what callers may do ---

    def feed(self, event: events.Event, *, is_beginning: bool = False) -> None:
        """Let the core decide about `event` and do what it wants. Nothing once it is over."""
        if self._is_over:
            return
        began_s = monotonic_s()
        is_decided = False
        try:
            self.state, done = decide(self.state, event)
            is_decided = True
        finally:
            if not is_decided:
                self._broken.set()
        took_s = monotonic_s() - began_s
        journal.write(self.epoch, event, done, took_s, is_beginning=is_beginning)
        self.explanations.note(event.now_s, done)
        for action in done:
            self._do(action)

    async def acquire(
        self,
        request_id: str,
        deployment: str,
        excluded: frozenset[str],
        within_s: float = math.inf,
    ) -> AsyncGenerator[StartProgress | actions.Grant]:
        """Yield progress, then the grant; `within_s` says how urgent it is.

        Closing it before it has ended gives up the place.

        Raises BriskError: the refusal.
        """
        self.check()
        if request_id in self._mailboxes:
            raise InvalidArgumentError("request_id must be unique among open calls")
        mailbox = self._mailboxes[request_id] = Mailbox()
        is_settled = False
        try:
            now_s = monotonic_s()
            self.feed(
                events.AcquireRequested(
                    now_s=now_s,
                    request_id=request_id,
                    deployment=deployment,
                    excluded=excluded,
                    deadline_s=now_s + within_s,
                )
            )
            while not is_settled:
                told = await mailbox.next()
                yield told
                is_settled = isinstance(told, actions.Grant)
        except BriskError:
            is_settled = True
            raise
        finally:
            del self._mailboxes[request_id]
            if not is_settled:
                self.feed(events.AcquireCancelled(now_s=monotonic_s(), request_id=request_id))

    def release(self, request_id: str) -> None:
        """Take a grant back."""
        self.check()
        self.feed(events.Released(now_s=monotonic_s(), request_id=request_id))

    def report(self, worker: WorkerState) -> None:
        """Take a worker's report in."""
        self.check()
        self.feed(events.WorkerReported(now_s=monotonic_s(), worker=worker))

    def hear_demand(self, router_id: str, lines: tuple[events.Line, ...]) -> None:
        """Take in how many requests wait in a router's lines."""
        self.check()
        self.feed(events.DemandReported(now_s=monotonic_s(), router_id=router_id, lines=lines))

    async def watch_routes(self) -> AsyncGenerator[RouteChange]:
        """Yield all routes, then each change, until the reign is over or it is closed."""
        self.check()
        async with aclosing(self._board.watch()) as changes:
            async for change in changes:
                yield change

    # --- what the core wants ---

    def _do(self, action: actions.Action) -> None:
        match action:
            case actions.StartLoad():
                mailbox = self._mailboxes.get(action.request_id)  # none: nobody waits for it
                self._orders.load(action, None if mailbox is None else mailbox.request_id)
            case actions.CancelLoad():
                self._orders.cancel_load(action.instance_id)
            case actions.StartUnload():
                self._orders.unload(action)
            case actions.TellProgress():
                for request_id in action.request_ids:
                    self._mailboxes[request_id].tell(action.progress)
            case actions.Grant():
                self._mailboxes[action.request_id].settle(action)
            case actions.Refuse():
                self._mailboxes[action.request_id].settle(action.error)
            case actions.RouteUp():
                self._board.up(action.route)
            case actions.RouteDown():
                self._board.down(action.instance_id)
            case actions.WakeAt():
                self._wake_at(action.at_s)
            case actions.Explain() | actions.Outcome():
                pass  # they are for people: see `explanations` and `journal`

    def _wake_at(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.0, at_s - monotonic_s())
        # In a context of its own: what is due belongs to no request.
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick, context=Context())

    def _tick(self) -> None:
        self.feed(events.Tick(now_s=monotonic_s()))

    def _close(self) -> None:
        """Answer everyone who waits; nothing is decided any more."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._board.close()
        for mailbox in self._mailboxes.values():
            mailbox.settle(self._why_over())

    # --- what goes on by itself ---

    async def _follow_workers(self) -> None:
        """Ask workers that come how they are, and workers that go whether they are there."""
        async with aclosing(self._peers.watch_workers()) as sets:
            async for peers in sets:
                now = {peer.service_id: peer for peer in peers}
                come = [peer for key, peer in now.items() if key not in self._registered]
                gone = [peer for key, peer in self._registered.items() if key not in now]
                self._registered = now
                self.spawn(self._ask_all(come, gone))

    async def _ask_all(self, come: list[Peer], gone: list[Peer]) -> None:
        known = [peer for peer in gone if peer.service_id in self.state.workers]
        await asyncio.gather(*(self._ask(peer) for peer in (*come, *known)))
        if come and self.state.workers:
            self.feed(events.WorkersLearned(now_s=monotonic_s()))

    async def _ask(self, peer: Peer) -> None:
        async with self._questions:
            await self._orders.ask(peer.service_id, peer.address)

    async def _export(self) -> None:
        while True:
            journal.export(self.state)
            await asyncio.sleep(_EXPORT_S)

    async def _fail_if_broken(self) -> None:
        await self._broken.wait()
        raise RuntimeError("a decision failed; the log has its traceback")
