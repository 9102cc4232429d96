"""A caller gets typed errors and none of our insides; its id, cancel and deadline reach us."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import structlog
from brisk.worker.v1 import worker_service_pb2 as pb2
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.common.errors import (
    DataLossError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    UnavailableError,
)
from tests.fakes.tiny_service import SERVICE_NAME
from tests.integration.common.running_server import (
    CHUNK,
    PATIENCE_S,
    Running,
    Servicer,
    failure,
    rest,
    run,
    wait,
)

# --- Errors ---


async def test_a_refusal_arrives_as_what_it_was(running: Running) -> None:
    error = await failure(running.stub.Check(pb2.CheckRequest()))
    assert isinstance(error, NotFoundError)
    assert (error.message, error.reason) == ("no such model", "MODEL_NOT_FOUND")
    assert (error.retry_after_s, dict(error.metadata)) == (1.5, {"a": "b"})


async def test_a_refusal_in_mid_stream_comes_after_what_was_sent(running: Running) -> None:
    call = running.generate("refuse")
    assert await call.read() == CHUNK
    error = await failure(call)
    assert isinstance(error, FailedPreconditionError)
    assert error.reason == "INSTANCE_GONE"


@pytest.mark.parametrize(
    "start",
    [
        lambda stub: stub.Unload(pb2.UnloadRequest(instance_id="i-1")),
        lambda stub: stub.Generate(pb2.GenerateRequest(instance_id="break")),
    ],
    ids=["unary", "stream"],
)
async def test_a_bug_is_logged_once_with_its_traceback_and_hidden_from_the_caller(
    running: Running, start: Callable[[Any], Any]
) -> None:
    with capture_logs() as lines:
        error = await failure(start(running.stub))
    assert isinstance(error, InternalError)
    assert error.message == "internal error; the service's log has the details"
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("call failed unexpectedly", "error")
    assert line["exc_info"]


async def test_a_refusal_is_no_error_in_the_log(running: Running) -> None:
    with capture_logs() as lines:
        await failure(running.stub.Check(pb2.CheckRequest()))
    assert [line["log_level"] for line in lines] == ["debug"]


async def test_damage_is_logged_where_it_arises_and_not_where_it_is_passed_on(
    running: Running,
) -> None:
    for what, level in (("damage", "error"), ("pass damage on", "debug")):
        with capture_logs() as lines:
            error = await failure(running.generate(what))
        assert isinstance(error, DataLossError)
        assert error.message == "a chunk is damaged"
        (line,) = lines
        assert line["log_level"] == level
        assert ("exc_info" in line) == (level == "error")


async def test_a_peers_error_that_rises_is_passed_on_without_its_address(running: Running) -> None:
    error = await failure(running.generate("peer"))
    assert isinstance(error, UnavailableError)
    assert error.message == "call failed: UNAVAILABLE"


async def test_a_handler_may_end_a_call_by_grpcs_own_means(running: Running) -> None:
    with capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest(running.generate("abort"))
    assert lines == []
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert caught.value.details() == "by hand"


async def test_a_method_that_does_not_exist_is_unimplemented(running: Running) -> None:
    call: Any = running.channel.unary_unary("/brisk.worker.v1.WorkerService/Dance")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- Cancellation and time ---


async def test_cancelling_reaches_the_handler_where_it_waits(running: Running) -> None:
    call = running.generate("wait")
    await call.read()
    call.cancel()
    await wait(running.servicer.ended)
    assert running.servicer.ended_by is asyncio.CancelledError


async def test_cancelling_reaches_a_handler_whose_reader_does_not_read(running: Running) -> None:
    call = running.generate("flood")
    await wait(running.servicer.begun)
    await standstill(running.servicer)
    call.cancel()
    await wait(running.servicer.ended)
    assert running.servicer.ended_by in (asyncio.CancelledError, GeneratorExit)


async def standstill(servicer: Servicer) -> int:
    """Return how much was produced once no more is."""
    async with asyncio.timeout(PATIENCE_S):
        before = -1
        while servicer.produced != before:
            before = servicer.produced
            await asyncio.sleep(0.2)
        return before


async def test_a_slow_reader_holds_the_sender_back(running: Running) -> None:
    call = running.generate("flood")
    assert await call.read() == CHUNK
    assert await standstill(running.servicer) < 3_000  # 38,512 with gRPC's own window
    call.cancel()


async def test_the_callers_deadline_is_the_handlers(running: Running) -> None:
    async for _ in running.generate("once", timeout=20.0):
        pass
    assert running.servicer.deadline is not None
    assert 15.0 < running.servicer.deadline.remaining_s() < 21.0  # the header rounds up
    async for _ in running.generate("once"):
        pass
    assert 70.0 < running.servicer.deadline.remaining_s() <= 77.0


async def test_a_deadline_that_passes_ends_the_handler(running: Running) -> None:
    error = await failure(running.generate("wait", timeout=0.1))
    assert error.code == "DEADLINE_EXCEEDED"
    await wait(running.servicer.ended)
    assert running.servicer.ended_by is asyncio.CancelledError


# --- Request ids ---


async def test_the_callers_request_id_is_bound_in_unary_calls_and_streams(running: Running) -> None:
    metadata = (("x-request-id", "r-1"),)
    await running.stub.Describe(pb2.DescribeRequest(), metadata=metadata)
    async for _ in running.generate("once", metadata=metadata):
        pass
    assert running.servicer.request_ids == ["r-1", "r-1"]


@pytest.mark.parametrize("sent", [(), (("x-request-id", "a b"),), (("x-request-id", "x" * 65),)])
async def test_a_missing_or_odd_request_id_is_replaced(
    running: Running, sent: tuple[tuple[str, str], ...]
) -> None:
    for _ in range(2):
        await running.stub.Describe(pb2.DescribeRequest(), metadata=sent)
    first, second = running.servicer.request_ids
    assert first != second
    assert first is not None
    assert len(first) == 16


async def test_what_the_process_had_bound_is_not_in_a_request() -> None:
    with structlog.contextvars.bound_contextvars(epoch=7):
        async with run() as running:
            await rest(running.generate("once"))
            assert list(running.servicer.bound) == ["request_id"]


# --- Metrics ---


def counted(method: str, code: str) -> float:
    labels = {"method": f"/{SERVICE_NAME}/{method}", "code": code}
    return REGISTRY.get_sample_value("brisk_rpcs_total", labels) or 0.0


async def test_calls_are_counted_by_method_and_code(running: Running) -> None:
    expected = [
        ("Check", "NOT_FOUND"),
        ("Unload", "INTERNAL"),
        ("Describe", "OK"),
        ("Generate", "CANCELLED"),
        ("Generate", "FAILED_PRECONDITION"),
        ("Generate", "OUT_OF_RANGE"),
    ]
    before = [counted(*each) for each in expected]
    await failure(running.stub.Check(pb2.CheckRequest()))
    await failure(running.stub.Unload(pb2.UnloadRequest()))
    await running.stub.Describe(pb2.DescribeRequest())
    call = running.generate("wait")
    await call.read()
    call.cancel()
    await wait(running.servicer.ended)
    await failure(running.generate("refuse"))
    await failure(running.generate("abort"))
    assert [counted(*each) for each in expected] == [count + 1 for count in before]
    gauge = {"method": f"/{SERVICE_NAME}/Generate"}
    assert REGISTRY.get_sample_value("brisk_rpcs_running", gauge) == 0
    assert (REGISTRY.get_sample_value("brisk_rpc_seconds_count", gauge) or 0) >= 2
