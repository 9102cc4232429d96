"""Bad input gets one clear refusal with limit and given value, and the router goes on serving."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import grpc
import pytest
from brisk.common.v1 import model_pb2
from brisk.inference.v1 import inference_service_pb2 as pb2

from tests.fakes.workers import FakeWorker
from tests.integration.router.house import ask, expected, run_house


def sampled(**fields: Any) -> pb2.GenerateRequest:
    return ask(4, sampling=model_pb2.SamplingParams(**fields))


def prompted(**form: Any) -> pb2.GenerateRequest:
    request = ask(4)
    request.prompt.Clear()
    request.prompt.MergeFrom(model_pb2.Prompt(**form))
    return request


# What is wrong: the request, and what the refusal must say.
BAD: dict[str, tuple[pb2.GenerateRequest, str, tuple[str, ...]]] = {
    "max_tokens 0": (sampled(max_tokens=0), "INVALID_SAMPLING", ("at least 1", "Given: 0")),
    "max_tokens -5": (sampled(max_tokens=-5), "INVALID_SAMPLING", ("at least 1", "Given: -5")),
    "temperature NaN": (sampled(temperature=math.nan), "INVALID_SAMPLING", ("0 and 10", "nan")),
    "temperature inf": (sampled(temperature=math.inf), "INVALID_SAMPLING", ("0 and 10", "inf")),
    "temperature -1": (sampled(temperature=-1.0), "INVALID_SAMPLING", ("0 and 10", "-1")),
    "top_p 0": (sampled(top_p=0.0), "INVALID_SAMPLING", ("above 0", "Given: 0")),
    "stop empty": (sampled(stop=[""]), "INVALID_SAMPLING", ("1 to 256", "''")),
    "stop texts": (sampled(stop=["x"] * 17), "INVALID_SAMPLING", ("at most 16", "17")),
    "model dots": (ask(model="../../etc"), "INVALID_NAME", ("Given: '../../etc'",)),
    "model nul": (ask(model="a\0b"), "INVALID_NAME", (r"Given: 'a\x00b'",)),
    "model 10 kB": (ask(model="m" * 10_240), "INVALID_NAME", ("at most 96", "10240")),
    "model right-to-left": (ask(model="gpt\u202etxt"), "INVALID_NAME", (r"\u202e",)),
    "model full-width": (ask(model="\uff4f\uff50\uff54"), "INVALID_NAME", ("A-Z",)),
    "request id": (ask(request_id="a\nb"), "INVALID_ARGUMENT", ("1 to 64", r"'a\nb'")),
    "request id long": (ask(request_id="a" * 65), "INVALID_ARGUMENT", ("1 to 64", "65")),
    "no prompt": (prompted(), "INVALID_ARGUMENT", ("prompt",)),
    "no tokens": (prompted(tokens=model_pb2.TokenIds()), "INVALID_ARGUMENT", ("at least 1",)),
    "long prompt": (
        prompted(text="x" * (1024 * 1024 + 1)), "PROMPT_TOO_LONG", ("1048576", "1048577"),
    ),
    "no messages": (
        prompted(conversation=model_pb2.Conversation()), "INVALID_ARGUMENT", ("1 to 1024", "0"),
    ),
}  # fmt: skip


async def test_each_bad_request_is_refused_and_a_good_one_still_served(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1")))
        for name, (request, reason, said) in BAD.items():
            error = (await house.generate(request)).error
            assert error is not None, name
            assert (error.code, error.reason) == ("INVALID_ARGUMENT", reason), name
            assert all(words in error.message for words in said), (name, error.message)
            assert error.message.isprintable(), name
            assert len(error.message) < 500, name
        assert house.worker.servicer.requests == []
        assert (await house.generate(ask(4))).tokens == expected(4)


async def test_a_chat_without_messages_is_refused(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in house.inference.Chat(pb2.ChatRequest(model="opt-125m")):
                pass
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "1 to 1024" in str(refused.value.details())


async def test_bytes_that_are_no_message_are_refused(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1")))
        raw: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
        raw = house.channel.unary_stream("/brisk.inference.v1.InferenceService/Generate")
        for body in (b"\xff\xff\xff\xff", b"\x0a\x05abc", b"\x00" * 1000):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in raw(body):
                    pass
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert refused.value.details() == "the request is no message of this method"
        assert (await house.generate(ask(4))).tokens == expected(4)
