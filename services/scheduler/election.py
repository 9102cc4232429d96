"""Who leads: this scheduler as long as it holds the lease, else another, whom callers are told.

The lease is given up 4 s after its last renewal, before anyone else can have it; the reign ends
with it. A scheduler that stands by keeps a copy of the deployments, in case Redis loses them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from services.common.clock import monotonic_s
from services.common.errors import BriskError, Reason, UnavailableError
from services.common.leader import LeaderLocator
from services.common.lease import LeaderIdentity, LeaderLease
from services.common.log import get_logger
from services.scheduler import metrics
from services.scheduler.deployments import Deployments
from services.scheduler.shell import Reign

log = get_logger(__name__)

RETRY_AFTER_S: Final = 1.0
_FOLLOW_S: Final = 1.0
_READ_PAUSE_S: Final = 0.5
_LOCATED_S_MAX: Final = 1.0  # how long we tell callers the same leader without looking

MakeReign = Callable[[int, int, Callable[[], BriskError]], Reign]  # epoch, term, why it is over


class Election:
    """One candidate, from its start to its end."""

    def __init__(
        self,
        *,
        lease: LeaderLease,
        locator: LeaderLocator,
        identity: LeaderIdentity,
        deployments: Deployments,
        make_reign: MakeReign,
    ) -> None:
        self._lease = lease
        self._locator = locator
        self._identity = identity
        self._deployments = deployments
        self._make_reign = make_reign
        self._reign: Reign | None = None
        self._standing: asyncio.Task[None] | None = None
        self._is_leaving = False
        self._located_s = -_LOCATED_S_MAX
        self._last_epoch, self._term = 0, 0

    async def run(self) -> None:
        """Stand by and lead, for ever. Raises what a reign raises. Cancelling frees the lease."""
        self._standing = asyncio.ensure_future(self._lease.run(self._lead))
        following = asyncio.ensure_future(self._follow())
        try:
            await asyncio.wait((self._standing, following), return_when=asyncio.FIRST_COMPLETED)
            if not self._is_leaving:
                (following if following.done() else self._standing).result()
            await asyncio.Event().wait()  # the drain goes on without us
        finally:
            self._standing.cancel()
            following.cancel()
            await asyncio.gather(self._standing, following, return_exceptions=True)

    async def step_down(self) -> None:
        """Stop leading and give the lease back, so that another need not wait for its end."""
        self._is_leaving = True
        if self._standing is not None:
            self._standing.cancel()
            await asyncio.wait((self._standing,))

    async def leader(self) -> Reign:
        """Return the reign. Raises UnavailableError (NOT_LEADER, SHUTTING_DOWN) if not ours."""
        reign = self._reign
        if reign is not None and self._lease.epoch == reign.epoch:
            reign.check()
            return reign
        if self._is_leaving:
            raise self._why_over()
        raise _not_leader(await self._other_leader())

    async def _lead(self, epoch: int) -> None:
        await self._load(epoch)
        # A lease that is won back before it has expired keeps its epoch.
        self._term = self._term + 1 if epoch == self._last_epoch else 0
        self._last_epoch = epoch
        reign = self._make_reign(epoch, self._term, self._why_over)

        def opened() -> None:
            self._reign = reign
            metrics.IS_LEADER.set(1)
            metrics.EPOCH.set(epoch)

        try:
            await reign.run(tuple(self._deployments.known.values()), opened)
        finally:
            self._reign = None
            metrics.IS_LEADER.set(0)
            metrics.EPOCH.set(0)

    async def _load(self, epoch: int) -> None:
        """Read the deployments, however long Redis takes; the lease ends this if it must."""
        while True:
            try:
                await self._deployments.load(epoch)
            except BriskError as error:
                log.warning("deployments cannot be read", reason=error.reason, epoch=epoch)
                await asyncio.sleep(_READ_PAUSE_S)
            else:
                log.info("deployments read", count=len(self._deployments.known), epoch=epoch)
                return

    async def _follow(self) -> None:
        """Keep a copy of the deployments while someone else leads."""
        while True:
            await asyncio.sleep(_FOLLOW_S)
            if self._lease.epoch is None:
                try:
                    await self._deployments.follow()
                except UnavailableError as error:
                    log.debug("deployments cannot be followed", reason=error.reason)

    async def _other_leader(self) -> str | None:
        """Return where the leader is, as far as known; not us, who are only about to lead."""
        now_s = monotonic_s()
        if now_s - self._located_s >= _LOCATED_S_MAX:
            self._located_s = now_s
            self._locator.invalidate()
        try:
            leader = await self._locator.locate()
        except UnavailableError:
            return None
        return None if leader == self._identity else leader.address

    def _why_over(self) -> BriskError:
        if self._is_leaving:
            return UnavailableError(
                "the scheduler is shutting down",
                reason=Reason.SHUTTING_DOWN,
                retry_after_s=RETRY_AFTER_S,
            )
        return _not_leader(None)


def _not_leader(address: str | None) -> UnavailableError:
    return UnavailableError(
        "this scheduler does not lead",
        reason=Reason.NOT_LEADER,
        retry_after_s=RETRY_AFTER_S,
        metadata={"leader_address": address} if address else None,
    )
