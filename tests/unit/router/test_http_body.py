"""Bodies are bounded one by one and all together, and what they held is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from services.common.errors import InvalidArgumentError, Reason, ResourceExhaustedError
from services.common.names import RequestId
from services.router.http.body import Bodies
from services.router.http.endpoint import Call
from services.router.http.errors import ClientLeftError, RefusedError
from services.router.http.reply import Reply

LIMIT = 100


def call(*parts: bytes, then: Callable[[], Any] | None = None) -> Call:
    """Return a call whose body comes in `parts`; `then` says what follows, else it is complete."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if then is None:
        messages[-1]["more_body"] = False

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        assert then is not None
        return await then()

    async def send(_message: Any) -> None:
        raise AssertionError("nothing is answered here")

    reply = Reply(send, lambda: None, RequestId("r"))
    reply.closes_connection = True
    headers = {b"content-type": b"Application/JSON; charset=utf-8"}
    return Call(
        request_id=RequestId("r"), headers=headers, parameters={}, receive=receive, reply=reply
    )


def bodies(read_s_max: float = 5.0) -> Bodies:
    return Bodies(bytes_max=LIMIT, read_s_max=read_s_max)


async def forever() -> Any:
    await asyncio.Event().wait()


async def left() -> Any:
    return {"type": "http.disconnect"}


async def test_parts_become_one_body_and_the_connection_stays() -> None:
    given = call(b'{"a"', b": 1}")
    assert await bodies().json(given) == {"a": 1}
    assert not given.reply.closes_connection


async def test_the_limit_is_exact() -> None:
    at_most = b'"' + b"x" * (LIMIT - 2) + b'"'
    assert await bodies().json(call(at_most)) == "x" * (LIMIT - 2)
    with pytest.raises(RefusedError) as caught:
        await bodies().json(call(at_most + b" "))
    assert caught.value.failure.status == 413


async def test_a_body_without_end_is_not_read_for_ever() -> None:
    async def more() -> Any:
        return {"type": "http.request", "body": b"x" * LIMIT, "more_body": True}

    given = call(then=more)
    with pytest.raises(RefusedError) as caught:
        await bodies().json(given)
    assert caught.value.failure.status == 413
    assert given.reply.closes_connection


async def test_a_body_that_does_not_come_is_a_408() -> None:
    with pytest.raises(RefusedError) as caught:
        await bodies(read_s_max=0.01).json(call(b"{", then=forever))
    assert caught.value.failure.status == 408


async def test_a_client_that_leaves_is_no_error_of_its_body() -> None:
    with pytest.raises(ClientLeftError):
        await bodies().json(call(b"{", then=left))


async def test_all_bodies_together_have_a_limit_and_give_their_room_back() -> None:
    some = bodies()
    full = b"x" * LIMIT
    async with asyncio.TaskGroup() as group:
        held = [group.create_task(some.json(call(full, then=forever))) for _ in range(64)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError) as caught:
            await some.json(call(b"1"))
        assert (caught.value.reason, caught.value.retry_after_s) == (Reason.QUEUE_FULL, 1.0)
        for each in held:
            each.cancel()
    assert await some.json(call(b"1")) == 1


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'"\\ud800"', b"[" * 99, b"1 2", b"\xef\xbb\xbf1"]
)
async def test_what_is_no_json_is_refused_without_repeating_it(body: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="not valid JSON"):
        await bodies().json(call(body))
