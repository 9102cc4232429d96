"""Workers without models: deterministic tokens, slots, deaths and silences, as the real ones.

A token depends only on the prompt, the seed and its position, as with Brisk's own sampling, so two
fakes given the same job agree, and a test can say what an undisturbed stream would have been.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from services.common.errors import (
    BriskError,
    FailedPreconditionError,
    Reason,
    UnavailableError,
)
from services.common.model import Tokenized
from services.common.placement import Route
from services.common.prompt import Prompt, TextPrompt, TokensPrompt
from services.router.job import Job

FINISH_LENGTH = 2
VOCABULARY = 1000


def tokenize(prompt: Prompt) -> tuple[int, ...]:
    """Return the prompt's tokens: one for each byte of a text."""
    if isinstance(prompt, TokensPrompt):
        return prompt.ids
    if isinstance(prompt, TextPrompt):
        return tuple(prompt.text.encode())
    return tuple("\n".join(f"{m.role}: {m.content}" for m in prompt.messages).encode())


def token_at(prompt: Sequence[int], seed: int, position: int) -> int:
    """Return the token at `position` of the continuation."""
    return zlib.crc32(repr((tuple(prompt), seed, position)).encode()) % VOCABULARY


def continuation(prompt: Sequence[int], seed: int, length: int) -> list[int]:
    """Return the first `length` tokens of the continuation."""
    return [token_at(prompt, seed, position) for position in range(length)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Has what `Usage` of the wire has."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """Has what `TokenLogprob` of the wire has."""

    token_id: int
    logprob: float
    piece: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Likely:
    """Has what `TokenLogprobs` of the wire has."""

    chosen: Likelihood
    top: tuple[Likelihood, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Has what `TokenChunk` of the wire has."""

    first_index: int
    token_ids: tuple[int, ...]
    text: str = ""
    finish_reason: int = 0
    usage: Counts = Counts()
    logprobs: tuple[Likely, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ids:
    """Has what `TokenIds` of the wire has."""

    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Has what a worker's `GenerateResponse` has."""

    chunk: Chunk
    prompt_tokens: Ids = field(default_factory=Ids)


@dataclass(slots=True, kw_only=True)
class FakeWorker:
    """One instance. Unless told otherwise it answers every job at once and in full."""

    name: str
    lives_for: int | None = None  # tokens of one stream after which it is lost
    is_silent: bool = False  # lost by hanging, not by dying
    refusal: BriskError | None = None  # what it answers instead of tokens
    pace: asyncio.Semaphore | None = None  # a permit for each token
    tokens_per_chunk: int = 1
    shifts_index_at: int | None = None  # leaves a gap from this token on
    ends_at: int | None = None  # ends the stream, as if all were well, after this many tokens

    running: int = 0
    running_most: int = 0
    requests: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)  # requests whose stream was closed early

    async def generate(self, job: Job) -> AsyncGenerator[Message]:
        """Stream the continuation of `job`."""
        self.requests.append(job.request_id)
        self.running += 1
        self.running_most = max(self.running, self.running_most)
        try:
            if self.refusal is not None:
                raise self.refusal
            async for message in self._stream(job):
                yield message
        except (GeneratorExit, asyncio.CancelledError):
            self.given_up.append(job.request_id)
            raise
        finally:
            self.running -= 1

    async def _stream(self, job: Job) -> AsyncGenerator[Message]:
        prompt = tokenize(job.prompt)
        length = job.sampling.max_tokens or 1
        seed = job.sampling.seed or 0
        index = 0
        while index < length:
            await self._step(index)
            if index == self.ends_at:
                return
            upto = min(index + self.tokens_per_chunk, length)
            is_off = self.shifts_index_at is not None and index >= self.shifts_index_at
            yield Message(
                chunk=Chunk(
                    first_index=index + is_off,
                    token_ids=tuple(token_at(prompt, seed, i) for i in range(index, upto)),
                    finish_reason=FINISH_LENGTH if upto == length else 0,
                ),
                prompt_tokens=Ids(ids=prompt if index == 0 else ()),
            )
            index = upto

    async def _step(self, index: int) -> None:
        if index == self.lives_for:
            if self.is_silent:
                await asyncio.get_running_loop().create_future()
            raise UnavailableError("connection lost")
        if self.pace is not None:
            await self.pace.acquire()
        else:
            await asyncio.sleep(0)  # let others run, as a decode step would


class FakeWorkers:
    """The workers behind the routes, by instance. Unknown instances are gone."""

    def __init__(self, *workers: FakeWorker) -> None:
        self.by_name = {worker.name: worker for worker in workers}
        self.prepared: list[str] = []

    def generate(self, route: Route, job: Job) -> AsyncGenerator[Message]:
        worker = self.by_name.get(route.instance_id)
        if worker is None:
            worker = FakeWorker(
                name=route.instance_id,
                refusal=FailedPreconditionError(
                    f"no instance {route.instance_id} here", reason=Reason.INSTANCE_GONE
                ),
            )
        return worker.generate(job)

    async def tokenize(self, route: Route, job: Job) -> Tokenized:
        if route.instance_id not in self.by_name:
            raise FailedPreconditionError("gone", reason=Reason.INSTANCE_GONE)
        token_ids = tokenize(job.prompt)
        pieces = tuple(bytes([each]) for each in token_ids)
        return Tokenized(token_ids=token_ids, pieces=pieces, context_tokens_max=64)

    def prepare(self, route: Route) -> None:
        self.prepared.append(route.worker_address)
