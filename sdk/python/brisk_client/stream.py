"""One answer as it comes: an asynchronous stream of chunks.

The call starts with the first read and is cancelled the moment the reader leaves: by the end of
an `async for`, by `break`, by an exception, by leaving the context, or by cancelling the task.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Protocol, Self

import grpc
from brisk.common.v1 import model_pb2

from brisk_client import replies
from brisk_client.connection import Connection
from brisk_client.errors import StreamBrokenError
from brisk_client.results import Chunk, Completion, FinishReason, Progress, StartReport, Usage

ProgressCallback = Callable[[Progress], None]


class EventMessage(Protocol):
    """What GenerateResponse and ChatResponse have in common."""

    @property
    def progress(self) -> model_pb2.StartProgress:
        """How far the start has come."""

    @property
    def chunk(self) -> model_pb2.TokenChunk:
        """The next tokens."""

    @property
    def start(self) -> model_pb2.StartReport:
        """How the request got here."""

    @property
    def choice_index(self) -> int:
        """Which answer the chunk belongs to."""

    def HasField(self, name: str, /) -> bool:  # noqa: N802  (protobuf's name)
        """Return whether the field is set."""


class EventCall(Protocol):
    """The part of grpc's streaming call that we use."""

    async def read(self) -> object:
        """Return the next message or grpc.aio.EOF. Raises grpc.RpcError."""

    def cancel(self) -> bool:
        """End the call."""


# Starts the call with so many seconds to its deadline.
StartCall = Callable[[float], EventCall]


class AsyncStream:
    """An answer under way; get one from `AsyncClient.generate` or `.chat`.

    Iterate over it for chunks, over `events()` for progress too, or await `result()` or `text()`
    for the whole; `results()` has all answers where several were asked for. It can be read once.
    Reading raises BriskError.
    """

    def __init__(
        self,
        start_call: StartCall,
        connection: Connection,
        *,
        timeout_s: float,
        request_id: str,
        choices: int = 1,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        self.request_id = request_id
        self.start: StartReport | None = None  # set with the first chunk
        # Set with the last chunk; of several answers, the first one's.
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self._choices = choices
        self._answers: defaultdict[int, _Answer] = defaultdict(_Answer)
        self._start_call = start_call
        self._connection = connection
        self._timeout_s = timeout_s
        self._ends_s = math.inf  # by the loop's clock; set when it begins
        self._on_progress = on_progress
        self._call: EventCall | None = None
        self._begun = False
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._chunks()

    def events(self) -> AsyncIterator[Progress | Chunk]:
        """Return an iterator over progress (if it was asked for) and chunks."""
        return self._events()

    async def result(self) -> Completion:
        """Read to the end and return the whole answer, the first one if several were asked for.

        Cancelling cancels the request.
        """
        return (await self.results())[0]

    async def results(self) -> tuple[Completion, ...]:
        """Read to the end and return all answers. Cancelling cancels the request."""
        chunks: defaultdict[int, list[Chunk]] = defaultdict(list)
        async with aclosing(self._chunks()) as stream:
            async for chunk in stream:
                chunks[chunk.choice].append(chunk)
        return tuple(self._completion(chunks[choice]) for choice in range(self._choices))

    def _completion(self, chunks: list[Chunk]) -> Completion:
        last = chunks[-1] if chunks else None
        if last is None or last.finish_reason is None:
            raise asyncio.CancelledError  # another task called cancel()
        token_ids = tuple(token_id for chunk in chunks for token_id in chunk.token_ids)
        return Completion(
            text="".join(chunk.text for chunk in chunks),
            token_ids=token_ids,
            finish_reason=last.finish_reason,
            usage=last.usage or Usage(prompt_tokens=0, completion_tokens=len(token_ids)),
            start=self.start,
            request_id=self.request_id,
            choice=last.choice,
            logprobs=tuple(each for chunk in chunks for each in chunk.logprobs),
        )

    async def text(self) -> str:
        """Read to the end and return the text. Cancelling cancels the request."""
        return (await self.result()).text

    def cancel(self) -> None:
        """End the request now; whoever reads the stream sees it end. Safe to call repeatedly."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    async def _chunks(self) -> AsyncGenerator[Chunk]:
        async with aclosing(self._events()) as events:
            async for event in events:
                if isinstance(event, Chunk):
                    yield event

    async def _events(self) -> AsyncGenerator[Progress | Chunk]:
        if self._begun:
            raise RuntimeError("a stream can be read once; make a new request")
        self._begun = True
        self._ends_s = asyncio.get_running_loop().time() + self._timeout_s
        try:
            message = await self._connection.run(self._first, timeout_s=self._timeout_s, retry=True)
            while message is not grpc.aio.EOF:
                event = self._event(message)  # type: ignore[arg-type]  # only EOF is no message
                if isinstance(event, Chunk):
                    self._note(event)
                elif event is not None and self._on_progress is not None:
                    self._on_progress(event)
                if event is not None:
                    yield event
                message = await self._next()
            finished = sum(answer.is_finished for answer in self._answers.values())
            if not self._closed and finished < self._choices:
                raise StreamBrokenError("the stream ended without a finish reason")
        finally:
            self.cancel()

    async def _first(self, remaining_s: float) -> object:
        """Start the call and return its first message: until then a retry repeats nothing."""
        if not self._closed:
            self._call = self._start_call(remaining_s)
        return await self._read()

    async def _next(self) -> object:
        try:
            return await self._read()
        except grpc.RpcError as error:
            raise self._connection.error(
                error, timeout_s=self._timeout_s, ends_s=self._ends_s
            ) from error

    async def _read(self) -> object:
        if self._call is None or self._closed:
            return grpc.aio.EOF
        try:
            return await self._call.read()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                return grpc.aio.EOF  # cancel() came from elsewhere: an end, not our cancelling
            raise

    def _event(self, message: EventMessage) -> Progress | Chunk | None:
        """Return the message's event, or None for a kind that a newer server may send."""
        if message.HasField("start") and self.start is None:
            self.start = replies.start_report(message.start)
        if message.HasField("progress"):
            return replies.progress(message.progress)
        if not message.HasField("chunk"):
            return None
        return replies.chunk(message.chunk, message.choice_index)

    def _note(self, chunk: Chunk) -> None:
        """Take a chunk into account. Raises StreamBrokenError on a gap or a repeat."""
        if chunk.choice >= self._choices:
            raise StreamBrokenError(
                f"{self._choices} answers were asked for, the stream has another one",
                reason="STREAM_GAP",
            )
        self._answers[chunk.choice].take(chunk)
        if chunk.choice == 0:
            self.usage = chunk.usage or self.usage
            self.finish_reason = chunk.finish_reason or self.finish_reason


class _Answer:
    """How far one answer has come."""

    __slots__ = ("_index_next", "is_finished")

    def __init__(self) -> None:
        self._index_next = 0
        self.is_finished = False

    def take(self, chunk: Chunk) -> None:
        """Check that `chunk` is the next one. Raises StreamBrokenError on a gap or a repeat."""
        if chunk.index != self._index_next:
            raise StreamBrokenError(
                f"token {self._index_next} was due, the stream went on with {chunk.index}",
                reason="STREAM_GAP",
            )
        self._index_next += len(chunk.token_ids)
        self.is_finished = chunk.finish_reason is not None
