"""The node's store manager and the leading scheduler, over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import grpc
from brisk.scheduler.v1 import scheduler_service_pb2 as scheduler_pb2
from brisk.scheduler.v1 import scheduler_service_pb2_grpc as scheduler_grpc
from brisk.storage.v1 import storage_service_pb2 as storage_pb2
from brisk.storage.v1 import storage_service_pb2_grpc as storage_grpc

from services.common import wire
from services.common.channel import ChannelPool
from services.common.errors import BriskError, Reason, UnavailableError
from services.common.keys import ServiceKind
from services.common.leader import LeaderLocator
from services.common.log import get_logger
from services.common.model import ModelRef
from services.common.placement import WorkerState
from services.common.registry import Registry
from services.common.status import from_rpc_error
from services.worker.ports import Lease, MappedFile, Mapping, OnBytes

log = get_logger(__name__)

LeaseCall: TypeAlias = (
    "grpc.aio.UnaryStreamCall[storage_pb2.LeaseRequest, storage_pb2.LeaseResponse]"
)

LEASE_TIMEOUT_S: Final = 5.0  # until the lease is granted
SILENCE_TIMEOUT_S: Final = 30.0  # between two messages of a lease whose weights are on their way
REPORT_TIMEOUT_S: Final = 1.0
_RETRY_AFTER_S: Final = 1.0


class NodeStore:
    """A ModelStore: the store manager that registered for our node."""

    def __init__(
        self, registry: Registry, channels: ChannelPool, *, node_id: str, holder: str
    ) -> None:
        self._registry = registry
        self._channels = channels
        self._node_id = node_id
        self._holder = holder

    @asynccontextmanager
    async def lease(self, model: ModelRef, *, maps: bool = False) -> AsyncIterator[Lease]:
        """Hold a lease for the block; leaving it, by whatever way, ends the lease."""
        address = await self._locate()
        request = storage_pb2.LeaseRequest(
            model=wire.model_ref_to_proto(model), holder=self._holder, map=maps
        )
        with self._channels.use(address) as channel:
            # No deadline for the stream: it lasts as long as the load, which may wait for a disk.
            call = storage_grpc.StorageServiceStub(channel).Lease(request)
            try:
                yield await self._granted(call)
            finally:
                call.cancel()

    async def _granted(self, call: LeaseCall) -> Lease:
        response = await _next(call, LEASE_TIMEOUT_S)
        log.info("leased", lease=response.lease_id, holder=self._holder)
        return Lease(
            lease_id=response.lease_id,
            folder=Path(response.folder),
            weight_files=tuple(file.name for file in response.weights),
            info=wire.model_info_from_proto(response.info),
            tier=wire.tier_from_proto(response.tier),
            bring=partial(_bring, call) if response.more else None,
            is_held=lambda: not call.done(),
        )

    async def _locate(self) -> str:
        found = await self._registry.list(ServiceKind.STOREMGR)
        here = [facts for facts in found if facts.node_id == self._node_id]
        if not here:
            raise _unreachable("is not registered")
        # A restarted one may be listed beside its predecessor until that expires.
        return max(here, key=lambda facts: facts.started_at).address


class SchedulerReports:
    """A LeaderReports: whoever holds the leader's lease."""

    def __init__(self, leader: LeaderLocator, channels: ChannelPool) -> None:
        self._leader = leader
        self._channels = channels

    async def report(self, state: WorkerState) -> None:
        """Tell the leader; raises BriskError if nobody leads or the leader does not answer."""
        leader = await self._leader.locate()
        request = scheduler_pb2.ReportWorkerRequest(state=wire.worker_state_to_proto(state))
        try:
            with self._channels.use(leader.address) as channel:
                stub = scheduler_grpc.SchedulerServiceStub(channel)
                await stub.ReportWorker(request, timeout=REPORT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._leader.invalidate(leader)
            raise from_rpc_error(error) from error
        except BriskError:
            self._leader.invalidate(leader)
            raise


async def _next(call: LeaseCall, timeout_s: float) -> storage_pb2.LeaseResponse:
    try:
        async with asyncio.timeout(timeout_s):
            response = await call.read()
    except TimeoutError as error:
        raise _unreachable("did not answer in time") from error
    except grpc.aio.AioRpcError as error:
        ours = from_rpc_error(error)
        if ours.code == UnavailableError.code and ours.reason == Reason.UNAVAILABLE:
            raise _unreachable("is not reachable") from error
        raise ours from error
    if not isinstance(response, storage_pb2.LeaseResponse):  # the end of the stream
        raise _unreachable("ended the lease")
    return response


async def _bring(call: LeaseCall, on_bytes: OnBytes) -> Mapping:
    """Wait for the weights in memory. See ports.Lease."""
    while True:
        response = await _next(call, SILENCE_TIMEOUT_S)
        if response.HasField("mapping"):
            return _mapping(response.mapping)
        on_bytes(response.bytes_done, response.bytes_total)


def _mapping(message: storage_pb2.Mapping) -> Mapping:
    return Mapping(
        path=message.path,
        files=tuple(
            MappedFile(
                name=file.name,
                size_bytes=file.size_bytes,
                pieces=tuple((piece.offset, piece.size_bytes) for piece in file.pieces),
            )
            for file in message.files
        ),
    )


def _unreachable(problem: str) -> UnavailableError:
    return UnavailableError(
        f"the node's store manager {problem}",
        reason=Reason.STORE_UNREACHABLE,
        retry_after_s=_RETRY_AFTER_S,
    )
