"""A worker without models, over real gRPC: it registers, reports, loads, unloads and counts epochs.

True to the contract of WorkerService in all that a scheduler can see: budgets are kept, loads are
idempotent by instance and undone when cancelled, busy instances refuse to be evicted, orders of an
older leader are refused, and every state has a higher sequence. Tests hold and release loads, and
make instances busy, by hand.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from brisk.common.v1 import model_pb2
from brisk.scheduler.v1 import scheduler_service_pb2 as scheduler_pb2
from brisk.scheduler.v1 import scheduler_service_pb2_grpc as scheduler_grpc
from brisk.worker.v1 import worker_service_pb2 as pb2
from brisk.worker.v1 import worker_service_pb2_grpc as pb2_grpc
from pydantic import SecretStr

from services.common.channel import ChannelPool
from services.common.clock import monotonic_s, wall_clock
from services.common.errors import (
    BriskError,
    FailedPreconditionError,
    Reason,
    ResourceExhaustedError,
)
from services.common.keys import ServiceKind
from services.common.leader import LeaderLocator
from services.common.model import ModelRef, StartPhase, StartProgress, StartReport, Tier
from services.common.names import new_id, parse_model_name
from services.common.placement import Device, Instance, InstanceState, WorkerState
from services.common.redis_client import connect
from services.common.registry import Registration, ServiceFacts
from services.common.server import INTERNAL_LIMITS, HouseServer, create_server
from services.common.wire import progress_to_proto, report_to_proto, worker_state_to_proto

REPORT_S = 0.5
SERVICE_NAME = pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(slots=True, kw_only=True)
class Held:
    """An instance that the worker holds."""

    order: pb2.LoadRequest
    state: InstanceState = InstanceState.LOADING
    running: int = 0
    idle_since_s: float = field(default_factory=monotonic_s)
    drained: asyncio.Event = field(default_factory=asyncio.Event)


class FakeWorkerServer(pb2_grpc.WorkerServiceServicer):
    """One worker; `run_worker` starts it."""

    def __init__(self, worker_id: str, node_id: str, devices: Mapping[str, int]) -> None:
        self.worker_id = worker_id
        self.node_id = node_id
        self.devices = dict(devices)
        self.address = ""
        self.held: dict[str, Held] = {}
        self.loads: list[pb2.LoadRequest] = []  # in the order they came
        self.cancelled: list[str] = []  # loads that were given up by their caller
        self.unloads: list[pb2.UnloadRequest] = []
        self.checked: list[model_pb2.ModelRef] = []
        self.request_ids: list[str] = []  # with which loads came
        self.refusals: deque[BriskError] = deque()  # what the next loads end with
        self.check_refusal: BriskError | None = None
        self.may_load = asyncio.Event()  # cleared: loads stay half-way
        self.may_load.set()
        self.may_end_load = asyncio.Event()  # cleared: loads have told all, but stay open
        self.may_end_load.set()
        self.told_loaded = asyncio.Event()
        self.is_draining = False
        self.is_silent = False
        self.changed = asyncio.Event()
        self._epoch = 0
        self._sequence = 0

    # --- what tests do ---

    def busy(self, instance_id: str, running: int = 1) -> None:
        """Give an instance sequences, or take them away."""
        held = self.held[instance_id]
        held.running, held.idle_since_s = running, monotonic_s()
        if not running:
            held.drained.set()
        self.changed.set()

    def used(self, device_id: str) -> int:
        """Return the bytes reserved on a device."""
        here = [each.order for each in self.held.values() if each.order.device_id == device_id]
        return sum(order.memory_bytes for order in here)

    def state(self) -> WorkerState:
        """Return what it says about itself."""
        self._sequence += 1
        now_s = monotonic_s()
        return WorkerState(
            worker_id=self.worker_id,
            node_id=self.node_id,
            address=self.address,
            devices=tuple(
                Device(device_id=key, memory_bytes=size, free_bytes=size - self.used(key))
                for key, size in self.devices.items()
            ),
            instances=tuple(self._instance(each, now_s) for each in self.held.values()),
            draining=self.is_draining,
            sequence=self._sequence,
        )

    def _instance(self, held: Held, now_s: float) -> Instance:
        order = held.order
        name = parse_model_name(order.model.name)
        return Instance(
            instance_id=order.instance_id,
            deployment=order.deployment,
            model=ModelRef(name=name, revision=order.model.revision),
            worker_id=self.worker_id,
            device_id=order.device_id,
            memory_bytes=order.memory_bytes,
            slots=order.slots,
            state=held.state,
            running=held.running,
            idle_s=None if held.running else now_s - held.idle_since_s,
        )

    # --- WorkerService ---

    async def Check(  # noqa: N802 - gRPC's name
        self, request: pb2.CheckRequest, context: Context
    ) -> pb2.CheckResponse:
        self.checked.append(request.model)
        if self.check_refusal is not None:
            raise self.check_refusal
        return pb2.CheckResponse()

    async def Load(  # noqa: N802
        self, request: pb2.LoadRequest, context: Context
    ) -> AsyncIterator[pb2.LoadResponse]:
        self._fence(request.leader_epoch)
        self.loads.append(request)
        metadata = dict(context.invocation_metadata() or ())
        self.request_ids.append(str(metadata.get("x-request-id", "")))
        if self.refusals:
            raise self.refusals.popleft()
        room = self.devices[request.device_id] - self.used(request.device_id)
        if request.memory_bytes > room:
            raise ResourceExhaustedError("device is full", reason=Reason.INSUFFICIENT_MEMORY)
        held = self.held[request.instance_id] = Held(order=request)
        is_taken = False
        self.changed.set()
        try:
            half = StartProgress(phase=StartPhase.LOAD, bytes_done=1, bytes_total=2)
            yield pb2.LoadResponse(progress=progress_to_proto(half))
            await self.may_load.wait()
            held.state, held.idle_since_s = InstanceState.READY, monotonic_s()
            self.changed.set()
            start = StartReport(cold=True, source=Tier.SSD)
            yield pb2.LoadResponse(loaded=pb2.Loaded(start=report_to_proto(start)))
            self.told_loaded.set()
            await self.may_end_load.wait()
            is_taken = True
        finally:
            if not is_taken:
                self.cancelled.append(request.instance_id)
                self.held.pop(request.instance_id, None)
            self.changed.set()

    async def Unload(  # noqa: N802
        self, request: pb2.UnloadRequest, context: Context
    ) -> pb2.UnloadResponse:
        self._fence(request.leader_epoch)
        self.unloads.append(request)
        held = self.held.get(request.instance_id)
        if held is None:
            return pb2.UnloadResponse()
        if request.only_if_idle and held.running:
            raise FailedPreconditionError("it has sequences", reason=Reason.INSTANCE_BUSY)
        held.state = InstanceState.LEAVING
        self.changed.set()
        if held.running:
            held.drained.clear()
            await held.drained.wait()
        self.held.pop(request.instance_id, None)
        self.changed.set()
        return pb2.UnloadResponse()

    async def Generate(  # noqa: N802
        self, request: pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[pb2.GenerateResponse]:
        raise FailedPreconditionError("it decodes nothing", reason=Reason.INSTANCE_GONE)
        yield pb2.GenerateResponse()

    async def Tokenize(  # noqa: N802
        self, request: pb2.TokenizeRequest, context: Context
    ) -> pb2.TokenizeResponse:
        raise FailedPreconditionError("it has no tokenizer", reason=Reason.INSTANCE_GONE)

    async def Describe(  # noqa: N802
        self, request: pb2.DescribeRequest, context: Context
    ) -> pb2.DescribeResponse:
        return pb2.DescribeResponse(state=worker_state_to_proto(self.state()))

    def _fence(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise FailedPreconditionError("a newer leader is known", reason=Reason.STALE_EPOCH)
        self._epoch = epoch

    # --- what it does by itself ---

    async def report(self, redis_url: str) -> None:
        """Tell whoever leads, twice a second and at once when something changes."""
        async with AsyncExitStack() as stack:
            redis = connect(SecretStr(redis_url))
            stack.push_async_callback(redis.aclose)
            pool = ChannelPool()
            stack.push_async_callback(pool.close)
            locator = LeaderLocator(redis)
            while True:
                self.changed.clear()
                if not self.is_silent:
                    with suppress(BriskError, grpc.aio.AioRpcError):
                        await self._report_once(locator, pool)
                with suppress(TimeoutError):
                    async with asyncio.timeout(REPORT_S):
                        await self.changed.wait()

    async def _report_once(self, locator: LeaderLocator, pool: ChannelPool) -> None:
        leader = await locator.locate()
        request = scheduler_pb2.ReportWorkerRequest(state=worker_state_to_proto(self.state()))
        try:
            with pool.use(leader.address) as channel:
                stub = scheduler_grpc.SchedulerServiceStub(channel)
                await stub.ReportWorker(request, timeout=1.0)
        except grpc.aio.AioRpcError:
            locator.invalidate(leader)
            raise


@asynccontextmanager
async def run_worker(
    redis_url: str,
    *,
    worker_id: str = "",
    node_id: str = "node-1",
    devices: Mapping[str, int] | None = None,
) -> AsyncIterator[FakeWorkerServer]:
    """Run a worker for the block; then it is gone as if killed, but for its registration."""
    worker = FakeWorkerServer(
        worker_id or new_id("worker"), node_id, devices or {"cpu:0": 1_000_000}
    )
    server = create_server(
        "127.0.0.1:0", limits=INTERNAL_LIMITS, reflection=False, service_names=(SERVICE_NAME,)
    )
    worker.address = server.address
    pb2_grpc.add_WorkerServiceServicer_to_server(worker, server.server)
    await server.start_serving()
    redis = connect(SecretStr(redis_url))
    tasks = [
        asyncio.ensure_future(Registration(redis, _facts(worker, server)).run()),
        asyncio.ensure_future(worker.report(redis_url)),
    ]
    try:
        yield worker
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.server.stop(grace=None)
        await redis.aclose()


def _facts(worker: FakeWorkerServer, server: HouseServer) -> ServiceFacts:
    return ServiceFacts(
        kind=ServiceKind.WORKER,
        service_id=worker.worker_id,
        node_id=worker.node_id,
        address=server.address,
        metrics_address="",
        started_at=wall_clock(),
    )
