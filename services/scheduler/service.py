"""The gRPC face towards routers and workers: messages to our types and back, nothing else."""

# ruff: noqa: ARG002, N802 - the methods' names and arguments are the wire's

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
from brisk.scheduler.v1 import scheduler_service_pb2 as pb2
from brisk.scheduler.v1 import scheduler_service_pb2_grpc as pb2_grpc

from services.common.errors import InvalidArgumentError
from services.common.names import parse_id, parse_request_id
from services.common.wire import (
    progress_to_proto,
    report_to_proto,
    route_to_proto,
    worker_state_from_proto,
)
from services.scheduler.actions import Grant
from services.scheduler.election import Election
from services.scheduler.events import Line
from services.scheduler.streams import RouteChange

SERVICE_NAME: Final = pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name
ENDLESS_METHODS: Final = (f"/{SERVICE_NAME}/WatchRoutes",)
EXCLUDED_MAX: Final = 64
LINES_MAX: Final = 10_000

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class SchedulerServicer(pb2_grpc.SchedulerServiceServicer):
    """Answers brisk.scheduler.v1.SchedulerService while this scheduler leads."""

    def __init__(self, election: Election) -> None:
        self._election = election

    async def Acquire(
        self, request: pb2.AcquireRequest, context: Context
    ) -> AsyncGenerator[pb2.AcquireResponse]:
        """Get an instance; see the proto."""
        reign = await self._election.leader()
        request_id = parse_request_id(request.request_id)
        excluded = frozenset(request.excluded_instance_ids)
        if len(excluded) > EXCLUDED_MAX:
            raise InvalidArgumentError(
                f"at most {EXCLUDED_MAX} instances can be excluded. Given: {len(excluded)}"
            )
        left_s: float | None = context.time_remaining()  # None without a deadline
        within_s = math.inf if left_s is None else left_s
        events = reign.acquire(request_id, request.deployment, excluded, within_s)
        async with aclosing(events) as told:
            async for each in told:
                if isinstance(each, Grant):
                    granted = pb2.Granted(
                        route=route_to_proto(each.route), start=report_to_proto(each.start)
                    )
                    yield pb2.AcquireResponse(granted=granted)
                else:
                    yield pb2.AcquireResponse(progress=progress_to_proto(each))

    async def Release(self, request: pb2.ReleaseRequest, context: Context) -> pb2.ReleaseResponse:
        """Take a grant back; see the proto."""
        reign = await self._election.leader()
        reign.release(request.request_id)
        return pb2.ReleaseResponse()

    async def WatchRoutes(
        self, request: pb2.WatchRoutesRequest, context: Context
    ) -> AsyncGenerator[pb2.WatchRoutesResponse]:
        """Tell the routes and their changes; see the proto."""
        reign = await self._election.leader()
        async with aclosing(reign.watch_routes()) as changes:
            async for change in changes:
                yield _change(change, reign.epoch)

    async def ReportWorker(
        self, request: pb2.ReportWorkerRequest, context: Context
    ) -> pb2.ReportWorkerResponse:
        """Take a worker's state in; see the proto."""
        reign = await self._election.leader()
        reign.report(worker_state_from_proto(request.state))
        return pb2.ReportWorkerResponse()

    async def ReportDemand(
        self, request: pb2.ReportDemandRequest, context: Context
    ) -> pb2.ReportDemandResponse:
        """Take a router's lines in; see the proto."""
        reign = await self._election.leader()
        if len(request.lines) > LINES_MAX:
            raise InvalidArgumentError(
                f"at most {LINES_MAX} lines can be told. Given: {len(request.lines)}"
            )
        router_id = parse_id(request.router_id, what="router id")
        lines = tuple(Line(each.deployment, each.waiting) for each in request.lines)
        reign.hear_demand(router_id, lines)
        return pb2.ReportDemandResponse()


def _change(change: RouteChange, epoch: int) -> pb2.WatchRoutesResponse:
    return pb2.WatchRoutesResponse(
        is_snapshot=change.is_snapshot,
        upserted=[route_to_proto(route) for route in change.upserted],
        removed_instance_ids=change.removed,
        leader_epoch=epoch,
    )
