"""Through a real router process: HTTP requests live, end and leave nothing behind as gRPC's do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from services.common.errors import Reason, ResourceExhaustedError, UnavailableError
from tests.fakes.workers import FakeWorker
from tests.integration.router.fake_worker import MODEL, until
from tests.integration.router.house import SEED, House, run_house, run_router
from tests.integration.router.http_client import CHAT, COMPLETION, HttpAnswer, ask, connect


def chat(tokens: int = 4, **members: Any) -> dict[str, Any]:
    turn = {"role": "user", "content": "hi"}
    return {"model": MODEL, "messages": [turn], "max_tokens": tokens, "seed": SEED, **members}


async def post(house: House, body: bytes | dict[str, Any], path: str = CHAT) -> HttpAnswer:
    return await ask(house.router.http_address, "POST", path, body)


def events(body: bytes) -> list[str]:
    return [part.removeprefix("data: ") for part in body.decode().split("\n\n") if part]


async def test_a_warm_chat_is_answered_without_the_scheduler(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1")))
        answer = await post(house, chat(8))
        assert answer.status == 200
        [choice] = answer.json["choices"]
        assert choice["message"]["content"] == "x" * 8
        assert choice["finish_reason"] == "length"
        prompt_tokens = len("user: hi")
        assert answer.json["usage"] == {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 8,
            "total_tokens": prompt_tokens + 8,
        }
        assert house.scheduler.acquired == []


async def test_the_worker_gets_exactly_what_was_ordered(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1")))
        sampling = {"temperature": 0.5, "top_p": 0.25, "top_k": 3, "stop": ["z"], "seed": -1}
        sampling |= {"presence_penalty": 0.5, "frequency_penalty": -1, "repetition_penalty": 2}
        sampling |= {"min_p": 0.125, "min_tokens": 2, "logit_bias": {"5": -3}, "logprobs": 4}
        sampling |= {"structured_outputs": {"regex": "a+"}}
        await post(house, {"model": MODEL, "prompt": "hi", "max_tokens": 3, **sampling}, COMPLETION)
        [sent] = house.worker.servicer.requests
        assert sent.prompt.text == "hi"
        assert sent.sampling.temperature == 0.5
        assert sent.sampling.top_p == 0.25
        assert sent.sampling.top_k == 3
        assert list(sent.sampling.stop) == ["z"]
        assert sent.sampling.seed == 2**64 - 1
        assert sent.sampling.max_tokens == 3
        assert sent.sampling.min_tokens == 2
        assert sent.sampling.min_p == 0.125
        assert sent.sampling.presence_penalty == 0.5
        assert sent.sampling.frequency_penalty == -1
        assert sent.sampling.repetition_penalty == 2
        assert [(bias.token_id, bias.bias) for bias in sent.sampling.logit_bias] == [(5, -3)]
        assert sent.sampling.top_logprobs == 4
        assert sent.sampling.constraint.regex == "a+"


async def test_the_request_id_goes_in_and_out(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1")))
        address = house.router.http_address
        answer = await ask(address, "POST", CHAT, chat(), {"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.json["id"] == "chatcmpl-mine-1"
        assert house.worker.servicer.request_ids == ["mine-1"]
        other = await ask(address, "POST", CHAT, chat(), {"x-request-id": "no good\t!"})
        assert other.status == 200
        assert other.headers["x-request-id"] == house.worker.servicer.request_ids[1]


async def test_while_a_model_starts_comments_tell_how_it_stands(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        house.scheduler.startable["i1"] = house.worker.hold(FakeWorker(name="i1"))
        async with connect(house.router.http_address) as connection:
            body = json.dumps(chat(2, stream=True)).encode()
            await connection.send("POST", CHAT, body, {"content-type": "application/json"})
            head = await connection.head()
            assert head.headers["content-type"].startswith("text/event-stream")
            parts = aiter(connection.parts())
            assert await anext(parts) == b": loading 50 %, from ssd\n\n"
            house.scheduler.started.set()
            rest = b"".join([part async for part in parts])
        told = [line for line in rest.decode().split("\n\n") if line.startswith(":")]
        assert told == [": reading the prompt"]
        assert events(rest)[-1] == "[DONE]"


async def test_an_error_that_comes_soon_has_a_status_even_in_a_stream(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        answer = await post(house, chat(stream=True, model="opt-13b"))
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert answer.error["param"] == "model"


async def test_an_error_after_the_first_token_ends_the_stream_with_an_event(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1", lives_for=2)))
        answer = await post(house, chat(8, stream=True))
        assert answer.status == 200
        *_, last = events(answer.body)
        assert json.loads(last)["error"]["code"] == Reason.WORKER_LOST.lower()
        whole = await post(house, chat(8))
        assert (whole.status, whole.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("kind", ["streamed", "whole"])
async def test_a_client_that_leaves_frees_its_sequence(
    redis_url: str, tmp_path: Path, kind: str
) -> None:
    is_streamed = kind == "streamed"
    async with run_house(redis_url, tmp_path) as house:
        pace = asyncio.Semaphore(2)
        worker = FakeWorker(name="i1", pace=pace)
        await house.serve(house.worker.hold(worker))
        async with connect(house.router.http_address) as connection:
            body = json.dumps(chat(50, stream=is_streamed)).encode()
            await connection.send("POST", CHAT, body, {"content-type": "application/json"})
            if is_streamed:
                await connection.head()
            await until(lambda: worker.running)
        await house.worker.servicer.cancelled.acquire()
        await until(lambda: not worker.running)
        await house.shows('brisk_requests_total{outcome="cancelled",reason="CANCELLED"} 1.0')
        await house.shows(f'brisk_http_requests_total{{code="499",path="{CHAT}"}} 1.0')
        await house.shows("brisk_http_connections 0.0")
        for _ in range(5):
            pace.release()
        assert (await post(house, chat(1))).status == 200  # its slot is free again


async def test_a_client_that_leaves_while_a_model_starts_gives_the_start_up(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        house.scheduler.startable["i1"] = house.worker.hold(FakeWorker(name="i1"))
        async with connect(house.router.http_address) as connection:
            body = json.dumps(chat()).encode()
            await connection.send("POST", CHAT, body, {"content-type": "application/json"})
            await until(lambda: house.scheduler.acquiring)
        await house.scheduler.given_up.acquire()


async def test_models_are_listed_and_found(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        address = house.router.http_address
        listed = (await ask(address, "GET", "/v1/models")).json
        assert listed["object"] == "list"
        [model] = listed["data"]
        assert (model["id"], model["object"], model["state"]) == (MODEL, "model", "ready")
        missing = await ask(address, "GET", "/v1/models/org/opt-13b")
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")
        for odd in ("a/b/c", "..", "a%2f%2fb", "%00", ""):
            assert (await ask(address, "GET", f"/v1/models/{odd}")).status == 404


async def test_a_full_router_says_when_to_come_back(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path, requests_max=1) as house:
        worker = FakeWorker(name="i1", pace=asyncio.Semaphore(0))
        await house.serve(house.worker.hold(worker))
        async with connect(house.router.http_address) as connection:
            body = json.dumps(chat()).encode()
            await connection.send("POST", CHAT, body, {"content-type": "application/json"})
            await until(lambda: worker.running)
            refused = await post(house, chat())
        assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        assert int(refused.headers["retry-after-ms"]) >= 1


async def test_openais_client_repeats_what_a_full_router_refused(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, requests_max=1) as house:
        pace = asyncio.Semaphore(0)
        worker = FakeWorker(name="i1", pace=pace)
        await house.serve(house.worker.hold(worker))
        first = asyncio.create_task(post(house, chat(1)))
        await until(lambda: worker.running)
        url = f"http://{house.router.http_address}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=9) as api:
            second = asyncio.create_task(
                api.completions.create(model=MODEL, prompt="hi", max_tokens=1)
            )
            await house.shows(f'brisk_http_requests_total{{code="429",path="{COMPLETION}"}}')
            pace.release()
            pace.release()
            assert (await second).choices[0].text == "x"
        assert (await first).status == 200


async def test_openais_client_does_not_repeat_what_is_no_use(
    redis_url: str, tmp_path: Path
) -> None:
    refusal = ResourceExhaustedError("needs 9 bytes, has 5", reason=Reason.INSUFFICIENT_MEMORY)
    async with run_house(redis_url, tmp_path) as house:
        worker = FakeWorker(name="i1", refusal=refusal)
        await house.serve(house.worker.hold(worker))
        url = f"http://{house.router.http_address}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=9) as api:
            with pytest.raises(openai.InternalServerError, match="needs 9 bytes"):
                await api.completions.create(model=MODEL, prompt="hi")
        assert len(worker.requests) == 1


async def test_openais_client_sees_comments_as_nothing_and_errors_as_errors(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        house.scheduler.startable["i1"] = house.worker.hold(FakeWorker(name="i1", lives_for=2))
        url = f"http://{house.router.http_address}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as api:
            stream = await api.completions.create(model=MODEL, prompt="hi", stream=True)
            house.scheduler.started.set()  # the stream has begun: with a comment
            chunks = aiter(stream)
            assert [(await anext(chunks)).choices[0].text for _ in range(2)] == ["x", "x"]
            with pytest.raises(openai.APIError, match="worker was lost"):
                await anext(chunks)


async def test_a_refusal_of_the_worker_keeps_its_meaning(redis_url: str, tmp_path: Path) -> None:
    refusal = ResourceExhaustedError("needs 9 bytes, has 5", reason=Reason.INSUFFICIENT_MEMORY)
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1", refusal=refusal)))
        answer = await post(house, chat())
        assert (answer.status, answer.error["message"]) == (503, "needs 9 bytes, has 5")
        assert answer.headers["x-should-retry"] == "false"


async def test_a_request_that_takes_too_long_ends_with_504(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path, request_s_default=0.2) as house:
        worker = FakeWorker(name="i1", pace=asyncio.Semaphore(1))
        await house.serve(house.worker.hold(worker))
        assert (await post(house, chat())).status == 504
        await until(lambda: not worker.running)


async def test_unknown_paths_and_methods_are_told(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        address = house.router.http_address
        for path in ("/", "/v1", "/v2/models", "/v1/chat/completions/", "/%ff%00"):
            answer = await ask(address, "GET", path)
            assert (answer.status, answer.error["code"]) == (404, "unknown_url")
        wrong = await ask(address, "GET", CHAT)
        assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
        assert (await ask(address, "DELETE", "/v1/models")).headers["allow"] == "GET, HEAD"
        health = await ask(address, "GET", "/health")
        assert (health.status, health.json) == (200, {"status": "ok"})
        assert (await ask(address, "GET", "/ready")).status == 200
        await house.shows('brisk_http_requests_total{code="404",path="other"} 5.0')


async def test_draining_turns_ready_off_and_lets_streams_finish(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, announce_s=1.0) as house:
        pace = asyncio.Semaphore(1)
        await house.serve(house.worker.hold(FakeWorker(name="i1", pace=pace)))
        address = house.router.http_address
        async with connect(address) as connection, connect(address) as idle:
            body = json.dumps(chat(6, stream=True)).encode()
            await connection.send("POST", CHAT, body, {"content-type": "application/json"})
            await connection.head()
            house.router.terminate()
            while (ready := await ask(address, "GET", "/ready")).status == 200:
                continue
            assert (ready.status, ready.error["code"]) == (503, "shutting_down")
            assert (await post(house, chat())).status == 503
            assert await idle.is_closed()
            with pytest.raises(ConnectionError):
                await ask(address, "GET", "/health")
            for _ in range(6):
                pace.release()
            rest = b"".join([part async for part in connection.parts()])
            assert events(rest)[-1] == "[DONE]"
            assert await connection.is_closed()
        assert await house.router.ended() == 0


async def test_what_outlives_the_drain_is_told_so(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path, drain_s=0.6) as house:
        worker = FakeWorker(name="i1", pace=asyncio.Semaphore(1))
        await house.serve(house.worker.hold(worker))
        async with connect(house.router.http_address) as connection:
            body = json.dumps(chat(6, stream=True)).encode()
            await connection.send("POST", CHAT, body, {"content-type": "application/json"})
            await connection.head()
            house.router.terminate()
            rest = b"".join([part async for part in connection.parts()])
            assert json.loads(events(rest)[-1])["error"]["code"] == "shutting_down"
        assert await house.router.ended() == 0


async def test_a_client_that_does_not_read_does_not_hold_the_drain_up(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, drain_s=1) as house:
        worker = FakeWorker(name="i1")
        await house.serve(house.worker.hold(worker))
        async with connect(house.router.http_address) as connection:
            connection.reader._transport.pause_reading()  # type: ignore[attr-defined] # noqa: SLF001
            body = json.dumps(chat(200_000, stream=True)).encode()
            await connection.send("POST", CHAT, body, {"content-type": "application/json"})
            await until(lambda: worker.running)
            house.router.terminate()
            async with asyncio.timeout(10):
                assert await house.router.ended() == 0


async def test_the_endpoint_can_be_turned_off(redis_url: str, tmp_path: Path) -> None:
    async with run_router(redis_url, tmp_path, http_listen="") as router:
        assert router.http_address == ""


async def test_other_machines_are_let_in_with_a_warning_only(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_router(redis_url, tmp_path, http_listen="0.0.0.0:0") as router:
        assert "without authentication" in router.log
        assert "BRISK_ROUTER_HTTP_LISTEN" in router.log


async def test_a_taken_port_is_refused_by_its_setting(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    async with run_router(redis_url, tmp_path / "first") as router:
        taken = router.http_address
        with pytest.raises(AssertionError, match="BRISK_ROUTER_HTTP_LISTEN"):
            async with run_router(redis_url, tmp_path / "second", http_listen=taken):
                pass


async def test_a_lost_worker_before_the_first_token_is_not_the_clients_concern(
    redis_url: str, tmp_path: Path
) -> None:
    gone = UnavailableError("gone", reason=Reason.WORKER_LOST)
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(
            house.worker.hold(FakeWorker(name="i1", refusal=gone)),
            house.worker.hold(FakeWorker(name="i2")),
        )
        answer = await post(house, chat(3))
        assert answer.json["choices"][0]["message"]["content"] == "xxx"
