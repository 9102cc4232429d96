"""What a generation looks like to OpenAI's clients: objects, chunks of a stream, and comments."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from services.common.model import StartPhase, StartProgress, StartReport
from services.common.wire_sequence import finish_from_proto
from services.router.http.reply import Reply
from services.router.http.shapes import Shape, spelled
from services.router.ports import TokenChunk, TokenLogprobs, Usage

# So long an error gets a status of its own; after that the stream begins and comments flow.
PATIENCE_S: Final = 0.5
BEAT_S: Final = 5.0  # between two comments while nothing changes; proxies hang up after a minute
_WORDS: Final[Mapping[StartPhase, str]] = {
    StartPhase.QUEUE: "waiting for a device",
    StartPhase.PLACEMENT: "making room",
    StartPhase.FETCH: "fetching",
    StartPhase.LOAD: "loading",
    StartPhase.INIT: "assembling the model",
    StartPhase.FIRST_TOKEN: "reading the prompt",
}
_WAITING: Final = "waiting for a slot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What all objects of one answer have in common."""

    answer_id: str
    created_s: int
    model: str

    def members(self, kind: str) -> dict[str, object]:
        """Return the members every object begins with."""
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
        }


@dataclass(slots=True)
class _Collected:
    """One choice so far."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    last: TokenChunk | None = None


class WholeAnswer:
    """Collects a generation and answers once, at its end."""

    def __init__(self, reply: Reply, shape: Shape, envelope: Envelope) -> None:
        self._reply = reply
        self._shape = shape
        self._envelope = envelope
        self._collected: defaultdict[int, _Collected] = defaultdict(_Collected)  # by choice

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hold nothing."""

    async def progress(self, progress: StartProgress) -> None:
        """Tell nothing: there is one answer, at the end."""

    async def chunk(self, choice: int, chunk: TokenChunk, start: StartReport | None) -> None:  # noqa: ARG002
        """Collect."""
        collected = self._collected[choice]
        collected.texts.append(chunk.text)
        collected.logprobs.extend(chunk.logprobs)
        collected.last = chunk

    async def end(self) -> None:
        """Send the answer."""
        choices = sorted(self._collected.items())
        await self._reply.json(
            {
                **self._envelope.members(self._shape.whole_kind),
                "choices": [self._choice(index, collected) for index, collected in choices],
                "usage": _usage(each.last.usage for _, each in choices if each.last),
            }
        )

    def _choice(self, index: int, collected: _Collected) -> dict[str, object]:
        finish = _finish(collected.last) if collected.last else None
        logprobs = self._shape.logprobs(collected.logprobs, 0)
        return self._shape.whole(index, "".join(collected.texts), finish or "stop", logprobs)


class StreamedAnswer:
    """Sends a generation as it comes; before its first token, comments tell how it stands.

    The stream begins with the first token or after PATIENCE_S, whichever comes first.
    """

    def __init__(
        self, reply: Reply, shape: Shape, envelope: Envelope, *, wants_usage: bool
    ) -> None:
        self._reply = reply
        self._shape = shape
        self._members = envelope.members(shape.chunk_kind)
        self._wants_usage = wants_usage
        self._news = _WAITING
        self._teller: asyncio.Task[None] | None = None
        self._usages: dict[int, Usage] = {}  # of the choices that have ended
        self._offsets: Counter[int] = Counter()  # characters of the tokens so far, by choice

    async def __aenter__(self) -> Self:
        self._teller = asyncio.create_task(self._tell())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop telling; what follows comes in its place."""
        await self._stop_telling()

    async def progress(self, progress: StartProgress) -> None:
        """Tell how the start stands, if it is time for comments and it is news."""
        news = describe(progress)
        if news != self._news:
            self._news = news
            if self._reply.status:
                await self._reply.comment(news)

    async def chunk(self, choice: int, chunk: TokenChunk, start: StartReport | None) -> None:
        """Send a chunk, unless there is nothing to tell."""
        if start is not None:
            await self._stop_telling()
            if (opening := self._shape.opening(choice)) is not None:
                await self._send(opening)
        finish = _finish(chunk)
        if finish is not None:
            self._usages[choice] = chunk.usage
        logprobs = self._shape.logprobs(chunk.logprobs, self._offsets[choice])
        self._offsets[choice] += sum(len(spelled(each.chosen.piece)) for each in chunk.logprobs)
        if chunk.text or finish is not None or logprobs is not None:
            await self._send(self._shape.chunk(choice, chunk.text, finish, logprobs))

    async def end(self) -> None:
        """Send the usage, if it was asked for, and the end."""
        if self._wants_usage:
            usage = _usage(self._usages[index] for index in sorted(self._usages))
            await self._reply.event({**self._members, "choices": [], "usage": usage})
        await self._reply.end_events()

    async def _send(self, choice: Mapping[str, object]) -> None:
        body: dict[str, object] = {**self._members, "choices": [choice]}
        if self._wants_usage:
            body["usage"] = None
        await self._reply.event(body)

    async def _tell(self) -> None:
        pause_s = PATIENCE_S
        while True:
            await asyncio.sleep(pause_s)
            await self._reply.comment(self._news)
            pause_s = BEAT_S

    async def _stop_telling(self) -> None:
        teller, self._teller = self._teller, None
        if teller is None:
            return
        teller.cancel()
        await asyncio.wait({teller})


def describe(progress: StartProgress) -> str:
    """Return how a start stands in a few words: "loading 37 %, from ssd"."""
    words = _WORDS.get(progress.phase, "starting")
    if progress.bytes_total:
        words += f" {100 * progress.bytes_done // progress.bytes_total} %"
    if progress.phase in (StartPhase.FETCH, StartPhase.LOAD):
        words += f", from {progress.source}"
    return f"{words} ({progress.detail})" if progress.detail else words


def _finish(chunk: TokenChunk) -> str | None:
    """Return why the answer ended; our words are OpenAI's: "stop" and "length"."""
    reason = finish_from_proto(chunk.finish_reason)
    return None if reason is None else reason.value


def _usage(usages: Iterable[Usage]) -> dict[str, int]:
    """Return the tokens of all choices; they have one prompt."""
    counted = list(usages)
    prompt_tokens = counted[0].prompt_tokens
    completion_tokens = sum(usage.completion_tokens for usage in counted)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
