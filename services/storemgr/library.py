"""The node's models: what is stored, who uses it, what is on its way in or out.

The event loop owns the catalog and the leases; threads do the file work. Whatever changes a
model's folder holds the lock of its name, so that an import and a deletion never meet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common.errors import (
    InvalidArgumentError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.limits import AdmissionGate
from services.common.log import get_logger
from services.common.model import ModelRef, Tier
from services.common.names import new_id, parse_id
from services.storemgr.arena import Arena
from services.storemgr.catalog import Catalog
from services.storemgr.import_run import ImportRun
from services.storemgr.importer import Importer, ImportOrder
from services.storemgr.io_queue import IoPriority, IoQueue
from services.storemgr.leases import Lease, LeaseBook
from services.storemgr.manifest import Manifest, StoredFile, is_revision
from services.storemgr.metrics import FREE_BYTES, LEASES, MODELS, STORED_BYTES
from services.storemgr.named_locks import NamedLocks
from services.storemgr.ports import Disk, JobStoppedError
from services.storemgr.progress import ImportProgress
from services.storemgr.remotes.locations import PeersLocation
from services.storemgr.residents import ArenaFacts, Claim, Progress, Stay
from services.storemgr.shared_import import SharedImport
from services.storemgr.source import Source
from services.storemgr.store import Store
from services.storemgr.threads import begin, finish
from services.storemgr.verification import verify

log = get_logger(__name__)

_RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryLimits:
    """What the library takes on at once."""

    imports_max: int  # running and waiting
    leases_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """Where blocking work runs."""

    imports: Executor  # whole imports
    files: Executor  # everything short


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A lease and where its model is."""

    lease_id: str
    folder: Path
    manifest: Manifest
    released: asyncio.Event  # set by Library.release
    claim: Claim | None  # of its weights in memory; None: they are to be read from the folder

    @property
    def tier(self) -> Tier:
        """Where the weights come from."""
        return Tier.DRAM if self.claim is not None and self.claim.was_ready else Tier.SSD


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A stored model and its use."""

    manifest: Manifest
    leases: int
    stay: Stay | None = None  # in memory
    is_pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IoFacts:
    """A device's queue as others may know it."""

    queued_bytes: int
    bytes_per_s: float
    busy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The store's state."""

    models: tuple[Holding, ...]  # sorted by name, then by time of import
    free_bytes: int
    arena: ArenaFacts | None
    disk: IoFacts


class Library:
    """All that the node's store manager does, without the wire."""

    def __init__(
        self,
        store: Store,
        disk: Disk,
        importer: Importer,
        catalog: Catalog,
        *,
        threads: Threads,
        limits: LibraryLimits,
        queue: IoQueue,
        arena: Arena | None = None,
    ) -> None:
        """`queue` is that of the store's disk."""
        self._store = store
        self._disk = disk
        self._importer = importer
        self._catalog = catalog
        self._threads = threads
        self._queue = queue
        self._arena = arena
        self._gate = AdmissionGate(limits.imports_max, what="imports")
        self._leases = LeaseBook(leases_max=limits.leases_max)
        self._released: dict[str, asyncio.Event] = {}
        self._names = NamedLocks()
        self._runs: set[ImportRun] = set()
        self._shared: dict[Source, SharedImport] = {}
        self._show_catalog()

    async def import_model(self, source: Source) -> AsyncGenerator[ImportProgress | Manifest]:
        """Import `source`; yield how far it is and, as the last, what is stored then.

        Those who ask for the same at once share one import. Raises what Importer.run raises, and
        ResourceExhaustedError (QUEUE_FULL). Closing the last of them stops the import and returns
        when nothing is left of it.
        """
        with self._gate.enter(retry_after_s=_RETRY_S):
            shared = self._shared.get(source)
            if shared is None or shared.is_over:
                shared = self._shared[source] = SharedImport(lambda: self._running(source))
            shared.waiters += 1
            try:
                async with aclosing(shared.told()) as told:
                    async for each in told:
                        yield each
            except JobStoppedError as error:  # by `close`: nobody else is there to stop it
                raise UnavailableError(
                    "shutting down", reason=Reason.SHUTTING_DOWN, retry_after_s=_RETRY_S
                ) from error
            finally:
                shared.waiters -= 1
                if not shared.waiters:
                    if self._shared.get(source) is shared:
                        del self._shared[source]
                    await shared.stop()

    async def fetch(self, ref: ModelRef) -> AsyncGenerator[ImportProgress | Manifest]:
        """Bring a model that other nodes have; yield like `import_model`, at once if it is here.

        Raises what that raises, and NotFoundError (MODEL_NOT_FOUND) if no node has it.
        """
        if not is_revision(ref.revision):
            raise InvalidArgumentError(
                "the revision to fetch must be set: 16 hexadecimal digits",
                reason=Reason.INVALID_NAME,
            )
        if (known := self._catalog.get(ref)) is not None:
            yield known
            return
        source = Source(place=PeersLocation(ref=ref), name=ref.name, as_is=True)
        async with aclosing(self.import_model(source)) as told:
            async for each in told:
                yield each

    def find(self, ref: ModelRef) -> Manifest:
        """Return what is stored; see Catalog.find."""
        return self._catalog.find(ref)

    async def delete(self, ref: ModelRef) -> None:
        """Remove a model's files; fine if there are none.

        Raises FailedPreconditionError (MODEL_LEASED). Cancelling does not stop it half-way.
        """
        if not is_revision(ref.revision):
            raise InvalidArgumentError("the revision to delete must be set: 16 hexadecimal digits")
        async with self._names.hold(ref.name):
            self._leases.check_free(ref)
            if self._arena is not None:
                self._arena.check_free(ref)
            known = self._catalog.remove(ref)  # from here on nobody can lease it
            if self._arena is not None:
                self._arena.forget(ref)
            try:
                await finish(begin(self._threads.files, self._store.remove, ref))
            except OSError:
                if known is not None:
                    self._catalog.put(known)
                raise
            finally:
                self._show_catalog()
        if known is not None:
            log.info("model deleted", model=ref.name, revision=ref.revision)

    @asynccontextmanager
    async def lease(
        self, ref: ModelRef, holder: str, *, maps: bool = False
    ) -> AsyncIterator[Grant]:
        """Hold a lease for the block; an empty revision stands for the latest import.

        A holder that `maps` gets the weights in memory, if there is room.

        A model that only other nodes have is fetched first. Raises NotFoundError (MODEL_NOT_FOUND),
        ResourceExhaustedError (QUEUE_FULL), DataLossError (CHECKSUM_MISMATCH) if the files are not
        what was stored, and what `fetch` raises.
        """
        holder = parse_id(holder, what="holder") if holder else "unknown"
        manifest = await self._brought(ref)
        lease = Lease(lease_id=new_id("lease"), ref=manifest.ref, holder=holder)
        self._leases.grant(lease)
        released = self._released[lease.lease_id] = asyncio.Event()
        LEASES.set(len(self._leases))
        log.info("lease granted", model=ref.name, holder=holder, lease=lease.lease_id)
        try:
            manifest = await self._unchanged(manifest)
            folder = self._store.folder_of(lease.ref)
            async with self._claim(manifest, folder, maps=maps) as claim:
                yield Grant(
                    lease_id=lease.lease_id,
                    folder=folder,
                    manifest=manifest,
                    released=released,
                    claim=claim,
                )
        finally:
            self.release(lease.lease_id)

    async def _brought(self, ref: ModelRef) -> Manifest:
        """Return a stored model, fetched from other nodes if it has to be."""
        try:
            return self._catalog.find(ref)
        except NotFoundError as error:
            if not is_revision(ref.revision):
                raise
            try:
                async with aclosing(self.fetch(ref)) as told:
                    async for _ in told:
                        pass
            except NotFoundError:
                raise error from None  # which says what there is instead
        return self._catalog.find(ref)

    def release(self, lease_id: str) -> None:
        """End a lease; fine if it is not held."""
        if (lease := self._leases.end(lease_id)) is None:
            return
        self._released.pop(lease_id).set()
        LEASES.set(len(self._leases))
        log.info("lease ended", model=lease.ref.name, holder=lease.holder, lease=lease_id)

    async def describe(self) -> Description:
        """Return what is stored and the room left. Raises OSError."""
        looking = begin(self._threads.files, self._disk.free_bytes, self._store.root)
        free_bytes = await finish(looking)
        FREE_BYTES.set(free_bytes)
        return Description(
            models=tuple(self._holding(manifest) for manifest in self._catalog.all()),
            free_bytes=free_bytes,
            arena=self._arena.facts() if self._arena is not None else None,
            disk=IoFacts(
                queued_bytes=self._queue.queued_bytes,
                bytes_per_s=self._queue.bytes_per_s,
                busy_s=self._queue.busy_s(),
            ),
        )

    async def close(self) -> None:
        """Stop what still runs; returns when nothing is left of it."""
        await asyncio.gather(*(run.stop() for run in self._runs))
        if self._arena is not None:
            await self._arena.close()

    async def prefetch(self, ref: ModelRef) -> AsyncGenerator[Progress]:
        """Bring a model into memory and yield how far it is; requests go first.

        Raises NotFoundError (MODEL_NOT_FOUND), DataLossError, and ResourceExhaustedError
        (INSUFFICIENT_MEMORY) without room. Closing this ends it, unless someone else waits, too.
        """
        manifest = await self._unchanged(self._catalog.find(ref))
        folder = self._store.folder_of(manifest.ref)
        claiming = self._claim(manifest, folder, maps=True, priority=IoPriority.PREFETCH)
        async with claiming as claim:
            if claim is None:
                needed = sum(file.size_bytes for file in manifest.weights)
                raise ResourceExhaustedError(
                    f"there is no room in memory for {needed} bytes",
                    reason=Reason.INSUFFICIENT_MEMORY,
                    metadata={"needed_bytes": str(needed)},
                )
            async with aclosing(claim.progress()) as news:
                async for progress in news:
                    yield progress

    async def verify(self, ref: ModelRef) -> Manifest:
        """Compare all files of a model with their checksums and return what it is.

        Raises NotFoundError (MODEL_NOT_FOUND) and DataLossError (CHECKSUM_MISMATCH).
        """
        async with self._names.hold(self._catalog.find(ref).name):
            manifest = self._catalog.find(ref)
            job = self._disk.new_job()
            verifying = begin(
                self._threads.files, verify, self._store, manifest, manifest.files, job
            )
            verified = await finish(verifying, stop=job.stop)
            self._put(verified)
        return verified

    async def sweep(self) -> tuple[int, int]:
        """Delete what was put aside as damaged; return how many models and bytes that were."""
        return await finish(begin(self._threads.files, self._store.empty_quarantine))

    def evict(self, ref: ModelRef) -> None:
        """Remove a model from memory; fine if it is not there.

        Raises NotFoundError (MODEL_NOT_FOUND) and FailedPreconditionError (MODEL_LEASED).
        """
        manifest = self._catalog.find(ref)
        if self._arena is not None:
            self._arena.evict(manifest.ref)

    def pin(self, ref: ModelRef, *, is_pinned: bool) -> None:
        """Say whether a model must stay in memory. Raises NotFoundError (MODEL_NOT_FOUND)."""
        manifest = self._catalog.find(ref)
        if self._arena is not None:
            self._arena.pin(manifest.ref, is_pinned=is_pinned)

    @asynccontextmanager
    async def _claim(
        self,
        manifest: Manifest,
        folder: Path,
        *,
        maps: bool,
        priority: IoPriority = IoPriority.REQUEST,
    ) -> AsyncIterator[Claim | None]:
        if self._arena is None or not maps:
            yield None
            return
        async with self._arena.claim(manifest, folder, priority) as claim:
            yield claim

    def _holding(self, manifest: Manifest) -> Holding:
        leases, arena = self._leases.count(manifest.ref), self._arena
        if arena is None:
            return Holding(manifest=manifest, leases=leases)
        return Holding(
            manifest=manifest,
            leases=leases,
            stay=arena.stay_of(manifest.ref),
            is_pinned=arena.is_pinned(manifest.ref),
        )

    @asynccontextmanager
    async def _running(self, source: Source) -> AsyncIterator[ImportRun]:
        """Run an import of `source` for the block, when it is its name's turn."""
        async with self._names.hold(source.name):
            run = ImportRun(
                self._importer,
                ImportOrder(source=source, after=self._catalog.imported_last_at(source.name)),
                self._disk.new_job(),
                threads=self._threads.imports,
                on_stored=self._put,
            )
            self._runs.add(run)
            try:
                yield run
            finally:
                await run.stop()
                self._runs.discard(run)

    async def _unchanged(self, leased: Manifest) -> Manifest:
        """Return the manifest of a leased model once its files are known to be as they were."""
        if not await self._changed_files(leased):
            return leased
        async with self._names.hold(leased.name):
            manifest = self._catalog.find(leased.ref)
            changed = await self._changed_files(manifest)
            names = [file.name for file in changed]
            log.warning("stored files were touched, verifying", model=leased.name, files=names)
            job = self._disk.new_job()
            verifying = begin(self._threads.files, verify, self._store, manifest, changed, job)
            verified = await finish(verifying, stop=job.stop)
            self._put(verified)
        return verified

    async def _changed_files(self, manifest: Manifest) -> tuple[StoredFile, ...]:
        return await finish(begin(self._threads.files, self._store.changed_files, manifest))

    def _put(self, manifest: Manifest) -> None:
        self._catalog.put(manifest)
        self._show_catalog()

    def _show_catalog(self) -> None:
        manifests = self._catalog.all()
        MODELS.set(len(manifests))
        STORED_BYTES.set(sum(manifest.file_bytes for manifest in manifests))
