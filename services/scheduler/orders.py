"""Orders to workers that are under way, and what becomes of them as events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from services.common.clock import monotonic_s
from services.common.errors import (
    BriskError,
    DeadlineError,
    FailedPreconditionError,
    Reason,
    UnavailableError,
)
from services.common.log import bind_request_id, get_logger
from services.common.model import StartProgress
from services.common.names import RequestId
from services.scheduler.actions import StartLoad, StartUnload
from services.scheduler.events import (
    Event,
    LoadFailed,
    LoadProgressed,
    LoadSucceeded,
    UnloadFailed,
    UnloadRefused,
    UnloadSucceeded,
    WorkerLost,
    WorkerReported,
)
from services.scheduler.ports import Workers

log = get_logger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Orders:
    """Each order is a task of the reign, so it ends with it; a load that ends so is undone."""

    def __init__(
        self,
        *,
        epoch: int,
        workers: Workers,
        spawn: Spawn,
        feed: Callable[[Event], None],
        deposed: Callable[[], None],
    ) -> None:
        self._epoch = epoch
        self._workers = workers
        self._spawn = spawn
        self._feed = feed
        self._deposed = deposed
        self._loads: dict[str, asyncio.Task[None]] = {}

    def load(self, order: StartLoad, request_id: RequestId | None) -> None:
        """Begin a load; LoadProgressed, LoadSucceeded and LoadFailed tell how it goes.

        `request_id` is in its log lines, here and at the worker.
        """
        self._loads[order.instance_id] = self._spawn(self._load(order, request_id))

    def cancel_load(self, instance_id: str) -> None:
        """Stop a load, if it is under way. It tells nothing more."""
        if (task := self._loads.get(instance_id)) is not None:
            task.cancel()

    def unload(self, order: StartUnload) -> None:
        """Begin an unload; UnloadSucceeded, UnloadRefused or UnloadFailed tells how it went."""
        self._spawn(self._unload(order))

    async def ask(self, worker_id: str, address: str) -> None:
        """Ask a worker how it is; one that nobody can reach is lost.

        One that is merely slow may be busy: if it is hung, its silence will tell.
        """
        try:
            state = await self._workers.describe(address)
        except UnavailableError:
            log.warning("worker cannot be reached", worker=worker_id)
            self._feed(WorkerLost(now_s=monotonic_s(), worker_id=worker_id))
        except BriskError as error:
            log.warning("worker does not answer", worker=worker_id, reason=error.reason)
        else:
            self._feed(WorkerReported(now_s=monotonic_s(), worker=state))

    async def _load(self, order: StartLoad, request_id: RequestId | None) -> None:
        instance_id = order.instance_id
        if request_id is not None:
            bind_request_id(request_id)
        try:
            async with aclosing(self._workers.load(order, self._epoch)) as told:
                async for each in told:
                    if isinstance(each, StartProgress):
                        self._feed(
                            LoadProgressed(
                                now_s=monotonic_s(), instance_id=instance_id, progress=each
                            )
                        )
                    else:
                        self._feed(
                            LoadSucceeded(now_s=monotonic_s(), instance_id=instance_id, start=each)
                        )
                        return
            raise UnavailableError("the worker ended the load without a result")
        except BriskError as error:
            await self._look_into(error, order.worker_id, order.address)
            self._feed(LoadFailed(now_s=monotonic_s(), instance_id=instance_id, error=error))
        finally:
            del self._loads[instance_id]

    async def _unload(self, order: StartUnload) -> None:
        instance_id = order.instance_id
        if (load := self._loads.get(instance_id)) is not None:
            await asyncio.wait((load,))  # it was cancelled; the worker should hear that first
        try:
            await self._workers.unload(order, self._epoch)
        except FailedPreconditionError as error:
            if error.reason == Reason.INSTANCE_BUSY:
                self._feed(UnloadRefused(now_s=monotonic_s(), instance_id=instance_id))
            else:
                await self._unload_failed(order, error)
        except BriskError as error:
            await self._unload_failed(order, error)
        else:
            self._feed(UnloadSucceeded(now_s=monotonic_s(), instance_id=instance_id))

    async def _unload_failed(self, order: StartUnload, error: BriskError) -> None:
        await self._look_into(error, order.worker_id, order.address)
        self._feed(UnloadFailed(now_s=monotonic_s(), instance_id=order.instance_id, error=error))

    async def _look_into(self, error: BriskError, worker_id: str, address: str) -> None:
        """Learn more from a failure than that one order failed."""
        if error.reason == Reason.STALE_EPOCH:
            log.warning("a worker knows a newer leader", worker=worker_id, epoch=self._epoch)
            self._deposed()
        elif isinstance(error, UnavailableError | DeadlineError):
            await self.ask(worker_id, address)
