"""A server for tests that does in each call what the test wants."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import structlog
from brisk.common.v1 import model_pb2
from brisk.worker.v1 import worker_service_pb2 as pb2
from brisk.worker.v1 import worker_service_pb2_grpc as pb2_grpc

from services.common.channel import open_channel
from services.common.deadline import Deadline
from services.common.errors import (
    BriskError,
    DataLossError,
    FailedPreconditionError,
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
