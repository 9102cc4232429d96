"""The worker's instances: load them, unload them, let them serve, say how they are.

All state here is owned by the event loop; threads read, build, tokenize and decode.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, Coroutine, Mapping
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from services.common.errors import (
    AbortedError,
    BriskError,
    FailedPreconditionError,
    Reason,
    UnavailableError,
)
from services.common.log import get_logger
from services.common.model import ModelRef, StartProgress, Tokenized
from services.common.prompt import Prompt
from services.common.sampling import Sampling
from services.worker import metrics
from services.worker.admission import Admission
from services.worker.engine import shutting_down
from services.worker.ports import Engine, Loaded, LoadOrder, ModelStarter, Started
from services.worker.progress import ProgressFeed
from services.worker.residency import EpochFence, Ledger
from services.worker.sequences import Sequences
from services.worker.serving import Produced, Serving

log = get_logger(__name__)

Result = TypeVar("Result")

PROGRESS_PAUSE_S: Final = 0.05


@dataclass(slots=True, kw_only=True)
class Resident:
    """An instance on this worker, from its order to the last byte freed."""

    order: LoadOrder
    starting: asyncio.Task[Loaded] | None = None
    serving: Serving | None = None  # set when READY
    loaded: Loaded | None = None  # likewise
    serial_reason: str = ""  # likewise: why its sequences are decoded one at a time, if they are
    retiring: asyncio.Task[None] | None = None  # set when LEAVING


class Instances:
    """Everything a worker does, without the wire."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        engines: Mapping[str, Engine],
        starter: ModelStarter,
        text_executor: Executor,
        grammar_executor: Executor,
        waiting_max: int,
    ) -> None:
        """`engines` has one for each device of the ledger."""
        self.ledger = ledger
        self.changed = asyncio.Event()  # something that the leader should know at once
        self.is_draining = False
        self.residents: dict[str, Resident] = {}
        self._engines = engines
        self._starter = starter
        self._text_executor = text_executor
        self._grammar_executor = grammar_executor
        self._waiting_max = waiting_max
        self._fence = EpochFence()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def check(self, model: ModelRef) -> None:
        """Return if the model could be loaded. See `ModelStarter.check`."""
        self._refuse_if_draining()
        await self._starter.check(model)

    async def load(
        self, order: LoadOrder, leader_epoch: int
    ) -> AsyncGenerator[StartProgress | Loaded]:
        """Load a model; yield progress and, last, how it went. At once if it is here already.

        Closing the generator before the last item was taken undoes the load. Raises
        FailedPreconditionError (STALE_EPOCH, INSTANCE_BUSY), UnavailableError (SHUTTING_DOWN),
        and what `Ledger.reserve` and `ModelStarter.start` raise.
        """
        self._fence.check(leader_epoch)
        self._refuse_if_draining()
        here = self.residents.get(order.instance_id)
        if here is not None and here.loaded is not None and here.retiring is None:
            yield here.loaded
            return
        self.ledger.reserve(order.instance_id, order.device_id, order.memory_bytes)
        resident = self.residents[order.instance_id] = Resident(order=order)
        feed = ProgressFeed()
        resident.starting = self._spawn(self._start(resident, feed))
        self.changed.set()
        is_taken = False
        try:
            async with aclosing(feed.read(PROGRESS_PAUSE_S)) as updates:
                async for progress in updates:
                    yield progress
            yield await asyncio.shield(resident.starting)
            is_taken = True
        finally:
            if not is_taken:
                await self._undo(resident)

    async def unload(self, instance_id: str, leader_epoch: int, *, only_if_idle: bool) -> None:
        """Remove an instance and return when its memory is free; an unknown one is fine.

        Cancelling does not bring it back. Raises FailedPreconditionError (STALE_EPOCH, and
        INSTANCE_BUSY if `only_if_idle` and it has sequences).
        """
        self._fence.check(leader_epoch)
        resident = self.residents.get(instance_id)
        if resident is None:
            return
        serving = resident.serving
        if only_if_idle and resident.retiring is None and serving is not None:
            busy = serving.sequences.running + serving.sequences.waiting
            if busy:
                raise FailedPreconditionError(
                    f"the instance has {busy} sequences", reason=Reason.INSTANCE_BUSY
                )
        await self._undo(resident)

    async def generate(
        self,
        instance_id: str,
        request_id: str,
        prompt: Prompt,
        sampling: Sampling,
        delivered: tuple[int, ...] = (),
    ) -> AsyncGenerator[Produced]:
        """Yield the continuation of a prompt. See `Serving.generate`.

        Raises besides FailedPreconditionError (INSTANCE_GONE): nothing was done.
        """
        serving = self._ready(instance_id)
        stream = serving.generate(
            request_id,
            prompt,
            sampling,
            delivered=delivered,
            refuse_if_gone=lambda: self._refuse_if_gone(instance_id),
        )
        async with aclosing(stream) as produced:
            async for each in produced:
                yield each

    async def tokenize(self, instance_id: str, prompt: Prompt) -> Tokenized:
        """Return a prompt's tokens. Raises InvalidArgumentError.

        Raises besides FailedPreconditionError (INSTANCE_GONE).
        """
        return await self._ready(instance_id).tokenize(prompt)

    async def drain(self, finish_within_s: float) -> None:
        """Take nothing new, give up loads, and let sequences run for `finish_within_s`."""
        self.is_draining = True
        self.changed.set()
        for resident in self.residents.values():
            if resident.starting is not None:
                resident.starting.cancel()
        self._spawn(self._cut_off(finish_within_s))

    def give_up(self, device_id: str) -> None:
        """Tell all sequences of a device that does not answer any more to go on elsewhere."""
        self.is_draining = True
        for resident in self.residents.values():
            if resident.order.device_id == device_id and resident.serving is not None:
                resident.serving.sequences.abort_all(_lost())

    async def close(self) -> None:
        """End whatever still runs. For the very end, when no caller is left."""
        self.is_draining = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(self, resident: Resident, feed: ProgressFeed) -> Loaded:
        """Own a load: whatever happens, the books are right afterwards."""
        order = resident.order
        instance_id = order.instance_id
        outcome = "cancelled"
        seconds: dict[str, float] = {}
        log.info("loading", instance=instance_id, model=order.model.name, device=order.device_id)
        try:
            resize = partial(self.ledger.resize, instance_id)
            started = await self._starter.start(order, feed.post, resize)
            outcome = "ready"
            phases = started.loaded.report.phases
            seconds = {f"{phase.phase.value}_s": phase.duration_s for phase in phases}
            return self._settle(resident, started)
        except BaseException as error:
            if isinstance(error, Exception):
                outcome = "failed"
            # Frames of the traceback hold the buffers: free them before the books say so.
            traceback.clear_frames(error.__traceback__)
            del self.residents[instance_id]
            self.ledger.free(instance_id)
            if isinstance(error, asyncio.CancelledError):
                raise self._given_up() from None
            raise
        finally:
            log.info("load ended", instance=instance_id, outcome=outcome, **seconds)
            metrics.LOADS.labels(outcome).inc()
            feed.close()
            self.changed.set()

    def _settle(self, resident: Resident, started: Started) -> Loaded:
        """Make a started model READY; nothing is awaited, so nobody sees half of it."""
        order = resident.order
        engine = self._engines[order.device_id]
        engine.load(order.instance_id, started.decoder)
        admission = Admission(
            slots=order.slots,
            kv_bytes=started.limits.kv_bytes,
            waiting_max=self._waiting_max,
            shares_memory=started.limits.block_tokens > 0,
        )
        sequences = Sequences(engine, admission, slots=order.slots, changed=self.changed.set)
        resident.serving = Serving(
            order.instance_id,
            sequences=sequences,
            codec=started.codec,
            limits=started.limits,
            eos_token_ids=started.eos_token_ids,
            executor=self._text_executor,
            grammar_executor=self._grammar_executor,
        )
        resident.loaded = started.loaded
        resident.serial_reason = started.serial_reason
        self.ledger.ready(order.instance_id)
        return started.loaded

    async def _undo(self, resident: Resident) -> None:
        """Remove an instance in whatever state it is; return when its memory is free.

        Cancelling leaves the removal running.
        """
        if resident.serving is None and resident.starting is not None:
            resident.starting.cancel()
            await asyncio.wait((resident.starting,))
            resident.starting.exception()  # seen: whoever waits for it was told
            if resident.serving is None:
                return
        if resident.retiring is None:
            self.ledger.leaving(resident.order.instance_id)
            resident.retiring = self._spawn(self._retire(resident))
            self.changed.set()
        await asyncio.shield(resident.retiring)

    async def _retire(self, resident: Resident) -> None:
        """Own a removal: wait for the sequences, then for the memory."""
        order, serving = resident.order, resident.serving
        if serving is None:
            raise RuntimeError(f"{order.instance_id} leaves without having been ready")
        await serving.sequences.wait_idle()
        serving.sequences.audit()
        is_free = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._engines[order.device_id].unload(order.instance_id, partial(_post, loop, is_free))
        await is_free.wait()
        del self.residents[order.instance_id]
        self.ledger.free(order.instance_id)
        log.info("unloaded", instance=order.instance_id)
        self.changed.set()

    async def _cut_off(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        for resident in self.residents.values():
            if resident.serving is not None:
                resident.serving.sequences.abort_all(shutting_down())

    def _ready(self, instance_id: str) -> Serving:
        """Return what serves on an instance. Raises unless it is READY."""
        self._refuse_if_draining()
        resident = self.residents.get(instance_id)
        if resident is None or resident.serving is None or resident.retiring is not None:
            raise FailedPreconditionError(
                "the instance is not ready here", reason=Reason.INSTANCE_GONE
            )
        return resident.serving

    def _refuse_if_gone(self, instance_id: str) -> None:
        self._ready(instance_id)

    def _refuse_if_draining(self) -> None:
        if self.is_draining:
            raise shutting_down()

    def _given_up(self) -> BriskError:
        if self.is_draining:
            return shutting_down()
        return AbortedError("the load was given up", reason=Reason.CANCELLED)

    def _spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Start a task that outlives the call that caused it; `close` ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _lost() -> UnavailableError:
    return UnavailableError("the device does not answer", reason=Reason.WORKER_LOST)


def _post(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set an event of the loop from another thread."""
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(event.set)
