"""The node's DRAM tier: models in shared memory that workers use in place.

A model is read from the disk once, verified on the way, whoever waits for it, and stays until its
room is needed. A claim keeps it there while a worker gets hold of it; from then on the kernel knows
which chunks are mapped (`ArenaMemory.in_use`), whether or not we were there when it happened, and
what is mapped is never given to anyone else. A model that finds no room is none of our business:
its worker reads the files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from services.common.clock import monotonic_s, wall_clock
from services.common.errors import (
    BriskError,
    DataLossError,
    FailedPreconditionError,
    Reason,
    UnavailableError,
)
from services.common.log import get_logger
from services.common.model import ModelRef
from services.storemgr import metrics
from services.storemgr.arena_chunks import ArenaChunks
from services.storemgr.arena_index import Indexed
from services.storemgr.eviction import EvictionPolicy
from services.storemgr.filling import Filler
from services.storemgr.io_queue import IoPriority
from services.storemgr.manifest import Manifest
from services.storemgr.ports import Disk, Job
from services.storemgr.residents import ArenaFacts, ArenaFile, Claim, Resident, Stay

log = get_logger(__name__)

SEEK_S: Final = 0.01  # what bringing a model back costs beside its bytes
ASSUMED_BYTES_PER_S: Final = 1e9  # until something was read
_RETRY_S: Final = 1.0

Save: TypeAlias = Callable[[tuple[Indexed, ...]], Coroutine[Any, Any, None]]
Work: TypeAlias = Callable[[Resident, Manifest, Job], Coroutine[Any, Any, None]]


class Arena:
    """Which models are in memory. One owner: the event loop."""

    def __init__(
        self,
        filler: Filler,
        disk: Disk,
        *,
        chunk_bytes: int,
        policy: EvictionPolicy[ModelRef],
        residency_s: float,
        save: Save,
    ) -> None:
        """Keep what came less than `residency_s` ago. `save` writes the index for a successor."""
        self._filler, self._disk = filler, disk
        self._chunks = ArenaChunks(filler.memory, chunk_bytes)
        self._policy = policy
        self._residency_s = residency_s
        self._save = save
        self._saving = asyncio.Lock()
        self._residents: dict[ModelRef, Resident] = {}
        self._pinned: set[ModelRef] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._show()

    @asynccontextmanager
    async def claim(
        self, manifest: Manifest, folder: Path, priority: IoPriority
    ) -> AsyncIterator[Claim | None]:
        """Keep a model in memory for the block, and bring it there; None if there is no room.

        `Claim.progress` tells when it has come. It is read for as long as anyone has a claim.
        """
        resident = self._residents.get(manifest.ref)
        if resident is None:
            resident = self._place(manifest, folder, priority)
        if resident is None:
            metrics.TIER_LOOKUPS.labels("dram", "no_room").inc()
            yield None
            return
        metrics.TIER_LOOKUPS.labels("dram", "hit" if resident.is_ready else "miss").inc()
        resident.hurry(priority)
        resident.holders += 1
        resident.used_at = wall_clock()
        if resident.is_ready:
            self._policy.use(resident.ref)
        try:
            yield Claim(resident, self._filler.memory.path)
        finally:
            resident.holders -= 1
            if not resident.holders and not resident.settled.is_set() and resident.is_on_demand:
                self._unlist(resident)  # whoever comes now begins anew
                await _end(resident)

    def adopt(
        self,
        found: Iterable[Indexed],
        manifests: Iterable[Manifest],
        folder_of: Callable[[ModelRef], Path],
    ) -> None:
        """Take over what a predecessor left in the memory; each model is verified before its use.

        One that is not what it was is read again. What is mapped, but of no model that we know, is
        left alone until it is not.
        """
        by_ref = {manifest.ref: manifest for manifest in manifests}

        async def check(resident: Resident, manifest: Manifest, job: Job) -> None:
            try:
                await self._filler.check(resident, manifest, job)
            except DataLossError as error:
                log.warning("model damaged in memory", model=manifest.name, problem=error.message)
                if self._chunks.in_use(resident.pieces):
                    raise
                resident.bytes_done = 0
                await self._filler.read(resident, folder_of(manifest.ref), manifest, job)

        for model in found:
            manifest = by_ref.get(model.ref)
            if manifest is None or not _is_of(model.files, manifest):
                continue
            resident = Resident(
                ref=model.ref,
                files=model.files,
                priority=IoPriority.BACKGROUND,
                is_on_demand=False,
            )
            try:
                self._chunks.claim(resident.pieces)
            except ValueError:  # the index contradicts itself
                continue
            self._begin(resident, manifest, check)
        self._chunks.orphan_mapped()
        log.info(
            "arena adopted", models=len(self._residents), orphan_bytes=self._chunks.orphan_bytes
        )
        self._show()

    def evict(self, ref: ModelRef) -> None:
        """Remove a model from memory; fine if it is not there.

        Raises FailedPreconditionError (MODEL_LEASED) while someone uses it or waits for it.
        """
        resident = self._residents.get(ref)
        if resident is None:
            return
        if not resident.is_ready or self._is_held(resident):
            raise FailedPreconditionError(
                f'model "{ref.name}" at {ref.revision} is in use in memory',
                reason=Reason.MODEL_LEASED,
            )
        self._remove(resident)

    def forget(self, ref: ModelRef) -> None:
        """Remove a model that is no longer stored; who has it mapped keeps it."""
        self._pinned.discard(ref)
        resident = self._residents.get(ref)
        if resident is not None and resident.is_ready:
            self._remove(resident)

    def check_free(self, ref: ModelRef) -> None:
        """Raise FailedPreconditionError (MODEL_LEASED) if the model is being brought here."""
        resident = self._residents.get(ref)
        if resident is not None and (resident.holders or not resident.is_ready):
            raise FailedPreconditionError(
                f'model "{ref.name}" at {ref.revision} is being brought into memory',
                reason=Reason.MODEL_LEASED,
            )

    def pin(self, ref: ModelRef, *, is_pinned: bool) -> None:
        """Say whether a model must stay, once it is there."""
        (self._pinned.add if is_pinned else self._pinned.discard)(ref)

    def is_pinned(self, ref: ModelRef) -> bool:
        """Return what `pin` said."""
        return ref in self._pinned

    def stay_of(self, ref: ModelRef) -> Stay | None:
        """Return how a model is there; None if not all of it is."""
        resident = self._residents.get(ref)
        if resident is None or not resident.is_ready:
            return None
        return Stay(
            size_bytes=resident.bytes_total,
            in_use=self._is_held(resident),
            used_at=resident.used_at,
        )

    def facts(self) -> ArenaFacts:
        """Return how much there is and what it is made of."""
        self._chunks.reclaim()
        self._show()
        held = sum(each.size_bytes for each in self._residents.values() if self._is_held(each))
        memory = self._filler.memory
        return ArenaFacts(
            size_bytes=self._chunks.size_bytes,
            free_bytes=self._chunks.free_bytes,
            in_use_bytes=held + self._chunks.orphan_bytes,
            chunk_bytes=self._chunks.chunk_bytes,
            populated_bytes=memory.populated_bytes,
            kind=memory.kind,
            huge_pages=memory.huge_pages,
        )

    async def close(self) -> None:
        """End the reading that still goes on; returns when no thread touches the memory."""
        for task in tuple(self._working):
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    # --- Room ---

    def _place(self, manifest: Manifest, folder: Path, priority: IoPriority) -> Resident | None:
        """Begin to bring a model, at the cost of others if need be; None if that cannot be."""
        needed = self._chunks.needed([file.size_bytes for file in manifest.weights])
        if needed > self._chunks.size_bytes or not self._make_room(needed):
            return None
        files = tuple(
            ArenaFile(
                name=file.name,
                size_bytes=file.size_bytes,
                pieces=self._chunks.take(file.size_bytes),
            )
            for file in manifest.weights
        )
        resident = Resident(ref=manifest.ref, files=files, priority=priority)

        async def read(resident: Resident, manifest: Manifest, job: Job) -> None:
            await self._keep_index()  # what had to go must not be found in its old place
            await self._filler.read(resident, folder, manifest, job)

        self._begin(resident, manifest, read)
        self._show()
        return resident

    def _make_room(self, needed: int) -> bool:
        """Evict what is worth least until there is room; nothing if that does not help."""
        self._chunks.reclaim()
        room = self._chunks.free_bytes
        victims: list[Resident] = []
        for ref in self._policy.ranked() if room < needed else ():
            resident = self._residents[ref]
            if self._may_go(resident):
                victims.append(resident)
                room += resident.size_bytes
            if room >= needed:
                break
        if room < needed:
            return False
        for victim in reversed(victims):  # the worthiest first: the others may suffice
            if room - victim.size_bytes >= needed:
                room -= victim.size_bytes
                continue
            self._remove(victim)
            metrics.EVICTIONS.labels("dram").inc()
            log.info("evicted from memory", model=victim.ref.name, bytes=victim.size_bytes)
        return True

    def _may_go(self, resident: Resident) -> bool:
        is_settled = monotonic_s() - resident.arrived_s >= self._residency_s
        return is_settled and resident.ref not in self._pinned and not self._is_held(resident)

    def _is_held(self, resident: Resident) -> bool:
        return bool(resident.holders) or self._chunks.in_use(resident.pieces)

    def _remove(self, resident: Resident) -> None:
        """Forget a model; chunks that someone has mapped come free when nobody has any more."""
        self._unlist(resident)
        self._chunks.give_back(resident.pieces)
        self._show()

    def _unlist(self, resident: Resident) -> None:
        if self._residents.get(resident.ref) is resident:
            del self._residents[resident.ref]
            self._policy.remove(resident.ref)

    # --- Bringing models ---

    def _begin(self, resident: Resident, manifest: Manifest, work: Work) -> None:
        self._residents[resident.ref] = resident
        loop = asyncio.get_running_loop()
        resident.work = loop.create_task(self._settle(resident, manifest, work))
        self._working.add(resident.work)
        resident.work.add_done_callback(self._working.discard)

    async def _settle(self, resident: Resident, manifest: Manifest, work: Work) -> None:
        """Own the coming of a model: afterwards it is there, or its chunks are free."""
        began_s = monotonic_s()
        try:
            await work(resident, manifest, self._disk.new_job())
        except BaseException as error:
            self._fail(resident, error)
            if isinstance(error, BriskError):  # those who wait are told
                return
            raise
        resident.arrived_s = monotonic_s()
        self._policy.admit(resident.ref, resident.size_bytes, self._cost_s(resident))
        resident.settle()
        log.info(
            "model in memory",
            model=manifest.name,
            bytes=resident.bytes_total,
            pieces=len(resident.pieces),
            seconds=monotonic_s() - began_s,
        )
        await self._keep_index()

    def _fail(self, resident: Resident, error: BaseException) -> None:
        if resident.is_stuck:  # a thread may still write there
            self._unlist(resident)
        else:
            self._remove(resident)
        if isinstance(error, BriskError):
            log.warning("model not in memory", model=resident.ref.name, problem=error.message)
            resident.settle(error)
        else:
            told = UnavailableError(
                "the model is not brought into memory any more",
                reason=Reason.SHUTTING_DOWN,
                retry_after_s=_RETRY_S,
            )
            resident.settle(told)

    async def _keep_index(self) -> None:
        async with self._saving:
            ready = [each for each in self._residents.values() if each.is_ready]
            await self._save(tuple(Indexed(ref=each.ref, files=each.files) for each in ready))

    def _cost_s(self, resident: Resident) -> float:
        bytes_per_s = self._filler.queue.bytes_per_s or ASSUMED_BYTES_PER_S
        return SEEK_S + resident.bytes_total / bytes_per_s

    def _show(self) -> None:
        free = self._chunks.free_bytes
        metrics.ARENA_BYTES.labels("free").set(free)
        metrics.ARENA_BYTES.labels("used").set(self._chunks.size_bytes - free)


async def _end(resident: Resident) -> None:
    """End the coming of a model and wait until its chunks are free."""
    if resident.work is not None and not resident.work.done():
        resident.work.cancel()
        await asyncio.wait((resident.work,))


def _is_of(files: tuple[ArenaFile, ...], manifest: Manifest) -> bool:
    """Return whether these are the weights of the model."""
    stored = [(file.name, file.size_bytes) for file in manifest.weights]
    has_room = all(
        sum(piece.size_bytes for piece in file.pieces) >= file.size_bytes for file in files
    )
    return has_room and [(file.name, file.size_bytes) for file in files] == stored
