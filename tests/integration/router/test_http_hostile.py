"""Nothing a client sends over HTTP makes the router fail, hang or forget its limits."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.workers import FakeWorker
from tests.integration.router.fake_worker import MODEL, until
from tests.integration.router.house import RouterProcess, run_house, run_router
from tests.integration.router.http_client import CHAT, COMPLETION, ask, connect

TURN = {"role": "user", "content": "hi"}
READ_S = 0.4


@pytest.fixture
async def router(redis_url: str, tmp_path: Path) -> AsyncIterator[RouterProcess]:
    """Run a router with tight limits; it must not log a traceback, and serve to the end."""
    limits: dict[str, Any] = {
        "http_read_s_max": READ_S,
        "http_body_bytes_max": 65_536,
        "http_connections_max": 8,
    }
    async with run_router(redis_url, tmp_path, **limits) as made:
        yield made
        assert (await ask(made.http_address, "GET", "/health")).status == 200


BODIES: list[bytes] = [
    b"",
    b"{",
    b"nonsense",
    b"\xff\xfe{}",
    b'{"model": "\xff"}',
    b'{"model": "\\ud800"}',
    b"\xef\xbb\xbf{}",
    b"[" * 30_000,
    b'{"a":' * 10_000,
    b'{"model": ' + b"9" * 30_000 + b"}",
    b'{"temperature": 1e999}',
    b'{"temperature": NaN}',
    b"null",
    b"{} {}",
    b"[" + b"0," * 20_000 + b"0]",
    b'{"messages": ' + b"[" * 150 + b"]" * 150 + b"}",
]


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
async def test_a_body_that_is_no_order_is_a_400(router: RouterProcess, path: str) -> None:
    for body in BODIES:
        typed = {"content-type": "application/json"}
        answer = await ask(router.http_address, "POST", path, body, typed)
        assert answer.status == 400, body[:40]
        assert answer.error["type"] == "invalid_request_error"
        assert len(answer.error["message"]) < 400


async def test_members_of_any_type_never_fail_the_router(router: RouterProcess) -> None:
    odd: list[Any] = [None, True, 0, -1, 2**70, 1.5, "", "x" * 999, "\0", [], [[]], {}, {"a": [1]}]
    names = ["model", "messages", "prompt", "temperature", "top_p", "top_k", "seed", "stop", "n"]
    names += ["max_tokens", "max_completion_tokens", "stream", "stream_options", "stop_token_ids"]
    draw = random.Random(7)  # noqa: S311 - chooses inputs
    base = {"model": MODEL, "messages": [TURN], "prompt": "hi"}
    for _ in range(150):
        members = {name: draw.choice(odd) for name in draw.sample(names, draw.randint(1, 4))}
        path = draw.choice([CHAT, COMPLETION])
        body = {**base, **members}
        body.pop("prompt" if path == CHAT else "messages", None)
        if body.get("model") == MODEL:
            body["model"] = "a b"  # never a name: an order that is fine goes no further
        answer = await ask(router.http_address, "POST", path, body)
        assert answer.status == 400, body
        assert answer.error["message"]


async def test_messages_of_any_type_never_fail_the_router(router: RouterProcess) -> None:
    odd: list[Any] = [None, 5, "x", [], {}, {"role": None}, {"role": "u" * 65, "content": "x"}]
    contents: list[Any] = [5, {}, [5], [{"type": 5}], True]
    odd += [{"role": "user", "content": each} for each in contents]
    for each in odd:
        body = {"model": MODEL, "messages": [TURN, each]}
        answer = await ask(router.http_address, "POST", CHAT, body)
        assert answer.status == 400
        assert answer.error["param"].startswith("messages[1]")


async def test_only_json_is_read(router: RouterProcess) -> None:
    body = json.dumps({"model": MODEL, "messages": [TURN]}).encode()
    for given in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"):
        answer = await ask(router.http_address, "POST", CHAT, body, {"content-type": given})
        assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


async def test_a_body_too_large_is_a_413_whether_declared_or_not(router: RouterProcess) -> None:
    typed = {"content-type": "application/json"}
    answer = await ask(router.http_address, "POST", CHAT, b"x" * 70_000, typed)
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    async with connect(router.http_address) as connection:
        chunked = {"transfer-encoding": "chunked", **typed}
        lines = [f"POST {CHAT} HTTP/1.1", "host: t", *(f"{k}: {v}" for k, v in chunked.items())]
        await connection.raw("\r\n".join((*lines, "", "")).encode())
        for _ in range(3):
            await connection.raw(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        await connection.raw(b"0\r\n\r\n")
        assert (await connection.answer()).status == 413
    async with connect(router.http_address) as connection:
        await connection.send("POST", CHAT, b"", {"content-length": "999999999", **typed})
        assert (await connection.answer()).status == 413
        assert await connection.is_closed()


async def test_a_client_that_asks_first_is_told_to_go_on(router: RouterProcess) -> None:
    async with connect(router.http_address) as connection:
        head = {"content-length": "2", "expect": "100-continue", "content-type": "application/json"}
        await connection.send("POST", CHAT, b"", head)
        assert (await connection.head()).status == 100
        await connection.raw(b"{}")
        assert (await connection.answer()).error["param"] == "messages"


async def test_who_dawdles_is_cut_off(router: RouterProcess) -> None:
    address = router.http_address
    async with connect(address) as silent, connect(address) as head, connect(address) as body:
        await head.raw(b"POST /v1/ch")
        typed = {"content-type": "application/json", "content-length": "100"}
        await body.send("POST", CHAT, b"{", typed)
        late_head, late_body = await head.answer(), await body.answer()
        assert (late_head.status, late_head.error["code"]) == (408, "request_timeout")
        assert (late_body.status, late_body.error["code"]) == (408, "request_timeout")
        for connection in (silent, head, body):
            assert await connection.is_closed()


async def test_an_answer_may_take_longer_than_its_request(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path, http_read_s_max=0.2) as house:
        worker = FakeWorker(name="i1", pace=asyncio.Semaphore(0))
        await house.serve(house.worker.hold(worker))
        async with connect(house.router.http_address) as connection:
            body = json.dumps({"model": MODEL, "messages": [TURN], "max_tokens": 1}).encode()
            await connection.send("POST", CHAT, body, {"content-type": "application/json"})
            await until(lambda: worker.running)
            await asyncio.sleep(0.5)
            assert worker.pace is not None
            worker.pace.release()
            assert (await connection.answer()).status == 200
            await asyncio.sleep(0.5)  # idle, which has a limit of its own
            await connection.send("GET", "/health")
            assert (await connection.answer()).status == 200


async def test_a_refused_order_costs_no_connection(router: RouterProcess) -> None:
    typed = {"content-type": "application/json"}
    async with connect(router.http_address) as connection:
        for body in (b"{", b"x" * 70_000, b"[]"):
            await connection.send("POST", CHAT, body, typed)
            answer = await connection.answer()
            assert answer.status in {400, 413}
            assert "connection" not in answer.headers


async def test_a_body_that_nobody_reads_costs_its_connection(router: RouterProcess) -> None:
    for method, path in (("POST", "/nowhere"), ("PUT", CHAT), ("GET", "/health")):
        async with connect(router.http_address) as connection:
            await connection.send(method, path, b"", {"content-length": "5000"})
            assert (await connection.answer()).headers["connection"] == "close"
            assert await connection.is_closed()


async def test_a_head_that_drips_has_one_limit_in_all(router: RouterProcess) -> None:
    async def drip() -> None:
        while True:
            await connection.raw(b"y")
            await asyncio.sleep(READ_S / 20)

    async with connect(router.http_address) as connection, asyncio.timeout(20 * READ_S):
        await connection.raw(b"GET / HTTP/1.1\r\nx: ")
        with pytest.raises(ConnectionError):
            await drip()


async def test_a_head_too_large_is_a_431(router: RouterProcess) -> None:
    async with connect(router.http_address) as connection:
        await connection.raw(b"GET / HTTP/1.1\r\n")
        for _ in range(20):
            await connection.raw(b"x-pad: " + b"y" * 8_000 + b"\r\n")
        answer = await connection.answer()
    assert (answer.status, answer.error["code"]) == (431, "head_too_large")


async def test_what_is_not_http_is_a_400(router: RouterProcess) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    ):
        async with connect(router.http_address) as connection:
            await connection.raw(garbage)
            answer = await connection.answer()
            assert answer.status in {400, 404}, garbage
            assert answer.error["message"]


async def test_too_many_connections_are_refused_and_room_is_found_again(
    router: RouterProcess,
) -> None:
    address = router.http_address
    held = [connect(address) for _ in range(8)]
    for each in held:
        connection = await each.__aenter__()
        await connection.send("GET", "/health")
        await connection.answer()
    async with connect(address) as refused:
        answer = await refused.answer()
        assert (answer.status, answer.error["code"]) == (503, "queue_full")
        assert answer.headers["retry-after"] == "1"
        assert await refused.is_closed()
    for each in held:
        await each.__aexit__(None, None, None)
    await until(lambda: "brisk_http_connections 0.0" in router.metrics())


async def test_requests_sent_far_ahead_end_the_connection(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        worker = FakeWorker(name="i1", pace=asyncio.Semaphore(0))
        await house.serve(house.worker.hold(worker))
        async with connect(house.router.http_address) as connection:
            body = json.dumps({"model": MODEL, "messages": [TURN]}).encode()
            await connection.send("POST", CHAT, body, {"content-type": "application/json"})
            await until(lambda: worker.running)
            await connection.raw(b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n" * 100)
            assert await connection.is_closed()
        await until(lambda: not worker.running)


async def test_a_client_that_leaves_is_noticed_behind_a_request_sent_ahead(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        worker = FakeWorker(name="i1", pace=asyncio.Semaphore(0))
        await house.serve(house.worker.hold(worker))
        async with connect(house.router.http_address) as connection:
            body = json.dumps({"model": MODEL, "messages": [TURN]}).encode()
            await connection.send("POST", CHAT, body, {"content-type": "application/json"})
            await until(lambda: worker.running)
            await connection.send("GET", "/health")
        await until(lambda: not worker.running)


async def test_a_few_requests_sent_ahead_are_answered_in_turn(router: RouterProcess) -> None:
    async with connect(router.http_address) as connection:
        await connection.raw(b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n" * 4)
        for _ in range(4):
            assert (await connection.answer()).status == 200


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(
    router: RouterProcess,
) -> None:
    async with connect(router.http_address) as connection:
        typed = {"content-type": "application/json", "content-length": "100"}
        await connection.send("POST", CHAT, b"{", typed)
        running = f'brisk_http_requests_running{{path="{CHAT}"}} '
        await until(lambda: running + "1.0" in router.metrics())
    await until(lambda: running + "0.0" in router.metrics())
