"""A stream gives every token once, in order, with its start report, or one typed error."""

import asyncio
import gc

import pytest
from brisk.common.v1 import model_pb2
from brisk.inference.v1 import inference_service_pb2 as inference_pb2
from brisk_client import (
    AsyncClient,
    Chunk,
    ConnectionFailedError,
    DeadlineExceededError,
    FinishReason,
    NotFoundError,
    Phase,
    Progress,
    StreamBrokenError,
    Tier,
    TokenLogprob,
    TokenLogprobs,
    UnavailableError,
    Usage,
)
from google.rpc import code_pb2  # type: ignore[import-untyped]  # ships without annotations

from tests.integration.sdk.scripted import (
    ANSWER,
    HANG,
    NOT_NOW,
    Refuse,
    ScriptedRouter,
    chunk,
    progress,
)

WAIT_S = 5.0


async def test_an_answer_comes_chunk_by_chunk(client: AsyncClient) -> None:
    stream = client.generate("tiny", "Once")
    chunks = [entry async for entry in stream]
    assert [(entry.index, entry.token_ids, entry.text) for entry in chunks] == [
        (0, (5, 6), "a "),
        (2, (7,), "b"),
        (3, (8,), " c"),
    ]
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert stream.usage == Usage(prompt_tokens=3, completion_tokens=4)


async def test_a_result_is_the_whole_answer_with_its_start(client: AsyncClient) -> None:
    result = await client.generate("tiny", [1, 2, 3], request_id="my-id").result()
    assert result.text == "a b c"
    assert result.token_ids == (5, 6, 7, 8)
    assert result.finish_reason is FinishReason.LENGTH
    assert result.request_id == "my-id"
    assert result.start is not None
    assert result.start.cold
    assert result.start.source is Tier.SSD
    assert result.start.duration_s(Phase.LOAD) == 0.25
    assert result.start.duration_s(Phase.INIT) is None
    assert result.start.total_s == 0.25


async def test_chat_streams_alike(client: AsyncClient, router: ScriptedRouter) -> None:
    text = await client.chat("tiny", [{"role": "user", "content": "hi"}], temperature=0).text()
    assert text == "a b c"
    (request,) = router.requests
    assert request.messages[0].content == "hi"  # type: ignore[attr-defined]
    assert request.sampling.temperature == 0  # type: ignore[attr-defined]


async def test_nothing_is_sent_before_the_stream_is_read(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    stream = client.generate("tiny", "Once")
    await asyncio.sleep(0)
    assert router.requests == []
    await stream.result()
    assert len(router.requests) == 1


async def test_request_id_and_deadline_travel_with_the_call(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    await client.generate("tiny", "Once", request_id="abc.1", timeout_s=7).result()
    assert router.metadata[0]["x-request-id"] == "abc.1"
    assert router.requests[0].request_id == "abc.1"  # type: ignore[attr-defined]
    assert router.deadlines_s[0] is not None
    assert 5 < router.deadlines_s[0] < 7.5  # grpc rounds a little up


async def test_progress_is_asked_for_only_if_wanted(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    await client.generate("tiny", "Once").result()
    await client.generate("tiny", "Once", want_progress=True).result()
    seen: list[Progress] = []
    router.scripts = [(progress(1, 4), progress(4, 4), *ANSWER)]
    await client.generate("tiny", "Once", on_progress=seen.append).result()
    assert [request.want_progress for request in router.requests] == [False, True, True]  # type: ignore[attr-defined]
    assert [event.fraction for event in seen] == [0.25, 1.0]
    assert seen[0].phase is Phase.LOAD
    assert seen[0].source is Tier.SSD


async def test_events_show_progress_and_chunks_in_order(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(progress(1, 4), *ANSWER)]
    kinds = [
        type(event) async for event in client.generate("tiny", "x", want_progress=True).events()
    ]
    assert kinds == [Progress, Chunk, Chunk, Chunk]


async def _left(router: ScriptedRouter) -> None:
    async with asyncio.timeout(WAIT_S):
        await router.left.wait()


async def test_break_cancels_the_call_at_once(client: AsyncClient, router: ScriptedRouter) -> None:
    router.scripts = [(chunk(0, 5), HANG)]
    async for entry in client.generate("tiny", "Once"):
        assert entry.token_ids == (5,)
        break
    await _left(router)


async def test_leaving_the_context_cancels_even_if_the_iterator_is_kept(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(chunk(0, 5), HANG)]
    async with client.generate("tiny", "Once") as stream:
        iterator = aiter(stream)
        await anext(iterator)
    await _left(router)
    assert await anext(iterator, None) is None


async def test_cancelling_the_reading_task_cancels_the_call(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(chunk(0, 5), HANG)]
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in client.generate("tiny", "Once"):
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _left(router)


async def test_cancel_from_another_task_ends_the_stream_without_an_error(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(chunk(0, 5), HANG)]
    stream = client.generate("tiny", "Once")
    begun = asyncio.Event()
    got: list[Chunk] = []

    async def read() -> None:
        async for entry in stream:
            got.append(entry)
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    stream.cancel()
    await task
    assert len(got) == 1
    await _left(router)


async def test_an_exception_in_the_loop_cancels_the_call(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(chunk(0, 5), HANG)]

    async def fail() -> None:
        async for _ in client.generate("tiny", "Once"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    gc.collect()
    await _left(router)


async def test_a_stream_can_be_read_once(client: AsyncClient) -> None:
    stream = client.generate("tiny", "Once")
    await stream.result()
    with pytest.raises(RuntimeError, match="once"):
        await stream.result()


@pytest.mark.parametrize(
    "script",
    [
        (chunk(0, 5), chunk(2, 7, last=True)),
        (chunk(0, 5), chunk(0, 5, last=True)),
        (chunk(1, 5, last=True),),
        (chunk(0, 5),),
        (),
    ],
    ids=["gap", "repeat", "late", "no end", "nothing"],
)
async def test_a_broken_stream_is_one_typed_error(
    client: AsyncClient, router: ScriptedRouter, script: tuple[object, ...]
) -> None:
    router.scripts = [script]
    with pytest.raises(StreamBrokenError):
        await client.generate("tiny", "Once").result()


async def test_unavailable_before_the_first_message_is_tried_again(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(NOT_NOW,), (NOT_NOW,), ANSWER]
    assert await client.generate("tiny", "Once").text() == "a b c"
    assert len(router.requests) == 3
    assert len({request.request_id for request in router.requests}) == 1  # type: ignore[attr-defined]


async def test_three_attempts_are_all(client: AsyncClient, router: ScriptedRouter) -> None:
    router.scripts = [(NOT_NOW,)]
    with pytest.raises(UnavailableError) as caught:
        await client.generate("tiny", "Once").text()
    assert caught.value.reason == "NO_WORKER"
    assert caught.value.retry_after_s == pytest.approx(0.01)
    assert len(router.requests) == 3


async def test_retries_end_when_most_calls_fail(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(NOT_NOW,)]
    attempts = []
    for _ in range(3):
        before = len(router.requests)
        with pytest.raises(UnavailableError):
            await client.generate("tiny", "Once").text()
        attempts.append(len(router.requests) - before)
    assert attempts == [3, 2, 1]


@pytest.mark.parametrize("first", [progress(1, 4), chunk(0, 5)], ids=["progress", "chunk"])
async def test_nothing_is_repeated_once_a_message_has_come(
    client: AsyncClient, router: ScriptedRouter, first: object
) -> None:
    router.scripts = [(first, NOT_NOW), ANSWER]
    with pytest.raises(UnavailableError):
        await client.generate("tiny", "Once", want_progress=True).text()
    assert len(router.requests) == 1


async def test_what_is_not_unavailable_is_not_repeated(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(Refuse(code_pb2.NOT_FOUND, "MODEL_NOT_FOUND", message="no model x"),)]
    with pytest.raises(NotFoundError, match="no model x"):
        await client.generate("x", "Once").text()
    assert len(router.requests) == 1


async def test_a_silent_server_is_left_at_the_deadline(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    for script in ((chunk(0, 5), HANG), (HANG,)):
        router.left.clear()
        router.scripts = [script]
        with pytest.raises(DeadlineExceededError, match=r"^the time was up after 0\.3 s$"):
            await client.generate("tiny", "Once", timeout_s=0.3).text()
        await _left(router)


async def test_the_deadline_covers_all_attempts_together(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(Refuse(code_pb2.UNAVAILABLE, "NO_WORKER", retry_after_s=0.4),)]
    begun_s = asyncio.get_running_loop().time()
    with pytest.raises(UnavailableError):
        await client.generate("tiny", "Once", timeout_s=0.5).text()
    assert asyncio.get_running_loop().time() - begun_s < 2.0
    assert len(router.requests) == 2


async def test_nobody_there_is_a_connection_error_naming_the_endpoint() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1:1: Connection refused"):
            await client.generate("tiny", "Once", timeout_s=5).text()


def of_choice(
    index: int, message: inference_pb2.GenerateResponse
) -> inference_pb2.GenerateResponse:
    """Return the same message for another answer."""
    made = inference_pb2.GenerateResponse()
    made.CopyFrom(message)
    made.choice_index = index
    return made


async def test_several_answers_come_side_by_side(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    script = (
        of_choice(1, chunk(0, 9, text="x", start=True)),
        *ANSWER[:2],
        of_choice(1, chunk(1, 8, text="y", last=True)),
        ANSWER[2],
    )
    router.scripts = [script]
    stream = client.generate("tiny", "Once", choices=2)
    assert [entry.choice async for entry in stream] == [1, 0, 0, 1, 0]
    assert stream.usage == Usage(prompt_tokens=3, completion_tokens=4)
    first, second = await client.generate("tiny", "Once", choices=2).results()
    assert (first.choice, first.text, first.token_ids) == (0, "a b c", (5, 6, 7, 8))
    assert (second.choice, second.text, second.token_ids) == (1, "xy", (9, 8))
    assert second.usage.completion_tokens == 2
    assert [request.choices for request in router.requests] == [2, 2]  # type: ignore[attr-defined]
    alone = await client.generate("tiny", "Once", choices=2).result()
    assert (alone.choice, alone.text) == (0, first.text)


async def test_an_answer_that_is_missing_or_too_many_is_no_success(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [ANSWER, (of_choice(1, ANSWER[0]), *ANSWER)]
    with pytest.raises(StreamBrokenError, match="without a finish reason"):
        await client.generate("tiny", "Once", choices=2).results()
    with pytest.raises(StreamBrokenError, match="1 answers were asked for"):
        await client.generate("tiny", "Once").results()


async def test_logprobs_come_with_their_tokens(client: AsyncClient, router: ScriptedRouter) -> None:
    last = chunk(0, 5, text="a", last=True)
    last.chunk.logprobs.add(
        chosen=model_pb2.TokenLogprob(token_id=5, logprob=-0.5, piece=b"a"),
        top=[model_pb2.TokenLogprob(token_id=6, logprob=-0.25, piece=b"\xe2")],
    )
    router.scripts = [(last,)]
    answer = await client.generate("tiny", "Once", top_logprobs=1).result()
    assert answer.logprobs == (
        TokenLogprobs(
            chosen=TokenLogprob(token_id=5, logprob=-0.5, piece=b"a"),
            top=(TokenLogprob(token_id=6, logprob=-0.25, piece=b"\xe2"),),
        ),
    )
