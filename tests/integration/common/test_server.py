"""A caller gets typed errors and none of our insides, limits hold, a drain leaves nobody behind."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest
import structlog
from brisk.common.v1 import model_pb2
from brisk.worker.v1 import worker_service_pb2 as pb2
from brisk.worker.v1 import worker_service_pb2_grpc as pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.common.channel import open_channel
from services.common.deadline import Deadline
from services.common.errors import (
    BriskError,
    ConfigError,
    DataLossError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.log import bound_request_id
from services.common.server import INTERNAL_LIMITS, HouseServer, ServerLimits, create_server
from services.common.status import DETAILS_KEY, from_rpc_error, to_status
from tests.fakes.tiny_service import LOAD, SERVICE_NAME, TinyConfig, TinyServicer

PATIENCE_S = 10.0
CHUNK = pb2.GenerateResponse(chunk=model_pb2.TokenChunk(text="x" * 100))


class Servicer(TinyServicer):
    """Does in Generate what a test wants, named by `instance_id`, and notes how it ended."""

    def __init__(self) -> None:
        super().__init__(TinyConfig(tokens=3, pause_s=0.0))
        self.request_ids: list[str | None] = []
        self.produced = 0
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()
        self.ended_by: type[BaseException] | None = None
        self.deadline: Deadline | None = None
        self.kept: AsyncIterator[pb2.GenerateResponse] | None = None
        self.bound: dict[str, Any] = {}

    def Generate(  # noqa: N802 - gRPC's name
        self, request: pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[pb2.GenerateResponse]:
        # Kept, so that nothing but the boundary closes it: not the garbage collector.
        self.kept = self._generate(request, context)
        return self.kept

    async def _generate(
        self, request: pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[pb2.GenerateResponse]:
        self.bound = structlog.contextvars.get_contextvars()
        self.request_ids.append(bound_request_id())
        self.deadline = Deadline.from_context(context, default_s=77.0)
        self.begun.set()
        try:
            yield CHUNK
            async with aclosing(self._do(request.instance_id, context)) as responses:
                async for response in responses:
                    yield response
        except BaseException as error:
            self.ended_by = type(error)
            raise
        finally:
            self.ended.set()

    async def _do(self, what: str, context: Any) -> AsyncGenerator[pb2.GenerateResponse]:
        match what:
            case "refuse":
                raise FailedPreconditionError("gone", reason="INSTANCE_GONE")
            case "break":
                raise ValueError("a secret of ours")
            case "abort":
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, "by hand")
            case "damage":
                raise DataLossError("a chunk is damaged")
            case "pass damage on":
                details = to_status(DataLossError("a chunk is damaged")).SerializeToString()
                raise from_rpc_error(
                    grpc.aio.AioRpcError(
                        grpc.StatusCode.DATA_LOSS,
                        grpc.aio.Metadata(),
                        grpc.aio.Metadata((DETAILS_KEY, details)),
                    )
                )
            case "peer":
                none = grpc.aio.Metadata()
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode.UNAVAILABLE, none, none, "connect to 10.0.0.7"
                )
            case "wait":
                await self.go_on.wait()
                yield CHUNK
            case "flood":
                while True:
                    self.produced += 1
                    yield CHUNK

    async def Describe(  # noqa: N802
        self, request: pb2.DescribeRequest, context: Any
    ) -> pb2.DescribeResponse:
        self.request_ids.append(bound_request_id())
        return await super().Describe(request, context)


class Running:
    """A server and a stub to call it."""

    def __init__(self, house: HouseServer, servicer: Servicer, channel: grpc.aio.Channel) -> None:
        self.house = house
        self.servicer = servicer
        self.channel = channel
        self.stub: Any = pb2_grpc.WorkerServiceStub(channel)

    def generate(self, what: str, **options: Any) -> Any:
        return self.stub.Generate(pb2.GenerateRequest(instance_id=what), **options)


@asynccontextmanager
async def run(
    *, limits: ServerLimits = INTERNAL_LIMITS, reflection: bool = True
) -> AsyncIterator[Running]:
    house = create_server(
        "127.0.0.1:0",
        limits=limits,
        reflection=reflection,
        service_names=(SERVICE_NAME,),
        endless_methods=(LOAD,),
    )
    servicer = Servicer()
    pb2_grpc.add_WorkerServiceServicer_to_server(servicer, house.server)
    await house.start_serving()
    try:
        async with open_channel(house.address) as channel:
            yield Running(house, servicer, channel)
    finally:
        await house.drain(0)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with run() as it:
        yield it


async def rest(call: Any) -> int:
    """Read a stream to its end and return how many messages came."""
    count = 0
    async with asyncio.timeout(PATIENCE_S):
        while await call.read() is not grpc.aio.EOF:
            count += 1
    return count


async def failure(call: Any) -> BriskError:
    """Return the error that a unary call or a stream ends with, and what came before is fine."""
    async with asyncio.timeout(PATIENCE_S):
        try:
            await (rest(call) if hasattr(call, "read") else call)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
    raise AssertionError("the call did not fail")


async def wait(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()


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


# --- Health and reflection ---


async def health(running: Running, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(running.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


@pytest.mark.parametrize("service", ["", SERVICE_NAME])
async def test_health_says_serving_until_the_service_leaves(running: Running, service: str) -> None:
    assert await health(running, service) == health_pb2.HealthCheckResponse.SERVING
    await running.house.announce_leaving()
    assert await health(running, service) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await running.stub.Describe(pb2.DescribeRequest())  # it still answers


async def test_the_health_of_an_unknown_service_is_not_found(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(running, "brisk.nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def listed(running: Running) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for response in stub.ServerReflectionInfo(iter([request])):
        return {service.name for service in response.list_services_response.service}
    return set()


async def test_reflection_lists_the_services(running: Running) -> None:
    assert await listed(running) == {
        SERVICE_NAME,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_reflection_can_be_turned_off() -> None:
    async with run(reflection=False) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await listed(running)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- Limits ---


async def test_a_message_over_the_limit_is_refused_and_one_below_is_taken() -> None:
    async with run(limits=ServerLimits(message_bytes_max=100_000, rpcs_max=9)) as running:
        await running.stub.Describe(pb2.DescribeRequest())
        fits = pb2.CheckRequest(model=model_pb2.ModelRef(name="x" * 99_000))
        assert isinstance(await failure(running.stub.Check(fits)), NotFoundError)
        large = pb2.CheckRequest(model=model_pb2.ModelRef(name="x" * 101_000))
        assert isinstance(await failure(running.stub.Check(large)), ResourceExhaustedError)


async def test_metadata_over_16_kib_is_refused(running: Running) -> None:
    large = (("x-large", "x" * 20_000),)
    call = running.stub.Describe(pb2.DescribeRequest(), metadata=large)
    assert isinstance(await failure(call), ResourceExhaustedError)


async def test_calls_over_the_limit_are_refused_at_once() -> None:
    async with run(limits=ServerLimits(message_bytes_max=100_000, rpcs_max=2)) as running:
        calls = [running.generate("wait") for _ in range(2)]
        for call in calls:
            await call.read()
        third = running.stub.Describe(pb2.DescribeRequest())
        assert isinstance(await failure(third), ResourceExhaustedError)
        running.servicer.go_on.set()
        for call in calls:
            assert await rest(call) == 1


async def test_a_taken_port_is_refused_by_the_settings_name(running: Running) -> None:
    with pytest.raises(ConfigError, match="is taken") as caught:
        create_server(
            running.house.address,
            limits=INTERNAL_LIMITS,
            reflection=False,
            service_names=(),
            setting="BRISK_DEMO_LISTEN",
        )
    assert caught.value.setting == "BRISK_DEMO_LISTEN"


async def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ConfigError, match="not ours"):
        create_server("192.0.2.1:0", limits=INTERNAL_LIMITS, reflection=False, service_names=())


# --- Draining ---


async def test_a_drain_lets_running_calls_finish_and_refuses_new_ones(running: Running) -> None:
    call = running.generate("wait")
    await call.read()
    draining = asyncio.create_task(running.house.drain(PATIENCE_S))
    await wait(running.house.draining)
    error = await failure(running.stub.Describe(pb2.DescribeRequest()))
    assert isinstance(error, UnavailableError)
    running.servicer.go_on.set()
    assert await rest(call) == 1
    await draining


async def test_a_drain_does_not_wait_for_streams_without_an_end(running: Running) -> None:
    health_stub: Any = health_pb2_grpc.HealthStub(running.channel)
    watch = health_stub.Watch(health_pb2.HealthCheckRequest())
    load = running.stub.Load(pb2.LoadRequest())
    await load.read()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    await running.house.announce_leaving()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    async with asyncio.timeout(PATIENCE_S):
        await running.house.drain(1000.0)
    for stream in (watch, load):
        error = await failure(stream)
        assert isinstance(error, UnavailableError)
        assert error.reason == "SHUTTING_DOWN"
        assert error.retry_after_s is not None


async def test_a_drain_that_takes_too_long_ends_what_is_left_as_unavailable(
    running: Running,
) -> None:
    call = running.generate("wait")
    await call.read()
    await running.house.drain(0.1)
    assert isinstance(await failure(call), UnavailableError)
    await wait(running.servicer.ended)


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
