"""A request keeps its id from hop to hop, and channels are shared, bounded and closed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog
from brisk.worker.v1 import worker_service_pb2 as pb2
from brisk.worker.v1 import worker_service_pb2_grpc as pb2_grpc

from services.common import channel as module
from services.common.channel import ChannelPool, open_channel, outgoing_metadata
from services.common.errors import ResourceExhaustedError, UnavailableError
from services.common.log import bind_request_id, bound_request_id
from services.common.names import parse_request_id
from services.common.server import INTERNAL_LIMITS, HouseServer, create_server
from services.common.status import from_rpc_error
from tests.fakes.tiny_service import SERVICE_NAME, TinyConfig, TinyServicer


class Noting(TinyServicer):
    """Notes the request ids of its calls."""

    def __init__(self) -> None:
        super().__init__(TinyConfig(tokens=2, pause_s=0.0))
        self.seen: list[str | None] = []

    async def Describe(  # noqa: N802 - gRPC's name
        self, request: pb2.DescribeRequest, context: Any
    ) -> pb2.DescribeResponse:
        self.seen.append(bound_request_id())
        return await super().Describe(request, context)

    async def Generate(  # noqa: N802
        self, request: pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[pb2.GenerateResponse]:
        self.seen.append(bound_request_id())
        async for response in super().Generate(request, context):
            yield response


@pytest.fixture
async def server() -> AsyncIterator[HouseServer]:
    house = create_server(
        "127.0.0.1:0", limits=INTERNAL_LIMITS, reflection=False, service_names=(SERVICE_NAME,)
    )
    yield house
    await house.drain(0)


@pytest.fixture
async def servicer(server: HouseServer) -> Noting:
    noting = Noting()
    pb2_grpc.add_WorkerServiceServicer_to_server(noting, server.server)
    await server.start_serving()
    structlog.contextvars.clear_contextvars()
    return noting


def stub_of(channel: grpc.aio.Channel) -> Any:
    return pb2_grpc.WorkerServiceStub(channel)


async def test_every_kind_of_call_carries_the_request_id_of_its_task(
    server: HouseServer, servicer: Noting
) -> None:
    bind_request_id(parse_request_id("r-1"))
    async with open_channel(server.address) as channel:
        stub = stub_of(channel)
        await stub.Describe(pb2.DescribeRequest())
        assert len([r async for r in stub.Generate(pb2.GenerateRequest())]) == 2
        await stub.Describe(pb2.DescribeRequest(), metadata=(("x-other", "1"),))
        await stub.Describe(pb2.DescribeRequest(), metadata=(("x-request-id", "r-2"),))
    assert servicer.seen == ["r-1", "r-1", "r-1", "r-2"]


async def test_outside_a_request_nothing_is_sent(servicer: Noting) -> None:
    assert outgoing_metadata() == ()
    bind_request_id(parse_request_id("r-1"))
    assert outgoing_metadata() == (("x-request-id", "r-1"),)


async def test_a_peer_that_is_gone_is_unavailable(server: HouseServer, servicer: Noting) -> None:
    async with open_channel(server.address) as channel:
        stub = stub_of(channel)
        await stub.Describe(pb2.DescribeRequest())
        await server.drain(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Describe(pb2.DescribeRequest(), timeout=5.0)
        assert isinstance(from_rpc_error(caught.value), UnavailableError)


async def test_a_channel_can_be_asked_and_waited_for(server: HouseServer, servicer: Noting) -> None:
    channel = open_channel(server.address)
    state = channel.get_state(try_to_connect=True)
    await channel.wait_for_state_change(state)
    await channel.channel_ready()
    assert channel.get_state() is grpc.ChannelConnectivity.READY
    await channel.close()


async def test_users_of_one_address_share_a_channel(server: HouseServer, servicer: Noting) -> None:
    pool = ChannelPool()
    with pool.use(server.address) as first, pool.use(server.address) as second:
        assert first is second
        await stub_of(first).Describe(pb2.DescribeRequest())
    with pool.use(server.address) as third:
        assert third is first  # kept for the next one
    assert len(pool) == 1
    await pool.close()
    assert len(pool) == 0


async def test_a_channel_that_was_left_long_ago_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(module, "monotonic_s", lambda: now_s[0])
    pool = ChannelPool(idle_s=10.0)
    with pool.use("127.0.0.1:1"), pool.use("127.0.0.1:2"):
        pass
    with pool.use("127.0.0.1:3"):
        now_s[0] = 10.0
        with pool.use("127.0.0.1:4"):
            assert len(pool) == 2  # the one in use stays however long
    await pool.close()


async def test_a_full_pool_closes_the_channel_left_longest_and_none_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(module, "monotonic_s", lambda: now_s[0])
    pool = ChannelPool(channels_max=2)
    with pool.use("127.0.0.1:1") as oldest:
        pass
    now_s[0] = 1.0
    with pool.use("127.0.0.1:2") as newer:
        pass
    with pool.use("127.0.0.1:3"), pool.use("127.0.0.1:2") as again:
        assert again is newer
        with pytest.raises(ResourceExhaustedError, match="more than 2 peers"):
            pool.use("127.0.0.1:1").__enter__()
    with pool.use("127.0.0.1:1") as reopened:
        assert reopened is not oldest
    await pool.close()


async def test_closing_the_pool_ends_calls_under_way(server: HouseServer, servicer: Noting) -> None:
    pool = ChannelPool()
    with pool.use(server.address) as channel:
        load = stub_of(channel).Load(pb2.LoadRequest())
        await load.read()
        await pool.close()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await load.read()
