"""A server says whether it serves, its limits hold, and a drain leaves nobody behind."""

import asyncio
from typing import Any

import grpc
import pytest
from brisk.common.v1 import model_pb2
from brisk.worker.v1 import worker_service_pb2 as pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.errors import (
    ConfigError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.server import INTERNAL_LIMITS, ServerLimits, create_server
from tests.fakes.tiny_service import SERVICE_NAME
from tests.integration.common.running_server import (
    PATIENCE_S,
    Running,
    failure,
    rest,
    run,
    wait,
)

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


async def test_watching_names_that_nobody_serves_leaves_nothing_behind(running: Running) -> None:
    stub: Any = health_pb2_grpc.HealthStub(running.channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest(service=f"x{n}")) for n in range(50)]
    for watch in watches:
        answer = await watch.read()
        assert answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watched = running.house.health._server_watchers  # noqa: SLF001 - what must not grow
    assert len(watched) == 50
    for watch in watches:
        watch.cancel()
    async with asyncio.timeout(PATIENCE_S):
        while watched:  # noqa: ASYNC110 - the library has no event for it
            await asyncio.sleep(0.01)


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
