"""The stream's promise: every token once, in order, and only its own sequence pauses when full."""

import asyncio
import threading

import pytest

from services.common.errors import InternalError
from services.common.model import FinishReason
from services.worker.stream import TokenStream
from services.worker.text import Decoded


def token(number: int, finish: FinishReason | None = None) -> Decoded:
    return Decoded(number, "", finish)


class Calls:
    def __init__(self) -> None:
        self.wakes = 0
        self.ends = 0

    def wake(self) -> None:
        self.wakes += 1

    def ended(self) -> None:
        self.ends += 1


def make(calls: Calls, buffered_max: int = 4) -> TokenStream:
    return TokenStream(
        asyncio.get_running_loop(),
        wake=calls.wake,
        ended=calls.ended,
        buffered_max=buffered_max,
    )


async def test_tokens_put_by_a_thread_come_out_once_and_in_order() -> None:
    calls = Calls()
    woken = threading.Event()
    stream = TokenStream(
        asyncio.get_running_loop(), wake=woken.set, ended=calls.ended, buffered_max=4
    )

    def device() -> None:
        for number in range(200):
            while not stream.has_room():
                assert woken.wait(10)
                woken.clear()
            stream.put(token(number))
        stream.end(None, token(200, FinishReason.STOP))

    thread = threading.Thread(target=device)
    thread.start()
    taken: list[int] = []
    while tokens := await stream.take():
        assert len(tokens) <= 5
        taken += [each.token_id for each in tokens]
    thread.join()
    assert taken == list(range(201))
    assert calls.ends == 1


async def test_a_full_buffer_has_no_room_until_it_is_read_and_then_wakes() -> None:
    calls = Calls()
    stream = make(calls, buffered_max=2)
    stream.put(token(1))
    assert stream.has_room()
    stream.put(token(2))
    assert not stream.has_room()
    await asyncio.sleep(0)
    assert len(await stream.take()) == 2
    assert stream.has_room()
    assert calls.wakes == 1


async def test_reading_what_was_not_full_wakes_nobody() -> None:
    calls = Calls()
    stream = make(calls)
    stream.put(token(1))
    await stream.take()
    assert calls.wakes == 0


async def test_several_tokens_are_taken_at_once_when_the_reader_lags() -> None:
    stream = make(Calls())
    for number in range(3):
        stream.put(token(number))
    await asyncio.sleep(0)
    assert [each.token_id for each in await stream.take()] == [0, 1, 2]


async def test_an_error_comes_after_the_tokens_before_it() -> None:
    stream = make(Calls())
    stream.put(token(1))
    stream.end(InternalError("broken"))
    await asyncio.sleep(0)
    assert [each.token_id for each in await stream.take()] == [1]
    with pytest.raises(InternalError, match="broken"):
        await stream.take()


async def test_the_end_is_told_before_the_last_token_can_be_taken() -> None:
    calls = Calls()
    stream = make(calls)
    reader = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    stream.end(None, token(1, FinishReason.LENGTH))
    assert [each.token_id for each in await reader] == [1]
    assert calls.ends == 1  # by then whoever waits for the slot has it
    assert await stream.take() == ()


async def test_a_stream_ends_once() -> None:
    calls = Calls()
    stream = make(calls)
    stream.fail(InternalError("first"))
    stream.end(None)
    await asyncio.sleep(0)
    assert calls.ends == 1
    with pytest.raises(InternalError, match="first"):
        await stream.take()


def test_a_device_may_outlive_the_loop() -> None:
    async def main() -> TokenStream:
        return make(Calls())

    stream = asyncio.run(main())
    stream.put(token(1))
    stream.end(None)
