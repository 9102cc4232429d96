"""A scheduler that keeps the wire contract and places nothing: gRPC around a list of instances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from brisk.common.v1 import model_pb2
from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk.control.v1 import control_service_pb2_grpc as control_grpc
from brisk.scheduler.v1 import scheduler_service_pb2 as pb2
from brisk.scheduler.v1 import scheduler_service_pb2_grpc as pb2_grpc
from redis.asyncio import Redis

from services.common.errors import NotFoundError, Reason, UnavailableError
from services.common.keys import LEADER_LEASE
from services.common.lease import LeaderIdentity
from services.common.model import PhaseDuration, StartPhase, StartProgress, StartReport, Tier
from services.common.placement import Route
from services.common.server import INTERNAL_LIMITS, create_server
from services.common.wire import progress_to_proto, report_to_proto, route_to_proto

WATCH = "/brisk.scheduler.v1.SchedulerService/WatchRoutes"
START = StartReport(
    cold=True,
    source=Tier.SSD,
    phases=(
        PhaseDuration(phase=StartPhase.QUEUE, duration_s=0.001),
        PhaseDuration(phase=StartPhase.LOAD, duration_s=0.002),
        PhaseDuration(phase=StartPhase.INIT, duration_s=0.003),
    ),
)


@dataclass(slots=True, eq=False)
class Watcher:
    """One WatchRoutes stream; None ends it."""

    news: asyncio.Queue[pb2.WatchRoutesResponse | None] = field(default_factory=asyncio.Queue)


class FakeScheduler(pb2_grpc.SchedulerServiceServicer):
    """Grants what is ready, starts what is startable once `started` is set."""

    def __init__(self, *, epoch: int = 1) -> None:
        self.epoch = epoch
        self.is_leading = True
        self.ready: dict[str, Route] = {}
        self.startable: dict[str, Route] = {}
        self.started = asyncio.Event()
        self.linger_s = 0.0  # between a grant and the end of its stream
        self.acquired: list[pb2.AcquireRequest] = []
        self.acquiring = 0
        self.acquire_seconds: list[float] = []  # how long each caller said it would wait
        self.given_up = asyncio.Semaphore(0)  # a permit for each Acquire cancelled
        self.released: list[str] = []
        self.lines: list[dict[str, int]] = []  # of routers, as they told them
        self.watchers: set[Watcher] = set()

    async def publish(self, *routes: Route) -> None:
        """Make instances ready and tell all watchers."""
        for route in routes:
            self.ready[route.instance_id] = route
        self._tell(pb2.WatchRoutesResponse(upserted=[route_to_proto(r) for r in routes]))

    async def withdraw(self, *instance_ids: str) -> None:
        """Take instances away and tell all watchers."""
        for instance_id in instance_ids:
            del self.ready[instance_id]
        self._tell(pb2.WatchRoutesResponse(removed_instance_ids=instance_ids))

    async def Acquire(  # noqa: N802 - gRPC's name
        self, request: pb2.AcquireRequest, context: Any
    ) -> AsyncIterator[pb2.AcquireResponse]:
        self.acquired.append(request)
        self.acquire_seconds.append(context.time_remaining())
        self._check_leads()
        self.acquiring += 1
        try:
            route = self._usable(self.ready, request)
            report = StartReport(cold=False, source=Tier.DEVICE)
            if route is None:
                route, report = self._usable(self.startable, request), START
                if route is None:
                    raise NotFoundError(
                        f"no model {request.deployment}. Near: opt-125m",
                        reason=Reason.MODEL_NOT_FOUND,
                    )
                for done in (0, 50):
                    progress = StartProgress(
                        phase=StartPhase.LOAD, bytes_done=done, bytes_total=100, source=Tier.SSD
                    )
                    yield pb2.AcquireResponse(progress=progress_to_proto(progress))
                await self.started.wait()
                if self.startable.pop(route.instance_id, None):
                    await self.publish(route)
            granted = pb2.Granted(route=route_to_proto(route), start=report_to_proto(report))
            yield pb2.AcquireResponse(granted=granted)
            await asyncio.sleep(self.linger_s)
        except (asyncio.CancelledError, GeneratorExit):  # waiting, or telling what it knows
            self.given_up.release()
            raise
        finally:
            self.acquiring -= 1

    async def Release(  # noqa: N802 - gRPC's name
        self, request: pb2.ReleaseRequest, context: Any
    ) -> pb2.ReleaseResponse:
        self.released.append(request.request_id)
        return pb2.ReleaseResponse()

    async def WatchRoutes(  # noqa: N802 - gRPC's name
        self, request: pb2.WatchRoutesRequest, context: Any
    ) -> AsyncIterator[pb2.WatchRoutesResponse]:
        self._check_leads()
        watcher = Watcher()
        self.watchers.add(watcher)
        try:
            yield pb2.WatchRoutesResponse(
                is_snapshot=True,
                upserted=[route_to_proto(route) for route in self.ready.values()],
                leader_epoch=self.epoch,
            )
            while (news := await watcher.news.get()) is not None:
                yield news
        finally:
            self.watchers.discard(watcher)

    async def ReportWorker(  # noqa: N802 - gRPC's name
        self, request: pb2.ReportWorkerRequest, context: Any
    ) -> pb2.ReportWorkerResponse:
        return pb2.ReportWorkerResponse()

    async def ReportDemand(  # noqa: N802 - gRPC's name
        self, request: pb2.ReportDemandRequest, context: Any
    ) -> pb2.ReportDemandResponse:
        self.lines.append({each.deployment: each.waiting for each in request.lines})
        return pb2.ReportDemandResponse()

    def _tell(self, news: pb2.WatchRoutesResponse) -> None:
        news.leader_epoch = self.epoch
        for watcher in self.watchers:
            watcher.news.put_nowait(news)

    def _check_leads(self) -> None:
        if not self.is_leading:
            raise UnavailableError("I do not lead", reason=Reason.NOT_LEADER, retry_after_s=1.0)

    @staticmethod
    def _usable(routes: dict[str, Route], request: pb2.AcquireRequest) -> Route | None:
        for route in routes.values():
            is_excluded = route.instance_id in request.excluded_instance_ids
            if route.deployment == request.deployment and not is_excluded:
                return route
        return None


class FakeControl(control_grpc.ControlServiceServicer):
    """Answers each kind of control call: at once, as a stream, with a refusal, or never."""

    def __init__(self, scheduler: FakeScheduler) -> None:
        self._scheduler = scheduler
        self.seconds: list[float] = []
        self.request_ids: list[str] = []
        self.is_importing = asyncio.Event()
        self.is_given_up = asyncio.Event()

    async def ListModels(  # noqa: N802 - gRPC's name
        self, request: control_pb2.ListModelsRequest, context: Any
    ) -> control_pb2.ListModelsResponse:
        self._note(context)
        return control_pb2.ListModelsResponse(
            deployments=[control_pb2.Deployment(name="opt-125m", instances_ready=1)]
        )

    async def GetModel(  # noqa: N802 - gRPC's name
        self, request: control_pb2.GetModelRequest, context: Any
    ) -> control_pb2.GetModelResponse:
        self._note(context)
        raise NotFoundError(
            f"no model {request.name}",
            reason=Reason.MODEL_NOT_FOUND,
            retry_after_s=1.5,
            metadata={"near": "opt-125m"},
        )

    async def Deploy(  # noqa: N802 - gRPC's name
        self, request: control_pb2.DeployRequest, context: Any
    ) -> AsyncIterator[control_pb2.DeployResponse]:
        self._note(context)
        for done in range(3):
            progress = control_pb2.ImportProgress(bytes_done=done, bytes_total=3)
            yield control_pb2.DeployResponse(progress=progress)
        yield control_pb2.DeployResponse(deployment=control_pb2.Deployment(name=request.name))

    async def Import(  # noqa: N802 - gRPC's name
        self, request: control_pb2.ImportRequest, context: Any
    ) -> AsyncIterator[control_pb2.ImportResponse]:
        self._note(context)
        self.is_importing.set()
        try:
            yield control_pb2.ImportResponse(progress=control_pb2.ImportProgress(bytes_total=9))
            await asyncio.get_running_loop().create_future()
            yield control_pb2.ImportResponse(model=model_pb2.ModelInfo())
        finally:
            self.is_given_up.set()

    async def Delete(  # noqa: N802 - gRPC's name
        self, request: control_pb2.DeleteRequest, context: Any
    ) -> control_pb2.DeleteResponse:
        raise RuntimeError("a bug of the scheduler's")

    async def ListNodes(  # noqa: N802 - gRPC's name
        self, request: control_pb2.ListNodesRequest, context: Any
    ) -> control_pb2.ListNodesResponse:
        raise NotImplementedError

    async def ListInstances(  # noqa: N802 - gRPC's name
        self, request: control_pb2.ListInstancesRequest, context: Any
    ) -> control_pb2.ListInstancesResponse:
        raise NotImplementedError

    async def Explain(  # noqa: N802 - gRPC's name
        self, request: control_pb2.ExplainRequest, context: Any
    ) -> control_pb2.ExplainResponse:
        raise NotImplementedError

    def _note(self, context: Any) -> None:
        self._scheduler._check_leads()  # noqa: SLF001 - one process, two faces
        self.seconds.append(context.time_remaining())
        self.request_ids += [
            str(v) for k, v in context.invocation_metadata() if k == "x-request-id"
        ]


@dataclass(slots=True, kw_only=True)
class RunningScheduler:
    """A scheduler that listens; `lead` makes it the leader."""

    scheduler: FakeScheduler
    control: FakeControl
    address: str
    server: grpc.aio.Server

    async def stop(self) -> None:
        """Cut all calls and refuse new ones. Idempotent."""
        await self.server.stop(None)

    async def lead(self, redis_url: str) -> None:
        """Hold the lease, for longer than any test."""
        identity = LeaderIdentity(scheduler_id=f"s-{self.address}", address=self.address)
        async with Redis.from_url(redis_url) as redis:
            await redis.set(LEADER_LEASE, identity.to_json(), px=600_000)


@asynccontextmanager
async def run_scheduler(*, epoch: int = 1) -> AsyncIterator[RunningScheduler]:
    """Run a scheduler in this process; leaving the block cuts all its calls."""
    server = create_server(
        "127.0.0.1:0", limits=INTERNAL_LIMITS, reflection=False, service_names=()
    )
    scheduler = FakeScheduler(epoch=epoch)
    control = FakeControl(scheduler)
    pb2_grpc.add_SchedulerServiceServicer_to_server(scheduler, server.server)
    control_grpc.add_ControlServiceServicer_to_server(control, server.server)
    await server.start_serving()
    running = RunningScheduler(
        scheduler=scheduler, control=control, address=server.address, server=server.server
    )
    try:
        yield running
    finally:
        await running.stop()
