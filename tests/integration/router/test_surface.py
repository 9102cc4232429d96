"""Through a real router process: several answers, tokens without an answer, clients that stall."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from brisk.common.v1 import model_pb2
from brisk.inference.v1 import inference_service_pb2 as pb2

from services.common.errors import Reason
from services.common.sampling import seed_of_choice
from tests.fakes.workers import FakeWorker, continuation
from tests.integration.router.fake_worker import MODEL, until
from tests.integration.router.house import PROMPT, SEED, House, ask, run_house
from tests.integration.router.http_client import COMPLETION, HttpAnswer, connect
from tests.integration.router.http_client import ask as http_ask


def text_request(text: str = "hi", model: str = MODEL) -> pb2.TokenizeRequest:
    return pb2.TokenizeRequest(model=model, prompt=model_pb2.Prompt(text=text))


async def post(house: House, path: str, **members: Any) -> HttpAnswer:
    return await http_ask(house.router.http_address, "POST", path, {"model": MODEL, **members})


async def test_several_answers_are_sequences_of_their_own(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1"), slots=2))
        tokens: dict[int, list[int]] = {}
        starts: list[int] = []
        async for response in house.inference.Generate(ask(5, choices=3)):
            tokens.setdefault(response.choice_index, []).extend(response.chunk.token_ids)
            starts += [response.choice_index] if response.HasField("start") else []
        prompt = tuple(PROMPT.encode())
        assert tokens == {
            index: continuation(prompt, seed_of_choice(SEED, index), 5) for index in range(3)
        }
        assert sorted(starts) == [0, 1, 2]
        answer = await post(house, COMPLETION, prompt="hi", n=3, max_tokens=4)
        assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2]
        assert answer.json["usage"]["completion_tokens"] == 12
        refused = await post(house, COMPLETION, prompt="hi", n=17)
        assert (refused.status, refused.error["param"]) == (400, "n")
        await until(lambda: "brisk_router_num_requests_running 0.0" in house.router.metrics())


async def test_tokens_are_told_warm_and_cold_and_take_no_slot(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        house.scheduler.startable["i1"] = house.worker.hold(FakeWorker(name="i1"), slots=1)
        house.scheduler.started.set()
        told = await house.inference.Tokenize(text_request())
        assert (list(told.token_ids), list(told.pieces)) == ([104, 105], [b"h", b"i"])
        assert told.context_tokens_max == 64
        await house.knows(1)
        house.worker.servicer.instances["i1"].is_silent = True
        house.worker.servicer.instances["i1"].lives_for = 1
        stream = await house.begin(ask(4))  # has the only slot, and keeps it
        answer = await post(house, "/tokenize", prompt="hi", return_token_strs=True)
        assert answer.json == {
            "count": 2,
            "max_model_len": 64,
            "tokens": [104, 105],
            "token_strs": ["h", "i"],
        }
        stream.call.cancel()


async def test_a_question_moves_on_from_an_instance_that_is_gone(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        here = house.worker.hold(FakeWorker(name="i2"))
        await house.serve(house.worker.route("i1"), here)  # i1 is in the table only
        for _ in range(2):
            assert (await house.inference.Tokenize(text_request())).token_ids
        missing = await http_ask(
            house.router.http_address, "POST", "/tokenize", {"model": "opt-13b", "prompt": "x"}
        )
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")


LONG = 200_000  # tokens


async def test_a_client_that_stops_reading_loses_its_answer_over_grpc(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, unread_s_max=0.2) as house:
        worker = FakeWorker(name="i1", tokens_per_chunk=1_000)
        await house.serve(house.worker.hold(worker))
        stream = await house.begin(ask(LONG))
        await until(lambda: not worker.running)
        answer = await stream.rest()  # what was on its way, and why it ended
        assert answer.error is not None
        assert answer.error.reason == Reason.SLOW_CONSUMER
        assert 0 < len(answer.tokens) < LONG
        assert worker.given_up
        assert 'reason="SLOW_CONSUMER"' in house.router.metrics()


async def test_a_client_that_stops_reading_loses_its_answer_over_http(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, unread_s_max=0.2) as house:
        worker = FakeWorker(name="i1", tokens_per_chunk=20_000)
        await house.serve(house.worker.hold(worker))
        body = json.dumps(
            {"model": MODEL, "prompt": "hi", "max_tokens": 20 * LONG, "stream": True}
        ).encode()
        async with connect(house.router.http_address) as connection:
            stalled: socket.socket = connection.writer.get_extra_info("socket")
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await connection.send("POST", COMPLETION, body, {"content-type": "application/json"})
            await until(lambda: worker.given_up)
            await until(lambda: 'reason="SLOW_CONSUMER"' in house.router.metrics())


async def test_what_cannot_be_a_constraint_is_refused_before_a_model_is_started(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        request = ask(4)
        request.sampling.constraint.json_schema = "{"
        refused = (await house.generate(request)).error
        assert refused is not None
        assert refused.reason == Reason.INVALID_CONSTRAINT
        answer = await post(house, COMPLETION, prompt="hi", response_format={"type": "json_schema"})
        assert (answer.status, answer.error["param"]) == (400, "response_format.json_schema")
        assert house.scheduler.acquired == []
