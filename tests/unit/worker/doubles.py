"""Doubles with behaviour: a model that counts, a store that is a folder, a device by hand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import brisk_native
import numpy as np

from services.common.errors import BriskError, NotFoundError, Reason
from services.common.model import ModelInfo, ModelRef, Tier
from services.common.names import ModelName
from services.common.sampling import Sampling
from services.worker.ports import Decoder, Job, Lease, Share, Strand
from services.worker.sampler import Choice, Logits, Sampler
from services.worker.text import Continuation, Decoded

VOCABULARY = 100
GREEDY = Sampling(temperature=0.0)


async def until(holds: Callable[[], bool]) -> None:
    """Return once something holds that another thread or task brings about."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - there is no event for everything
            await asyncio.sleep(0.001)


class CountingDecoder:
    """Continues every sequence with the next number; what it was shown is written down."""

    def __init__(self, *, shares_max: int = 1, room: int = 1_000_000) -> None:
        self.shares_max = shares_max
        self.room = room  # tokens of all strands together
        self.shown: list[tuple[int, ...]] = []
        self.steps: list[int] = []  # how many were shown together
        self.strands: list[CountingStrand] = []
        self.unsound = 0  # strands that failed
        self.fails_after: int | None = None  # the token after which a step raises
        self.fails_together = False  # a step of several raises
        self.is_nan_after: int | None = None
        self.allowed = threading.Semaphore(0)
        self.is_gated = False  # each step needs a permit

    @property
    def open_strands(self) -> int:
        return len(self.strands)

    def open(self, tokens: Sequence[int], tokens_max: int) -> CountingStrand | None:
        assert len(tokens) <= tokens_max
        strand = CountingStrand(self)
        return strand if self.extend(strand, len(tokens)) else None

    def extend(self, strand: Strand, tokens: int) -> bool:
        assert isinstance(strand, CountingStrand)
        others = sum(each.room for each in self.strands if each is not strand)
        if others + tokens > self.room:
            return False
        strand.room = max(strand.room, tokens)
        if strand not in self.strands:
            self.strands.append(strand)
        return True

    def step(self, shares: Sequence[Share]) -> list[Logits | None]:
        if self.is_gated:
            self.allowed.acquire()
        assert 0 < len(shares) <= self.shares_max
        self.steps.append(len(shares))
        self.shown.extend(tuple(share.token_ids) for share in shares)
        if any(share.token_ids[-1] == self.fails_after for share in shares):
            raise ArithmeticError("the model's own words")
        if self.fails_together and len(shares) > 1:
            raise ArithmeticError("too many")
        for share in shares:
            assert isinstance(share.strand, CountingStrand)
            share.strand.seen += len(share.token_ids)
            assert share.strand.seen <= share.strand.room
        return [self.follows(share.token_ids[-1]) for share in shares]

    def follows(self, token: int) -> Logits:
        logits = np.zeros(VOCABULARY, dtype=np.float32)
        logits[(token + 1) % VOCABULARY] = np.nan if token == self.is_nan_after else 1.0
        return logits

    def audit(self) -> None:
        if self.strands:
            raise RuntimeError("strands are left open")


class CountingStrand:
    def __init__(self, decoder: CountingDecoder) -> None:
        self._decoder = decoder
        self.seen = 0
        self.room = 0

    def close(self, *, is_sound: bool = True) -> None:
        self._decoder.strands.remove(self)
        self._decoder.unsound += not is_sound


class ListSink:
    """A TokenSink that keeps what it gets."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.tokens: list[int] = []
        self.room = room
        self.error: BriskError | None = None
        self.ends = 0
        self.at_end: Callable[[], None] = lambda: None
        self.ended = threading.Event()
        self.has_token = threading.Event()

    def has_room(self) -> bool:
        return len(self.tokens) < self.room

    def put(self, decoded: Decoded) -> None:
        self.tokens.append(decoded.token_id)
        self.has_token.set()

    def end(self, error: BriskError | None, last: Decoded | None = None) -> None:
        if last is not None:
            self.tokens.append(last.token_id)
        self.error = error
        self.ends += 1
        self.at_end()
        self.ended.set()


def job(
    ticket: str,
    prompt: tuple[int, ...] = (1,),
    *,
    tokens: int = 5,
    sink: ListSink | None = None,
    instance_id: str = "i",
    sampling: Sampling = GREEDY,
) -> Job:
    """Return a job that runs to `tokens` tokens."""
    return Job(
        ticket=ticket,
        request_id=ticket,
        instance_id=instance_id,
        prompt=prompt,
        tokens_max=len(prompt) + tokens,
        sampler=Sampler.of(sampling, prompt),
        continuation=Continuation(detokenizer=None, max_tokens=tokens),
        sink=sink or ListSink(),
    )


class HandEngine:
    """An Engine without a thread: the test decides when something happens."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.added: list[str] = []
        self.cancelled: list[str] = []
        self.decoders: dict[str, Decoder] = {}
        self.unloading: dict[str, Callable[[], None]] = {}
        self.wakes = 0

    def load(self, instance_id: str, decoder: Decoder) -> None:
        self.decoders[instance_id] = decoder

    def unload(self, instance_id: str, done: Callable[[], None]) -> None:
        self.unloading[instance_id] = done

    def add(self, job: Job) -> None:
        self.jobs[job.ticket] = job
        self.added.append(job.ticket)

    def cancel(self, ticket: str, error: BriskError | None = None) -> None:
        self.cancelled.append(ticket)
        if ticket in self.jobs:
            self.jobs.pop(ticket).sink.end(error)

    def wake(self) -> None:
        self.wakes += 1

    def finish(self, ticket: str, *tokens: int) -> None:
        """Let a sequence end with these tokens."""
        ended = self.jobs.pop(ticket)
        decoded = [ended.continuation.accept(Choice(token)) for token in tokens]
        for each in decoded[:-1]:
            ended.sink.put(each)
        ended.sink.end(None, decoded[-1])


class FolderStore:
    """A ModelStore over plain folders, by model name."""

    def __init__(self, folders: dict[str, Path], info: Callable[[Path], ModelInfo]) -> None:
        self.folders = folders
        self.leases = 0
        self.granted = 0
        self.seals = True  # writes manifests, as a store does
        self._info = info

    @asynccontextmanager
    async def lease(self, model: ModelRef, *, maps: bool = False) -> AsyncIterator[Lease]:
        await asyncio.sleep(0)
        if model.name not in self.folders:
            raise NotFoundError(f"no model {model.name}", reason=Reason.MODEL_NOT_FOUND)
        folder = self.folders[model.name]
        if self.seals and not (folder / "brisk.json").exists():
            seal(folder)
        self.leases += 1
        self.granted += 1
        try:
            yield Lease(
                lease_id=f"lease-{self.granted}",
                folder=folder,
                weight_files=tuple(sorted(path.name for path in folder.glob("*.safetensors"))),
                info=self._info(folder),
                tier=Tier.SSD,
            )
        finally:
            self.leases -= 1


def seal(folder: Path) -> None:
    """Write the manifest of a folder's weights."""
    files = [
        {
            "name": path.name,
            "size_bytes": path.stat().st_size,
            "crc32c": [f"{each:08x}" for each in brisk_native.checksum_file(path)],
        }
        for path in sorted(folder.glob("*.safetensors"))
    ]
    document = {"version": 1, "chunk_bytes": brisk_native.CHUNK_BYTES, "files": files}
    (folder / "brisk.json").write_text(json.dumps(document))


def model_info(folder: Path) -> ModelInfo:
    """Return what a store would know of a tiny model."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ModelInfo(
        ref=ModelRef(name=ModelName(folder.name), revision="0" * 16),
        architecture="any",
        dtype="F32",
        weight_bytes=size,
        parameters=size // 4,
        context_tokens_max=256,
        kv_bytes_per_token=256,
    )
