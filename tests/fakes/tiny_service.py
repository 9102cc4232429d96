"""A complete service of a few lines, run as a process to test the lifecycle that all share.

It serves WorkerService: Generate counts to `tokens`, one token per `pause_s`, Describe answers at
once, Load never ends, Check refuses, Unload breaks. How its background loop fails is a setting.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import ClassVar, Literal, Never

import grpc
from brisk.common.v1 import model_pb2, placement_pb2
from brisk.worker.v1 import worker_service_pb2 as pb2
from brisk.worker.v1 import worker_service_pb2_grpc as pb2_grpc

from services.common.clock import wall_clock
from services.common.config import ServiceConfig
from services.common.errors import NotFoundError, Reason
from services.common.keys import ServiceKind
from services.common.lifecycle import Ready, run_service, serve
from services.common.log import get_logger
from services.common.metrics import start_metrics
from services.common.redis_client import connect_or_refuse
from services.common.registry import Registration, ServiceFacts
from services.common.server import INTERNAL_LIMITS, create_server

log = get_logger(__name__)

SERVICE_NAME = pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name
LOAD = f"/{SERVICE_NAME}/Load"


class TinyConfig(ServiceConfig):
    """What the tests turn."""

    service: ClassVar[str] = "tiny"
    tokens: int = 40
    pause_s: float = 0.02
    loop: Literal["runs", "raises", "returns"] = "runs"
    loop_ends_on: Literal["start", "describe"] = "start"
    hang_at_start: bool = False  # never gets as far as serving
    block_on_drain_s: float = 0.0  # the event loop stands still


class TinyServicer(pb2_grpc.WorkerServiceServicer):
    """Counts."""

    def __init__(self, config: TinyConfig) -> None:
        self._config = config
        self.described = asyncio.Event()

    async def Generate(  # noqa: N802 - gRPC's name
        self,
        request: pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[pb2.GenerateRequest, pb2.GenerateResponse],
    ) -> AsyncIterator[pb2.GenerateResponse]:
        log.info("counting", instance=request.instance_id)
        for index in range(self._config.tokens):
            await asyncio.sleep(self._config.pause_s)
            chunk = model_pb2.TokenChunk(first_index=index, token_ids=[index])
            yield pb2.GenerateResponse(chunk=chunk)

    async def Load(  # noqa: N802
        self,
        request: pb2.LoadRequest,
        context: grpc.aio.ServicerContext[pb2.LoadRequest, pb2.LoadResponse],
    ) -> AsyncIterator[pb2.LoadResponse]:
        yield pb2.LoadResponse()
        await asyncio.Event().wait()

    async def Describe(  # noqa: N802
        self,
        request: pb2.DescribeRequest,
        context: grpc.aio.ServicerContext[pb2.DescribeRequest, pb2.DescribeResponse],
    ) -> pb2.DescribeResponse:
        self.described.set()
        state = placement_pb2.WorkerState(worker_id="tiny-1", node_id=self._config.node_id)
        return pb2.DescribeResponse(state=state)

    async def Tokenize(  # noqa: N802
        self,
        request: pb2.TokenizeRequest,
        context: grpc.aio.ServicerContext[pb2.TokenizeRequest, pb2.TokenizeResponse],
    ) -> pb2.TokenizeResponse:
        raise NotFoundError("it has no tokenizer", reason=Reason.MODEL_NOT_FOUND)

    async def Check(  # noqa: N802
        self,
        request: pb2.CheckRequest,
        context: grpc.aio.ServicerContext[pb2.CheckRequest, pb2.CheckResponse],
    ) -> pb2.CheckResponse:
        raise NotFoundError(
            "no such model", reason=Reason.MODEL_NOT_FOUND, retry_after_s=1.5, metadata={"a": "b"}
        )

    async def Unload(  # noqa: N802
        self,
        request: pb2.UnloadRequest,
        context: grpc.aio.ServicerContext[pb2.UnloadRequest, pb2.UnloadResponse],
    ) -> pb2.UnloadResponse:
        raise ValueError("a secret of ours: " + request.instance_id)


async def background(config: TinyConfig, servicer: TinyServicer) -> None:
    """Run for ever, raise or return."""
    if config.loop_ends_on == "describe":
        await servicer.described.wait()
    match config.loop:
        case "raises":
            raise OSError("the loop's own reason")
        case "returns":
            return
        case "runs":
            await forever()


async def forever() -> Never:
    """Never return."""
    while True:
        await asyncio.Event().wait()


async def main(config: TinyConfig) -> None:
    """Open everything, serve, close everything."""
    async with AsyncExitStack() as stack:
        redis = await connect_or_refuse(config.redis_url, setting=config.setting("redis_url"))
        stack.push_async_callback(redis.aclose)
        metrics = start_metrics(
            config.metrics_listen,
            setting=config.setting("metrics_listen"),
            advertise=config.advertise,
        )
        stack.callback(metrics.close)
        server = create_server(
            config.listen,
            limits=INTERNAL_LIMITS,
            reflection=config.reflection,
            service_names=(SERVICE_NAME,),
            endless_methods=(LOAD,),
            setting=config.setting("listen"),
            advertise=config.advertise,
        )
        if config.hang_at_start:
            log.info("hanging")
            await asyncio.to_thread(threading.Event().wait, 60)  # as an import does: not to cancel
        servicer = TinyServicer(config)
        pb2_grpc.add_WorkerServiceServicer_to_server(servicer, server.server)
        facts = ServiceFacts(
            kind=ServiceKind.WORKER,
            service_id="tiny-1",
            node_id=config.node_id,
            address=server.address,
            metrics_address=metrics.address,
            started_at=wall_clock(),
        )

        async def block() -> None:
            time.sleep(config.block_on_drain_s)  # noqa: ASYNC251 - what the watchdog must see

        await serve(
            server,
            Registration(redis, facts).run(),
            background(config, servicer),
            announce_s=config.announce_s,
            drain_s=config.drain_s,
            before_drain=block,
            ready=Ready(
                path=config.ready_file,
                service="tiny",
                service_id="tiny-1",
                metrics_address=metrics.address,
            ),
        )


if __name__ == "__main__":
    sys.exit(run_service(TinyConfig, main, sys.argv[1:]))
