"""The router's ports over gRPC: the leading scheduler, its catalog and the workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

import grpc
from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk.control.v1 import control_service_pb2_grpc as control_grpc
from brisk.scheduler.v1 import scheduler_service_pb2 as scheduler_pb2
from brisk.scheduler.v1 import scheduler_service_pb2_grpc as scheduler_grpc
from brisk.worker.v1 import worker_service_pb2 as worker_pb2
from brisk.worker.v1 import worker_service_pb2_grpc as worker_grpc

from services.common.channel import ChannelPool
from services.common.deadline import Deadline
from services.common.errors import (
    AbortedError,
    BriskError,
    DeadlineError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.leader import LeaderLocator
from services.common.lease import LeaderIdentity
from services.common.model import Tokenized
from services.common.placement import Route
from services.common.status import from_rpc_error
from services.common.wire import progress_from_proto, report_from_proto, route_from_proto
from services.common.wire_sequence import prompt_to_proto, sampling_to_proto
from services.router.job import Job
from services.router.ports import AcquireEvent, Grant, ModelCard, ModelState, RouteUpdate

Answer = TypeVar("Answer")

# A watch is renewed now and then: no call is without a deadline, and a fresh snapshot mends
# whatever went wrong in the table.
_WATCH_S_MAX: Final = 300.0
_TRAILER_S_MAX: Final = 0.25  # usually it comes with the last message
_RETRY_AFTER_S: Final = 1.0
_TRIES_MAX: Final = 2
_NOT_THE_LEADER: Final = frozenset(
    {Reason.UNAVAILABLE, Reason.NOT_LEADER, Reason.NO_LEADER, Reason.SHUTTING_DOWN}
)


class GrpcScheduler:
    """`ports.Scheduler` on whichever scheduler leads."""

    def __init__(self, pool: ChannelPool, locator: LeaderLocator, router_id: str) -> None:
        self._pool = pool
        self._locator = locator
        self._router_id = router_id

    async def acquire(
        self, grant_id: str, deployment: str, excluded: frozenset[str], deadline: Deadline
    ) -> AsyncGenerator[AcquireEvent]:
        """Yield progress, then the grant. Closing it cancels the call."""
        request = scheduler_pb2.AcquireRequest(
            request_id=grant_id, deployment=deployment, excluded_instance_ids=sorted(excluded)
        )
        leader = await self._locator.locate()
        with self._pool.use(leader.address) as channel:
            stub = scheduler_grpc.SchedulerServiceStub(channel)
            call = stub.Acquire(request, timeout=deadline.remaining_s())
            try:
                async for response in call:
                    if response.HasField("granted"):
                        await _see_out(call)
                        yield _grant(grant_id, response.granted)
                        return
                    yield progress_from_proto(response.progress)
            except grpc.aio.AioRpcError as error:
                raise self._told(error, leader) from error
            finally:
                call.cancel()
        raise self._lost(leader)  # it stopped leading in the middle

    async def release(self, grant_id: str, deadline: Deadline) -> None:
        """Give a grant back."""
        leader = await self._locator.locate()
        with self._pool.use(leader.address) as channel:
            stub = scheduler_grpc.SchedulerServiceStub(channel)
            try:
                await stub.Release(
                    scheduler_pb2.ReleaseRequest(request_id=grant_id),
                    timeout=deadline.remaining_s(),
                )
            except grpc.aio.AioRpcError as error:
                raise self._told(error, leader) from error

    async def report_demand(self, lines: Mapping[str, int], deadline: Deadline) -> None:
        """Tell how many requests are in line for each deployment."""
        request = scheduler_pb2.ReportDemandRequest(
            router_id=self._router_id,
            lines=[
                scheduler_pb2.DemandLine(deployment=model, waiting=waiting)
                for model, waiting in lines.items()
            ],
        )
        leader = await self._locator.locate()
        with self._pool.use(leader.address) as channel:
            stub = scheduler_grpc.SchedulerServiceStub(channel)
            try:
                await stub.ReportDemand(request, timeout=deadline.remaining_s())
            except grpc.aio.AioRpcError as error:
                raise self._told(error, leader) from error

    async def watch_routes(self) -> AsyncGenerator[RouteUpdate]:
        """Yield updates until the leadership ends, or for five minutes."""
        leader = await self._locator.locate()
        with self._pool.use(leader.address) as channel:
            stub = scheduler_grpc.SchedulerServiceStub(channel)
            request = scheduler_pb2.WatchRoutesRequest(router_id=self._router_id)
            call = stub.WatchRoutes(request, timeout=_WATCH_S_MAX)
            try:
                async for response in call:
                    yield _route_update(response)
            except grpc.aio.AioRpcError as error:
                told = self._told(error, leader)
                if not isinstance(told, DeadlineError):
                    raise told from error
            else:
                self._locator.invalidate(leader)
            finally:
                call.cancel()

    def _told(self, error: grpc.aio.AioRpcError, leader: LeaderIdentity) -> BriskError:
        """Return what the scheduler answered; one that leads no more is looked up anew."""
        ours = from_rpc_error(error)
        is_away = isinstance(ours, UnavailableError) and ours.reason in _NOT_THE_LEADER
        if is_away or isinstance(ours, AbortedError):
            return self._lost(leader)
        return ours

    def _lost(self, leader: LeaderIdentity) -> UnavailableError:
        self._locator.invalidate(leader)
        return _no_leader()


class GrpcCatalog:
    """`ports.Catalog` on whichever scheduler leads."""

    def __init__(self, pool: ChannelPool, locator: LeaderLocator) -> None:
        self._pool = pool
        self._locator = locator

    async def models(self, deadline: Deadline) -> tuple[ModelCard, ...]:
        """Return all models."""
        request = control_pb2.ListModelsRequest()
        answer = await self._ask(lambda stub, s: stub.ListModels(request, timeout=s), deadline)
        return tuple(_card(deployment) for deployment in answer.deployments)

    async def model(self, name: str, deadline: Deadline) -> ModelCard:
        """Return one model."""
        request = control_pb2.GetModelRequest(name=name)
        answer = await self._ask(lambda stub, s: stub.GetModel(request, timeout=s), deadline)
        return _card(answer.deployment)

    async def _ask(
        self,
        call: Callable[[control_grpc.ControlServiceAsyncStub, float], Awaitable[Answer]],
        deadline: Deadline,
    ) -> Answer:
        """Ask the leader; these calls change nothing, so a leader that is away is asked once more.

        The second time another one may lead.
        """
        for _ in range(_TRIES_MAX):
            leader = await self._locator.locate()
            with self._pool.use(leader.address) as channel:
                stub = control_grpc.ControlServiceStub(channel)
                try:
                    return await call(stub, deadline.remaining_s())
                except grpc.aio.AioRpcError as error:
                    ours = from_rpc_error(error)
                    if not (isinstance(ours, UnavailableError) and ours.reason in _NOT_THE_LEADER):
                        raise ours from error
            self._locator.invalidate(leader)
        raise _no_leader()


class GrpcWorkers:
    """`ports.Workers` on the workers behind the routes."""

    def __init__(self, pool: ChannelPool) -> None:
        self._pool = pool

    async def generate(self, route: Route, job: Job) -> AsyncGenerator[worker_pb2.GenerateResponse]:
        """Yield the worker's messages as they were parsed. Closing it cancels the call."""
        request = worker_pb2.GenerateRequest(
            request_id=job.request_id,
            instance_id=route.instance_id,
            prompt=prompt_to_proto(job.prompt),
            sampling=sampling_to_proto(job.sampling),
        )
        with self._pool.use(route.worker_address) as channel:
            stub = worker_grpc.WorkerServiceStub(channel)
            call = stub.Generate(request, timeout=job.deadline.remaining_s())
            try:
                async for message in call:
                    yield message
            except grpc.aio.AioRpcError as error:
                raise _worker_told(error) from error
            finally:
                call.cancel()

    async def tokenize(self, route: Route, job: Job) -> Tokenized:
        """Return the tokens of the job's prompt. Cancelling it cancels the call."""
        request = worker_pb2.TokenizeRequest(
            request_id=job.request_id,
            instance_id=route.instance_id,
            prompt=prompt_to_proto(job.prompt),
        )
        with self._pool.use(route.worker_address) as channel:
            stub = worker_grpc.WorkerServiceStub(channel)
            try:
                answer = await stub.Tokenize(request, timeout=job.deadline.remaining_s())
            except grpc.aio.AioRpcError as error:
                raise _worker_told(error) from error
        return Tokenized(
            token_ids=tuple(answer.token_ids),
            pieces=tuple(answer.pieces),
            context_tokens_max=answer.context_tokens_max,
        )

    def prepare(self, route: Route) -> None:
        """Connect now, so that the first request does not have to."""
        with suppress(ResourceExhaustedError), self._pool.use(route.worker_address) as channel:
            channel.get_state(try_to_connect=True)


def _no_leader() -> UnavailableError:
    return UnavailableError(
        "no scheduler leads at the moment",
        reason=Reason.NO_LEADER,
        retry_after_s=_RETRY_AFTER_S,
    )


def _card(deployment: control_pb2.Deployment) -> ModelCard:
    ready, loading = deployment.instances_ready, deployment.instances_loading
    state = ModelState.READY if ready else ModelState.LOADING if loading else ModelState.ZERO
    return ModelCard(
        name=deployment.name,
        created_at_s=deployment.created_at.seconds,
        state=state,
        instances_ready=ready,
        instances_loading=loading,
        context_tokens_max=deployment.spec.context_tokens_max,
    )


async def _see_out(call: grpc.aio.Call) -> None:
    """Let the scheduler end the stream: a cancel in that moment would give the grant up."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_TRAILER_S_MAX):
            await call.code()


def _worker_told(error: grpc.aio.AioRpcError) -> BriskError:
    ours = from_rpc_error(error)
    if isinstance(ours, AbortedError):  # it gave the call up by itself, as a dying one does
        return UnavailableError("the worker gave the call up", reason=Reason.WORKER_LOST)
    return ours


def _grant(grant_id: str, granted: scheduler_pb2.Granted) -> Grant:
    return Grant(
        grant_id=grant_id,
        route=route_from_proto(granted.route),
        start=report_from_proto(granted.start),
    )


def _route_update(response: scheduler_pb2.WatchRoutesResponse) -> RouteUpdate:
    return RouteUpdate(
        leader_epoch=response.leader_epoch,
        is_snapshot=response.is_snapshot,
        upserted=tuple(route_from_proto(route) for route in response.upserted),
        removed_instance_ids=tuple(response.removed_instance_ids),
    )
