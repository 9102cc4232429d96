"""What goes over the wire is what OpenAI's clients expect, event by event."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from services.common.errors import (
    BriskError,
    DataLossError,
    DeadlineError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.model import StartPhase, StartProgress, StartReport, Tier
from services.common.names import RequestId
from services.router.http.answers import Envelope, StreamedAnswer, WholeAnswer, describe
from services.router.http.errors import Failure, failure_of
from services.router.http.reply import Reply
from services.router.http.shapes import ChatShape, CompletionShape, Shape
from tests.fakes.workers import Chunk, Counts, Likelihood, Likely
from tests.unit.router.doubles import until

START = StartReport(cold=False, source=Tier.DEVICE)
FIRST = Chunk(first_index=0, token_ids=(1,), text="a\n")
SILENT = Chunk(first_index=1, token_ids=(2,))
LAST = Chunk(
    first_index=2,
    token_ids=(3,),
    text="b",
    finish_reason=1,
    usage=Counts(prompt_tokens=4, completion_tokens=3),
)
USAGE = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
ENVELOPE = Envelope(answer_id="id-1", created_s=5, model="m")


class Wire:
    """Takes what a server would send."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        self.is_complete = False
        self.is_stuck = False
        self.aborted = 0
        self.reply = Reply(self.send, self.abort, RequestId("r1"))

    async def send(self, message: Any) -> None:
        if self.is_stuck:
            await asyncio.Event().wait()
        if message["type"] == "http.response.start":
            assert not self.status, "the answer begins once"
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        assert self.status, "the head comes first"
        assert not self.is_complete, "nothing follows the end"
        self.text += message["body"].decode()
        self.is_complete = not message["more_body"]

    def abort(self) -> None:
        self.aborted += 1

    @property
    def events(self) -> list[Any]:
        """The events, each parsed, after checking how they are framed."""
        *frames, rest = self.text.split("\n\n")
        assert rest == ""
        data = [frame for frame in frames if not frame.startswith(":")]
        assert all(frame.startswith("data: ") and "\n" not in frame for frame in data)
        return [
            text if text == "[DONE]" else json.loads(text)
            for text in (frame.removeprefix("data: ") for frame in data)
        ]

    @property
    def comments(self) -> list[str]:
        """The comments."""
        return [f[2:] for f in self.text.split("\n\n") if f.startswith(": ")]


def streamed(wire: Wire, shape: Shape, *, wants_usage: bool = False) -> StreamedAnswer:
    return StreamedAnswer(wire.reply, shape, ENVELOPE, wants_usage=wants_usage)


async def send_all(answer: StreamedAnswer | WholeAnswer) -> None:
    async with answer:
        await answer.chunk(0, FIRST, START)
        await answer.chunk(0, SILENT, None)
        await answer.chunk(0, LAST, None)
    await answer.end()


async def test_a_streamed_chat_begins_with_the_role_and_ends_with_done() -> None:
    wire = Wire()
    await send_all(streamed(wire, ChatShape()))
    assert wire.status == 200
    assert wire.headers["content-type"].startswith("text/event-stream")
    assert wire.headers["x-request-id"] == "r1"
    assert wire.is_complete
    *chunks, done = wire.events
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "a\n"},
        {"content": "b"},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    for chunk in chunks:
        assert (chunk["id"], chunk["created"], chunk["model"]) == ("id-1", 5, "m")
        assert chunk["object"] == "chat.completion.chunk"
        assert "usage" not in chunk


async def test_usage_comes_last_and_alone_if_asked_for() -> None:
    wire = Wire()
    await send_all(streamed(wire, ChatShape(), wants_usage=True))
    *chunks, counted, _ = wire.events
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (counted["choices"], counted["usage"]) == ([], USAGE)


async def test_a_streamed_completion_is_text_only() -> None:
    wire = Wire()
    await send_all(streamed(wire, CompletionShape()))
    assert [event["choices"][0]["text"] for event in wire.events[:-1]] == ["a\n", "b"]


async def test_an_end_without_text_is_sent_all_the_same() -> None:
    wire = Wire()
    answer = streamed(wire, ChatShape())
    async with answer:
        await answer.chunk(0, Chunk(first_index=0, token_ids=(1,), finish_reason=2), START)
    await answer.end()
    assert wire.events[1]["choices"][0]["delta"] == {}
    assert wire.events[1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        (ChatShape(), "chat.completion", {"message": "a\nb"}),
        (CompletionShape(), "text_completion", {"text": "a\nb"}),
    ],
)
async def test_a_whole_answer_is_one_object(
    shape: Shape, kind: str, expected: dict[str, str]
) -> None:
    wire = Wire()
    await send_all(WholeAnswer(wire.reply, shape, ENVELOPE))
    assert wire.headers["content-length"] == str(len(wire.text))
    body = json.loads(wire.text)
    assert (body["object"], body["usage"]) == (kind, USAGE)
    [choice] = body["choices"]
    assert (choice["finish_reason"], choice["index"]) == ("stop", 0)
    if "text" in expected:
        assert choice["text"] == expected["text"]
    else:
        assert choice["message"]["content"] == expected["message"]
        assert choice["message"]["role"] == "assistant"


def loading(done: int) -> StartProgress:
    return StartProgress(phase=StartPhase.LOAD, bytes_done=done, bytes_total=100, source=Tier.SSD)


async def test_comments_tell_how_a_start_stands_once_the_patience_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.router.http.answers.PATIENCE_S", 0.01)
    wire = Wire()
    answer = streamed(wire, ChatShape())
    async with answer:
        await answer.progress(loading(37))
        assert not wire.status
        await until(lambda: wire.comments)
        await answer.progress(loading(37))
        await answer.progress(loading(90))
        await answer.chunk(0, LAST, START)
    await answer.end()
    assert wire.comments == ["loading 37 %, from ssd", "loading 90 %, from ssd"]
    assert len(wire.events) == 3


async def test_comments_keep_coming_while_nothing_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.router.http.answers.PATIENCE_S", 0.001)
    monkeypatch.setattr("services.router.http.answers.BEAT_S", 0.001)
    wire = Wire()
    async with streamed(wire, ChatShape()):
        await until(lambda: len(wire.comments) >= 3)
    assert set(wire.comments) == {"waiting for a slot"}


async def test_no_comment_comes_after_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.router.http.answers.PATIENCE_S", 0.001)
    monkeypatch.setattr("services.router.http.answers.BEAT_S", 0.001)
    wire = Wire()
    answer = streamed(wire, ChatShape())
    async with answer:
        await answer.chunk(0, FIRST, START)
        before = wire.text
        await asyncio.sleep(0.02)
        assert wire.text == before


async def test_no_comment_comes_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.router.http.answers.PATIENCE_S", 0.001)
    monkeypatch.setattr("services.router.http.answers.BEAT_S", 0.001)
    wire = Wire()

    async def fail_while_starting() -> None:
        async with streamed(wire, ChatShape()):
            await until(lambda: wire.comments)
            raise UnavailableError("gone")

    with pytest.raises(UnavailableError):
        await fail_while_starting()
    before = wire.text
    await asyncio.sleep(0.02)
    assert wire.text == before


def test_a_start_is_described_with_what_is_known_of_it() -> None:
    queued = StartProgress(phase=StartPhase.QUEUE, detail="no device is idle")
    assert describe(queued) == "waiting for a device (no device is idle)"
    assert describe(loading(37)) == "loading 37 %, from ssd"
    assert describe(StartProgress(phase=StartPhase.UNSPECIFIED)) == "starting"


async def test_a_comment_cannot_smuggle_an_event() -> None:
    wire = Wire()
    await wire.reply.comment("a\r\n\ndata: b")
    assert wire.text == ": a data: b\n\n"


async def test_an_error_before_the_stream_is_a_status_and_one_within_it_an_event() -> None:
    failure = Failure(status=503, message="gone", code="worker_lost", retry_after_s=1.2)
    before, within = Wire(), Wire()
    await before.reply.fail(failure)
    assert (before.status, before.headers["retry-after"]) == (503, "2")
    assert before.headers["retry-after-ms"] == "1200"
    await within.reply.comment("loading")
    await within.reply.fail(failure)
    assert within.status == 200
    assert within.events == [json.loads(before.text)]
    assert within.is_complete
    await within.reply.fail(failure)  # the second is too late


async def test_who_does_not_take_the_last_words_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.router.http.reply._LAST_WORDS_S_MAX", 0.01)
    wire = Wire()
    await wire.reply.comment("x")
    wire.is_stuck = True
    await wire.reply.end_events()
    assert wire.aborted == 1


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidArgumentError("x"), 400, "invalid_request_error", "invalid_argument"),
        (
            InvalidArgumentError("x", reason=Reason.PROMPT_TOO_LONG),
            400,
            "invalid_request_error",
            "context_length_exceeded",
        ),
        (
            NotFoundError("x", reason=Reason.MODEL_NOT_FOUND),
            404,
            "invalid_request_error",
            "model_not_found",
        ),
        (
            ResourceExhaustedError("x", reason=Reason.QUEUE_FULL, retry_after_s=1.0),
            429,
            "rate_limit_error",
            "queue_full",
        ),
        (
            ResourceExhaustedError("x", reason=Reason.INSUFFICIENT_MEMORY),
            503,
            "server_error",
            "insufficient_memory",
        ),
        (UnavailableError("x", reason=Reason.NO_WORKER), 503, "server_error", "no_worker"),
        (DeadlineError("x"), 504, "server_error", "deadline_exceeded"),
        (DataLossError("x"), 500, "server_error", "data_loss"),
        (InternalError("x"), 500, "server_error", "internal"),
    ],
)
def test_each_error_has_its_status(error: BriskError, status: int, kind: str, code: str) -> None:
    failure = failure_of(error)
    body: Any = failure.body["error"]
    assert (failure.status, body["type"], body["code"]) == (status, kind, code)


def test_clients_are_told_when_repeating_is_no_use() -> None:
    final = failure_of(ResourceExhaustedError("x", reason=Reason.INSUFFICIENT_MEMORY))
    assert ("x-should-retry", "false") in final.all_headers()
    waiting = failure_of(ResourceExhaustedError("x", reason=Reason.QUEUE_FULL, retry_after_s=0.05))
    assert ("x-should-retry", "false") not in waiting.all_headers()
    assert ("retry-after", "1") in waiting.all_headers()


EURO = Likely(
    chosen=Likelihood(token_id=1, logprob=-0.5, piece=b"\xe2\x82"),
    top=(
        Likelihood(token_id=1, logprob=-0.5, piece=b"\xe2\x82"),
        Likelihood(token_id=2, logprob=-1.5, piece=b" a"),
    ),
)
WORD = Likely(chosen=Likelihood(token_id=2, logprob=-0.25, piece=b"word"))
HALF = Chunk(first_index=0, token_ids=(1,), logprobs=(EURO,))
REST = Chunk(
    first_index=1,
    token_ids=(2,),
    text="word",
    finish_reason=2,
    usage=Counts(prompt_tokens=4, completion_tokens=2),
    logprobs=(WORD,),
)


async def both(shape: Shape) -> tuple[Any, list[Any]]:
    """Return the choice of the whole answer, and those of the stream."""
    whole, events = Wire(), Wire()
    for answer in (WholeAnswer(whole.reply, shape, ENVELOPE), streamed(events, shape)):
        async with answer:
            await answer.chunk(0, HALF, START)
            await answer.chunk(0, REST, None)
        await answer.end()
    [choice] = json.loads(whole.text)["choices"]
    return choice, [event["choices"][0] for event in events.events[:-1]]


async def test_logprobs_of_a_chat_come_token_by_token_with_their_bytes() -> None:
    whole, (_, first, second) = await both(ChatShape())
    euro, word = whole["logprobs"]["content"]
    assert (euro["token"], euro["logprob"], euro["bytes"]) == ("bytes:\\xe2\\x82", -0.5, [226, 130])
    assert [each["token"] for each in euro["top_logprobs"]] == ["bytes:\\xe2\\x82", " a"]
    assert (word["token"], word["top_logprobs"]) == ("word", [])
    assert first["logprobs"]["content"] == [euro]  # before the character is whole
    assert first["delta"] == {}
    assert second["logprobs"]["content"] == [word]


async def test_logprobs_of_a_completion_come_side_by_side() -> None:
    whole, (first, second) = await both(CompletionShape())
    assert whole["logprobs"] == {
        "tokens": ["bytes:\\xe2\\x82", "word"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"bytes:\\xe2\\x82": -0.5, " a": -1.5}, {}],
        "text_offset": [0, 14],
    }
    for name, values in whole["logprobs"].items():
        assert first["logprobs"][name] + second["logprobs"][name] == values


async def test_without_logprobs_there_are_none() -> None:
    wire = Wire()
    await send_all(streamed(wire, ChatShape()))
    assert all(event["choices"][0]["logprobs"] is None for event in wire.events[:-1])


async def test_several_answers_are_told_apart_and_their_tokens_added_up() -> None:
    other = replace(LAST, text="c", usage=Counts(prompt_tokens=4, completion_tokens=9))
    whole, stream = Wire(), Wire()
    counted = streamed(stream, ChatShape(), wants_usage=True)
    for answer in (WholeAnswer(whole.reply, ChatShape(), ENVELOPE), counted):
        async with answer:
            await answer.chunk(1, FIRST, START)
            await answer.chunk(0, FIRST, START)
            await answer.chunk(0, other, None)
            await answer.chunk(1, LAST, None)
        await answer.end()
    body = json.loads(whole.text)
    assert [(each["index"], each["message"]["content"]) for each in body["choices"]] == [
        (0, "a\nc"),
        (1, "a\nb"),
    ]
    usage = {"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16}
    assert body["usage"] == usage
    *chunks, last, _ = stream.events
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [1, 1, 0, 0, 0, 1]
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks][::2] == [
        "assistant",
        "assistant",
        None,
    ]
    assert last["usage"] == usage
