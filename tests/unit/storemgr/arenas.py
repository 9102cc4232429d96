"""An arena of real shared memory, and models of whole chunks to fill it with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import brisk_native

from services.common.model import ModelRef
from services.common.names import ModelName
from services.storemgr.adapters import NativeDisk
from services.storemgr.arena import Arena
from services.storemgr.arena_index import Indexed
from services.storemgr.arena_memory import NativeMemory
from services.storemgr.eviction import EvictionPolicy, Lru
from services.storemgr.facts import ModelFacts
from services.storemgr.filling import Filler
from services.storemgr.folder import FileKind
from services.storemgr.io_queue import IoPriority, IoQueue
from services.storemgr.manifest import Manifest, StoredFile, revision_of
from services.storemgr.residents import Claim, Mapping

CHUNK = brisk_native.CHUNK_BYTES
_FACTS = ModelFacts(
    architecture="any",
    dtype="F32",
    weight_bytes=1,
    parameters=1,
    tensors=1,
    context_tokens_max=1,
    kv_bytes_per_token=1,
)


def model(folder: Path, name: str, *sizes: int) -> Manifest:
    """Write weight files of `sizes` bytes and return the manifest of the model they make."""
    (folder / name).mkdir(parents=True)
    files = []
    for number, size in enumerate(sizes):
        path = folder / name / f"{number}.safetensors"
        seed = hashlib.sha256(f"{name} {number}".encode()).digest()
        path.write_bytes((seed * (size // len(seed) + 1))[:size])
        checksums = tuple(brisk_native.checksum_file(path))
        files.append(
            StoredFile(
                name=path.name,
                kind=FileKind.WEIGHTS,
                size_bytes=size,
                modified_ns=path.stat().st_mtime_ns,
                checksums=checksums,
            )
        )
    return Manifest(
        name=ModelName(name),
        revision=revision_of(files),
        imported_at=datetime(2026, 1, 1, tzinfo=UTC),
        facts=_FACTS,
        files=tuple(files),
        is_stored_form=True,
    )


class House:
    """An arena of some chunks, and the folder its models come from."""

    def __init__(
        self,
        folder: Path,
        memory: NativeMemory,
        threads: ThreadPoolExecutor,
        *,
        policy: EvictionPolicy[ModelRef] | None = None,
        residency_s: float = 0.0,
    ) -> None:
        self.folder = folder
        self.memory = memory
        self.saved: list[tuple[Indexed, ...]] = []
        self.queue = IoQueue()
        self.arena = Arena(
            Filler(memory, self.queue, threads),
            NativeDisk(),
            chunk_bytes=CHUNK,
            policy=policy or Lru(),
            residency_s=residency_s,
            save=self._save,
        )

    async def _save(self, models: tuple[Indexed, ...]) -> None:
        self.saved.append(models)

    def model(self, name: str, *sizes: int) -> Manifest:
        """Return a new model whose files have these sizes."""
        return model(self.folder, name, *sizes)

    async def bring(
        self, manifest: Manifest, priority: IoPriority = IoPriority.REQUEST
    ) -> Mapping | None:
        """Bring a model, give the claim up, and return where it is; None if there is no room."""
        folder = self.folder / manifest.name
        async with self.arena.claim(manifest, folder, priority) as claim:
            return None if claim is None else await wait(claim)

    def folder_of(self, ref: ModelRef) -> Path:
        """Return where a model's files are."""
        return self.folder / ref.name

    def names(self) -> list[str]:
        """Return what the index last said."""
        return sorted(each.ref.name for each in self.saved[-1])


async def wait(claim: Claim) -> Mapping:
    """Return where a model is, once it is there."""
    async with aclosing(claim.progress()) as news:
        async for _ in news:
            pass
    return claim.mapping


def mapped(mapping: Mapping) -> list[bytes]:
    """Return what a worker would see of each file, without keeping it mapped."""
    return [bytes(view) for view in buffers(mapping)]


def buffers(mapping: Mapping) -> list[brisk_native.FileBuffer]:
    """Map the files as a worker does."""
    return [
        brisk_native.map_pieces(
            mapping.path,
            [(piece.offset, piece.size_bytes) for piece in file.pieces],
            file.size_bytes,
        )
        for file in mapping.files
    ]


@contextmanager
def memory_of(chunks: int) -> Iterator[NativeMemory]:
    """Give shared memory of some chunks for the block."""
    memory = NativeMemory(
        brisk_native.Pool(chunks * CHUNK, kind="small"), kind="small", is_named=False
    )
    try:
        yield memory
    finally:
        memory.close()
