"""What a generation looks like to OpenAI's clients: objects, chunks of a stream, and comments."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

from services.common.model import StartPhase, StartProgress, StartReport
from services.common.wire import finish_from_proto
from services.router.http.reply import Reply
from services.router.ports import TokenChunk, Usage

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


class Shape(Protocol):
    """How an endpoint words its answers."""

    prefix: str  # of ids
    whole_kind: str
    chunk_kind: str

    def opening(self) -> dict[str, object] | None:
        """Return the choice of the chunk before the first text, if there is one."""

    def chunk(self, text: str, finish: str | None) -> dict[str, object]:
        """Return the choice of a chunk."""

    def whole(self, text: str, finish: str) -> dict[str, object]:
        """Return the choice of a whole answer."""


class ChatShape:
    """`/v1/chat/completions`."""

    prefix = "chatcmpl-"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def opening(self) -> dict[str, object] | None:
        """Return the choice that says who speaks."""
        return _choice(finish=None, delta={"role": "assistant", "content": ""})

    def chunk(self, text: str, finish: str | None) -> dict[str, object]:
        """Return the choice of a chunk."""
        return _choice(finish=finish, delta={"content": text} if text else {})

    def whole(self, text: str, finish: str) -> dict[str, object]:
        """Return the choice of a whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return _choice(finish=finish, message=message)


class CompletionShape:
    """`/v1/completions`."""

    prefix = "cmpl-"
    whole_kind = chunk_kind = "text_completion"

    def opening(self) -> dict[str, object] | None:
        """Return None: a completion begins with its text."""
        return None

    def chunk(self, text: str, finish: str | None) -> dict[str, object]:
        """Return the choice of a chunk."""
        return _choice(finish=finish, text=text)

    def whole(self, text: str, finish: str) -> dict[str, object]:
        """Return the choice of a whole answer."""
        return _choice(finish=finish, text=text)


class WholeAnswer:
    """Collects a generation and answers once, at its end."""

    def __init__(self, reply: Reply, shape: Shape, envelope: Envelope) -> None:
        self._reply = reply
        self._shape = shape
        self._envelope = envelope
        self._texts: list[str] = []
        self._last: TokenChunk | None = None

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

    async def chunk(self, chunk: TokenChunk, start: StartReport | None) -> None:  # noqa: ARG002
        """Collect."""
        self._texts.append(chunk.text)
        self._last = chunk

    async def end(self) -> None:
        """Send the answer."""
        last = self._last
        assert last is not None  # noqa: S101 - a generation ends with a chunk or raises
        choice = self._shape.whole("".join(self._texts), _finish(last) or "stop")
        await self._reply.json(
            {
                **self._envelope.members(self._shape.whole_kind),
                "choices": [choice],
                "usage": _usage(last.usage),
            }
        )


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
        self._last: TokenChunk | None = None

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

    async def chunk(self, chunk: TokenChunk, start: StartReport | None) -> None:
        """Send a chunk, unless it has neither text nor end."""
        if start is not None:
            await self._stop_telling()
            if (opening := self._shape.opening()) is not None:
                await self._send(opening)
        self._last = chunk
        finish = _finish(chunk)
        if chunk.text or finish is not None:
            await self._send(self._shape.chunk(chunk.text, finish))

    async def end(self) -> None:
        """Send the usage, if it was asked for, and the end."""
        if self._wants_usage and self._last is not None:
            usage = _usage(self._last.usage)
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


def _choice(*, finish: str | None, **members: Any) -> dict[str, object]:
    return {"index": 0, **members, "logprobs": None, "finish_reason": finish}


def _finish(chunk: TokenChunk) -> str | None:
    """Return why the answer ended; our words are OpenAI's: "stop" and "length"."""
    reason = finish_from_proto(chunk.finish_reason)
    return None if reason is None else reason.value


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
