"""The scheduler's ports over gRPC and Redis: workers, store managers, registry, records."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from typing import Any, Final, TypeVar, cast

import grpc
from brisk.storage.v1 import storage_service_pb2 as storage_pb2
from brisk.storage.v1 import storage_service_pb2_grpc as storage_grpc
from brisk.worker.v1 import worker_service_pb2 as worker_pb2
from brisk.worker.v1 import worker_service_pb2_grpc as worker_grpc
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.common.channel import ChannelPool
from services.common.errors import UnavailableError
from services.common.keys import DEPLOYMENTS, ServiceKind
from services.common.lease import FencedHash
from services.common.model import ModelInfo, ModelRef, StartProgress, StartReport
from services.common.placement import WorkerState
from services.common.registry import Registry, ServiceFacts
from services.common.status import from_rpc_error
from services.common.wire import (
    duration_from_proto,
    model_info_from_proto,
    model_ref_to_proto,
    progress_from_proto,
    report_from_proto,
    worker_state_from_proto,
)
from services.scheduler.actions import StartLoad, StartUnload
from services.scheduler.deployments import MARK
from services.scheduler.ports import ImportProgress, Peer, StoreContents
from services.scheduler.residency import Stored

DESCRIBE_S_MAX: Final = 1.0  # a worker that takes longer does not answer
CHECK_S_MAX: Final = 120.0
EVICT_S_MAX: Final = 60.0
DRAIN_S_MAX: Final = 600.0  # then it is asked again
IMPORT_S_MAX: Final = 24 * 3600.0
STORE_S_MAX: Final = 30.0

Answer = TypeVar("Answer")


async def _told(call: Awaitable[Answer]) -> Answer:
    """Return what a peer answers. Raises BriskError instead of gRPC's own."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


class GrpcWorkers:
    """`ports.Workers`."""

    def __init__(self, pool: ChannelPool, *, load_s_max: float) -> None:
        self._pool = pool
        self._load_s_max = load_s_max

    async def load(
        self, order: StartLoad, epoch: int
    ) -> AsyncGenerator[StartProgress | StartReport]:
        """See the port."""
        request = worker_pb2.LoadRequest(
            instance_id=order.instance_id,
            deployment=order.deployment,
            model=model_ref_to_proto(order.model),
            device_id=order.device_id,
            slots=order.slots,
            context_tokens_max=order.context_tokens_max,
            memory_bytes=order.memory_bytes,
            leader_epoch=epoch,
        )
        with self._pool.use(order.address) as channel:
            call = worker_grpc.WorkerServiceStub(channel).Load(request, timeout=self._load_s_max)
            report: StartReport | None = None
            try:
                async for response in call:
                    if response.HasField("loaded"):
                        report = report_from_proto(response.loaded.start)
                    else:
                        yield progress_from_proto(response.progress)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
            finally:
                call.cancel()
        # Not before the worker has ended the stream: until then a cancel would undo the load,
        # and whoever was granted the instance would be turned away.
        if report is not None:
            yield report

    async def unload(self, order: StartUnload, epoch: int) -> None:
        """See the port."""
        request = worker_pb2.UnloadRequest(
            instance_id=order.instance_id, only_if_idle=order.only_if_idle, leader_epoch=epoch
        )
        timeout_s = EVICT_S_MAX if order.only_if_idle else DRAIN_S_MAX
        with self._pool.use(order.address) as channel:
            stub = worker_grpc.WorkerServiceStub(channel)
            await _told(stub.Unload(request, timeout=timeout_s))

    async def describe(self, address: str) -> WorkerState:
        """See the port."""
        with self._pool.use(address) as channel:
            stub = worker_grpc.WorkerServiceStub(channel)
            request = worker_pb2.DescribeRequest()
            response = await _told(stub.Describe(request, timeout=DESCRIBE_S_MAX))
        return worker_state_from_proto(response.state)

    async def check(self, address: str, model: ModelRef) -> None:
        """See the port."""
        with self._pool.use(address) as channel:
            stub = worker_grpc.WorkerServiceStub(channel)
            request = worker_pb2.CheckRequest(model=model_ref_to_proto(model))
            await _told(stub.Check(request, timeout=CHECK_S_MAX))


class GrpcStores:
    """`ports.Stores`."""

    def __init__(self, pool: ChannelPool) -> None:
        self._pool = pool

    async def import_model(
        self, address: str, source_path: str, name: str, *, as_is: bool
    ) -> AsyncGenerator[ImportProgress | ModelInfo]:
        """See the port."""
        request = storage_pb2.ImportRequest(source_path=source_path, name=name, as_is=as_is)
        with self._pool.use(address) as channel:
            call = storage_grpc.StorageServiceStub(channel).Import(request, timeout=IMPORT_S_MAX)
            try:
                async for response in call:
                    if response.HasField("model"):
                        yield model_info_from_proto(response.model)
                        return
                    yield ImportProgress(
                        bytes_done=response.bytes_done,
                        bytes_total=response.bytes_total,
                        file=response.file,
                        bytes_per_s=response.bytes_per_second,
                        origin=response.origin,
                    )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
            finally:
                call.cancel()

    async def models(self, address: str) -> tuple[ModelInfo, ...]:
        """See the port."""
        with self._pool.use(address) as channel:
            stub = storage_grpc.StorageServiceStub(channel)
            request = storage_pb2.DescribeRequest()
            response = await _told(stub.Describe(request, timeout=STORE_S_MAX))
        return tuple(model_info_from_proto(stored.info) for stored in response.models)

    async def contents(self, address: str) -> StoreContents:
        """See the port."""
        with self._pool.use(address) as channel:
            stub = storage_grpc.StorageServiceStub(channel)
            request = storage_pb2.DescribeRequest()
            response = await _told(stub.Describe(request, timeout=DESCRIBE_S_MAX))
        return StoreContents(
            stored=tuple(
                Stored(model_info_from_proto(each.info).ref, each.dram_bytes)
                for each in response.models
            ),
            busy_s=duration_from_proto(response.disk.busy_for),
        )

    async def delete(self, address: str, model: ModelRef) -> None:
        """See the port."""
        with self._pool.use(address) as channel:
            stub = storage_grpc.StorageServiceStub(channel)
            request = storage_pb2.DeleteRequest(model=model_ref_to_proto(model))
            await _told(stub.Delete(request, timeout=STORE_S_MAX))


class RegistryPeers:
    """`ports.Peers`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def stores(self) -> tuple[Peer, ...]:
        """See the port."""
        return _peers(await self._registry.list(ServiceKind.STOREMGR))

    async def watch_workers(self) -> AsyncGenerator[tuple[Peer, ...]]:
        """See the port."""
        async with aclosing(self._registry.watch(ServiceKind.WORKER)) as sets:
            async for facts in sets:
                yield _peers(facts)


def _peers(facts: tuple[ServiceFacts, ...]) -> tuple[Peer, ...]:
    return tuple(
        Peer(service_id=each.service_id, node_id=each.node_id, address=each.address)
        for each in facts
    )


class RedisRecords:
    """`ports.Records` in one Redis hash."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._hash = FencedHash(redis, DEPLOYMENTS)

    async def read(self) -> Mapping[str, str]:
        """See the port."""
        return await self._hash.read()

    async def mark(self) -> str | None:
        """See the port."""
        try:
            reply = cast("Awaitable[Any]", self._redis.hget(DEPLOYMENTS, MARK))
            value = await reply
        except RedisError as error:
            raise UnavailableError("cluster state is unreachable", retry_after_s=1.0) from error
        return None if value is None else str(value)

    async def put(self, epoch: int, field: str, value: str) -> None:
        """See the port."""
        await self._hash.put(epoch, field, value)

    async def delete(self, epoch: int, field: str) -> None:
        """See the port."""
        await self._hash.delete(epoch, field)
