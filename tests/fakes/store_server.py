"""A store manager without files, over real gRPC: it registers, imports, lists and deletes.

A folder's name decides what becomes of it: any other than the few below is a good model whose
revision depends on the name only, as a real one's depends on the content only.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
from brisk.common.v1 import model_pb2
from brisk.storage.v1 import storage_service_pb2 as pb2
from brisk.storage.v1 import storage_service_pb2_grpc as pb2_grpc
from pydantic import SecretStr

from services.common.clock import wall_clock
from services.common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
)
from services.common.keys import ServiceKind
from services.common.names import new_id
from services.common.redis_client import connect
from services.common.registry import Registration, Registry, ServiceFacts
from services.common.server import INTERNAL_LIMITS, create_server

SERVICE_NAME = pb2.DESCRIPTOR.services_by_name["StorageService"].full_name
WEIGHT_BYTES = 1000
CONTEXT_TOKENS_MAX = 128

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class FakeStoreServer(pb2_grpc.StorageServiceServicer):
    """One store manager; `run_store` starts it."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.models: dict[tuple[str, str], model_pb2.ModelInfo] = {}  # by name and revision
        self.leased: set[str] = set()  # names
        self.imports: list[str] = []
        self.cancelled: list[str] = []
        self.may_import = asyncio.Event()  # cleared: imports stay half-way
        self.may_import.set()
        self.is_full = False
        self.salt = ""  # two nodes with different ones have different files under one path

    async def Import(  # noqa: N802 - gRPC's name
        self, request: pb2.ImportRequest, context: Context
    ) -> AsyncIterator[pb2.ImportResponse]:
        folder = request.source_path.rsplit("/", 1)[-1]
        self.imports.append(request.source_path)
        if folder == "missing":
            raise NotFoundError("no such folder", reason=Reason.SOURCE_NOT_FOUND)
        if folder == "pickled":
            raise InvalidArgumentError("only pickle weights", reason=Reason.INVALID_MODEL)
        if self.is_full:
            raise ResourceExhaustedError("disk is full", reason=Reason.DISK_FULL)
        try:
            yield pb2.ImportResponse(bytes_done=1, bytes_total=WEIGHT_BYTES, file="weights")
            await self.may_import.wait()
        except asyncio.CancelledError:
            self.cancelled.append(folder)
            raise
        name = request.name or folder
        info = self.info(name, folder + self.salt)
        self.models[name, info.ref.revision] = info
        yield pb2.ImportResponse(bytes_done=WEIGHT_BYTES, bytes_total=WEIGHT_BYTES, model=info)

    def info(self, name: str, content: str) -> model_pb2.ModelInfo:
        """Return what is known about a model with this content."""
        revision = hashlib.sha256(content.encode()).hexdigest()[:16]
        return model_pb2.ModelInfo(
            ref=model_pb2.ModelRef(name=name, revision=revision),
            architecture="LlamaForCausalLM",
            dtype="F32",
            weight_bytes=WEIGHT_BYTES,
            parameters=WEIGHT_BYTES // 4,
            context_tokens_max=CONTEXT_TOKENS_MAX,
            kv_bytes_per_token=1,
        )

    async def Delete(  # noqa: N802
        self, request: pb2.DeleteRequest, context: Context
    ) -> pb2.DeleteResponse:
        if request.model.name in self.leased:
            raise FailedPreconditionError("a lease is held", reason=Reason.MODEL_LEASED)
        self.models.pop((request.model.name, request.model.revision), None)
        return pb2.DeleteResponse()

    async def Describe(  # noqa: N802
        self, request: pb2.DescribeRequest, context: Context
    ) -> pb2.DescribeResponse:
        stored = [pb2.StoredModel(info=info) for info in self.models.values()]
        return pb2.DescribeResponse(node_id=self.node_id, models=stored)

    async def Lease(  # noqa: N802
        self, request: pb2.LeaseRequest, context: Context
    ) -> AsyncIterator[pb2.LeaseResponse]:
        raise NotFoundError("it has no files", reason=Reason.MODEL_NOT_FOUND)
        yield pb2.LeaseResponse()

    async def Release(  # noqa: N802
        self, request: pb2.ReleaseRequest, context: Context
    ) -> pb2.ReleaseResponse:
        return pb2.ReleaseResponse()

    async def Prefetch(  # noqa: N802
        self, request: pb2.PrefetchRequest, context: Context
    ) -> AsyncIterator[pb2.PrefetchResponse]:
        raise ResourceExhaustedError("it has no memory", reason=Reason.INSUFFICIENT_MEMORY)
        yield pb2.PrefetchResponse()

    async def Fetch(  # noqa: N802
        self, request: pb2.FetchRequest, context: Context
    ) -> AsyncIterator[pb2.FetchResponse]:
        raise NotFoundError("no other node has it", reason=Reason.MODEL_NOT_FOUND)
        yield pb2.FetchResponse()

    async def ReadChunks(  # noqa: N802
        self, request: pb2.ReadChunksRequest, context: Context
    ) -> pb2.ReadChunksResponse:
        raise NotFoundError("it has no files", reason=Reason.MODEL_NOT_FOUND)

    async def Evict(self, request: pb2.EvictRequest, context: Context) -> pb2.EvictResponse:  # noqa: N802
        return pb2.EvictResponse()

    async def Verify(  # noqa: N802
        self, request: pb2.VerifyRequest, context: Context
    ) -> pb2.VerifyResponse:
        return pb2.VerifyResponse()

    async def Sweep(  # noqa: N802
        self, request: pb2.SweepRequest, context: Context
    ) -> pb2.SweepResponse:
        return pb2.SweepResponse()

    async def Pin(self, request: pb2.PinRequest, context: Context) -> pb2.PinResponse:  # noqa: N802
        return pb2.PinResponse()


@asynccontextmanager
async def run_store(redis_url: str, *, node_id: str = "node-1") -> AsyncIterator[FakeStoreServer]:
    """Run a store manager for the block."""
    store = FakeStoreServer(node_id)
    server = create_server(
        "127.0.0.1:0", limits=INTERNAL_LIMITS, reflection=False, service_names=(SERVICE_NAME,)
    )
    pb2_grpc.add_StorageServiceServicer_to_server(store, server.server)
    await server.start_serving()
    redis = connect(SecretStr(redis_url))
    facts = ServiceFacts(
        kind=ServiceKind.STOREMGR,
        service_id=new_id("storemgr"),
        node_id=node_id,
        address=server.address,
        metrics_address="",
        started_at=wall_clock(),
    )
    registering = asyncio.ensure_future(Registration(redis, facts).run())
    try:
        async with aclosing(Registry(redis).watch(ServiceKind.STOREMGR)) as sets:
            async for found in sets:
                if facts in found:
                    break
        yield store
    finally:
        registering.cancel()
        await asyncio.gather(registering, return_exceptions=True)
        await server.server.stop(grace=None)
        await redis.aclose()
