"""One cold start: lease the files, read them, build the model around them.

The model is built and its tokenizer made while the bytes are still being read, so that INIT is
only what remains after LOAD. Whatever ends a start early, an error or its caller, ends the read
within one chunk; the start is over when nothing of it runs any more.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import brisk_native
from brisk_native.model import build_skeleton

from services.common.clock import monotonic_s
from services.common.errors import Reason, ResourceExhaustedError, UnavailableError
from services.common.log import get_logger
from services.common.model import (
    ModelInfo,
    ModelRef,
    PhaseDuration,
    StartPhase,
    StartProgress,
    StartReport,
    Tier,
)
from services.worker import metrics
from services.worker.checkpoint import refusals, require_manifest
from services.worker.decoder import DecoderFacts, Decoders, decoder_facts
from services.worker.packed import PackedDecoder
from services.worker.plan import TokenLimits
from services.worker.ports import Lease, Loaded, LoadOrder, ModelStore, OnBytes, Started
from services.worker.serial import SerialDecoder
from services.worker.tokenizer import Tokenizer, load_tokenizer
from services.worker.weights import Buffers, LoadedModel, WeightLoad, map_weights

log = get_logger(__name__)

Result = TypeVar("Result")
Other = TypeVar("Other")
Progress: TypeAlias = Callable[[StartProgress], None]
Resize: TypeAlias = Callable[[int], None]


class Starter:
    """A ModelStarter: starts models from the node's store on an executor's threads."""

    def __init__(
        self,
        store: ModelStore,
        executor: Executor,
        pool: brisk_native.Pool | None = None,
        *,
        decoders: Decoders | None = None,
    ) -> None:
        """Weights that are not in the node's memory go to `pool` as far as they fit."""
        self._store = store
        self._executor = executor
        self._pool = pool
        self._maps = True  # until it turns out that we cannot get at the node's memory
        self._decoders = decoders or Decoders()

    async def check(self, model: ModelRef) -> None:
        """Return if the model could be started, without reading its weights.

        Raises what `start` raises before it reads.
        """
        async with self._store.lease(model) as lease:
            await self._run(lambda: _check(lease.folder, lease.weight_files))

    async def start(self, order: LoadOrder, progress: Progress, resize: Resize) -> Started:
        """Start a model. Cancelling ends it and frees all it took before it returns.

        `resize` is as ports.ModelStarter has it.

        Raises NotFoundError, UnavailableError, InvalidArgumentError (INVALID_MODEL),
        ResourceExhaustedError (INSUFFICIENT_MEMORY), DataLossError.
        """
        clock = _Phases()
        progress(StartProgress(phase=StartPhase.FETCH))
        async with self._store.lease(order.model, maps=self._maps) as lease:
            _refuse_if_too_small(order, lease.info)
            clock.end(StartPhase.FETCH)
            reserve = _on_loop(partial(_reserve, order, lease.info, resize))
            loaded, tokenizer = await self._load(lease, clock, progress, reserve)
            facts = await self._run(lambda: decoder_facts(loaded.model, lease.folder))
            kv_bytes = order.memory_bytes - lease.info.weight_bytes
            decoder = await self._run(lambda: self._decoders.make(loaded.model, kv_bytes))
            _tell(decoder, lease.info)
            clock.end(StartPhase.INIT)
        _count(loaded.report)
        brought = loaded.report.mapped_bytes if lease.tier is not Tier.DRAM else 0
        report = StartReport(cold=True, source=lease.tier, phases=clock.durations())
        return Started(
            decoder=decoder,
            codec=tokenizer,
            limits=_limits(order, lease.info, facts, decoder),
            eos_token_ids=_eos_token_ids(facts, tokenizer),
            loaded=Loaded(report=report, bytes_read=loaded.report.bytes_read + brought),
            serial_reason=decoder.reason if isinstance(decoder, SerialDecoder) else "",
        )

    async def _load(
        self, lease: Lease, clock: _Phases, progress: Progress, reserve: Resize
    ) -> tuple[LoadedModel, Tokenizer | None]:
        """Return the model and, made meanwhile, the tokenizer. LOAD ends with the last byte."""
        is_read = False

        def on_bytes(done: int, total: int) -> None:
            nonlocal is_read
            if is_read:  # the last byte is told twice
                return
            progress(
                StartProgress(
                    phase=StartPhase.LOAD, bytes_done=done, bytes_total=total, source=lease.tier
                )
            )
            if done == total:
                is_read = True
                clock.end(StartPhase.LOAD)
                progress(StartProgress(phase=StartPhase.INIT, source=lease.tier))

        return await _both(
            self._weights(lease, on_bytes, reserve),
            self._run(lambda: load_tokenizer(lease.folder)),
        )

    async def _weights(self, lease: Lease, on_bytes: OnBytes, reserve: Resize) -> LoadedModel:
        """Return the model with its weights in the node's memory, or read into ours."""
        buffers = await self._buffers(lease, on_bytes)
        load = WeightLoad(
            lease.folder,
            lease.weight_files,
            on_bytes,
            reserve=reserve,
            pool=self._pool,
            buffers=buffers,
        )
        del buffers  # the load's, from here on
        return await self._run(load.run, stop=load.give_up)

    async def _buffers(self, lease: Lease, on_bytes: OnBytes) -> Buffers | None:
        """Return the weights as they lie in the node's memory; None if they do not."""
        if lease.bring is None:
            return None

        def on_brought(done: int, total: int) -> None:
            if done < total:  # the last byte is there when it is mapped
                on_bytes(done, total)

        mapping = await lease.bring(on_brought)
        try:
            buffers = await self._run(lambda: map_weights(mapping))
        except (OSError, MemoryError) as error:
            _refuse_if_ended(lease)
            self._maps = not isinstance(error, OSError)
            log.warning("the node's memory is out of reach, reading files", error=str(error))
            return None
        await asyncio.sleep(0)  # news that has come is heard
        _refuse_if_ended(lease)  # then others may have got these chunks before they were ours
        return buffers

    async def _run(
        self, call: Callable[[], Result], *, stop: Callable[[], None] | None = None
    ) -> Result:
        """Call on a thread, in this task's log context; when cancelled, `stop` it and wait."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, contextvars.copy_context().run, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if stop is not None:
                stop()
            await _until_done(future)
            if not future.cancelled():
                future.exception()  # seen; the cancellation is what counts
            raise


class _Phases:
    """Times phases that follow one another."""

    def __init__(self) -> None:
        self._ends: list[tuple[StartPhase, float]] = []
        self._began_s = monotonic_s()

    def end(self, phase: StartPhase) -> None:
        self._ends.append((phase, monotonic_s()))

    def durations(self) -> tuple[PhaseDuration, ...]:
        durations = []
        began_s = self._began_s
        for phase, ended_s in self._ends:
            durations.append(PhaseDuration(phase=phase, duration_s=ended_s - began_s))
            metrics.LOAD_PHASE.labels(phase.value).observe(ended_s - began_s)
            began_s = ended_s
        return tuple(durations)


def _check(folder: Path, files: Sequence[str]) -> None:
    with refusals():
        require_manifest(folder)
        build_skeleton(folder, brisk_native.inspect(folder, files=files))
    load_tokenizer(folder)


def _refuse_if_ended(lease: Lease) -> None:
    if not lease.is_held():
        raise UnavailableError(
            "the lease ended before the weights were mapped", reason=Reason.STORE_UNREACHABLE
        )


def _refuse_if_too_small(order: LoadOrder, info: ModelInfo) -> None:
    """Refuse an order without room for the weights and one token."""
    needed = info.weight_bytes + max(info.kv_bytes_per_token, 1)
    if order.memory_bytes < needed:
        raise ResourceExhaustedError(
            f"the model needs {needed} bytes, the order reserves {order.memory_bytes}",
            reason=Reason.INSUFFICIENT_MEMORY,
            metadata={
                "needed_bytes": str(needed),
                "available_bytes": str(order.memory_bytes),
            },
        )


def _reserve(order: LoadOrder, info: ModelInfo, resize: Resize, taken_bytes: int) -> None:
    """Let the reservation grow by what the weights take beyond what the order counted."""
    resize(order.memory_bytes + max(0, taken_bytes - info.weight_bytes))


def _on_loop(call: Callable[[int], None]) -> Callable[[int], None]:
    """Return what makes a call on this event loop, from another thread, and waits for its end."""
    loop = asyncio.get_running_loop()

    async def on_loop(value: int) -> None:
        call(value)

    return lambda value: asyncio.run_coroutine_threadsafe(on_loop(value), loop).result()


def _limits(
    order: LoadOrder, info: ModelInfo, facts: DecoderFacts, decoder: PackedDecoder | SerialDecoder
) -> TokenLimits:
    context = min(order.context_tokens_max, facts.context_tokens_max or order.context_tokens_max)
    if isinstance(decoder, PackedDecoder):
        return TokenLimits(
            vocabulary=facts.vocabulary,
            context_tokens_max=context,
            kv_bytes_per_token=decoder.kv_bytes_per_token,
            kv_bytes=decoder.kv_bytes,
            block_tokens=decoder.block_tokens,
        )
    # What the store says counts first: the scheduler sized the reservation by it.
    kv_bytes_per_token = info.kv_bytes_per_token or facts.kv_bytes_per_token
    if not kv_bytes_per_token:
        log.warning("key/value cache of unknown size, not limited", architecture=info.architecture)
    return TokenLimits(
        vocabulary=facts.vocabulary,
        context_tokens_max=context,
        kv_bytes_per_token=kv_bytes_per_token,
        kv_bytes=order.memory_bytes - info.weight_bytes,
    )


def _tell(decoder: PackedDecoder | SerialDecoder, info: ModelInfo) -> None:
    if isinstance(decoder, SerialDecoder):
        log.warning(
            "one sequence per pass, which is slower",
            architecture=info.architecture,
            reason=decoder.reason,
        )
        return
    log.info(
        "sequences are packed",
        architecture=info.architecture,
        blocks=decoder.pool.blocks,
        block_tokens=decoder.block_tokens,
        bytes_per_token=decoder.kv_bytes_per_token,
        exact_rows=decoder.exact_rows,
    )


def _eos_token_ids(facts: DecoderFacts, tokenizer: Tokenizer | None) -> frozenset[int]:
    if tokenizer is None or tokenizer.eos_token_id is None:
        return facts.eos_token_ids
    return facts.eos_token_ids | {tokenizer.eos_token_id}


def _count(report: brisk_native.LoadReport) -> None:
    metrics.BYTES_READ.inc(report.bytes_read)
    metrics.BYTES_MAPPED.inc(report.mapped_bytes)
    metrics.BYTES_COPIED.inc(report.copied_bytes)
    if not report.bytes_read:
        return
    way = "direct" if report.direct else "buffered"
    pages = "huge" if report.huge_pages else "small"
    metrics.FILES_READ.labels(way, pages).inc(report.files)


async def _both(
    first: Coroutine[Any, Any, Result], second: Coroutine[Any, Any, Other]
) -> tuple[Result, Other]:
    """Return what both return. When one fails the other is cancelled, and its end awaited.

    A TaskGroup would wrap the error in a group that keeps all it refers to alive.
    """
    one, other = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        await asyncio.wait((one, other), return_when=asyncio.FIRST_EXCEPTION)
    finally:
        one.cancel()
        other.cancel()
        await _until_done(one, other)
    for task in (one, other):
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return one.result(), other.result()


async def _until_done(*futures: asyncio.Future[Any]) -> None:
    """Wait for what was told to stop, even if cancelled again meanwhile.

    Memory may only be given back once no thread uses it any more. A read stops within one chunk
    and building takes a fraction of a second, so the wait is short.
    """
    while not all(future.done() for future in futures):
        with suppress(asyncio.CancelledError):
            await asyncio.wait(futures)
