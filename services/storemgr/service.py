"""The gRPC face: messages to our types and back, nothing else."""

# ruff: noqa: ARG002, N802 - the methods' names and arguments are the wire's

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
from brisk.storage.v1 import storage_service_pb2 as pb
from brisk.storage.v1 import storage_service_pb2_grpc as pb_grpc

from services.common.model import Tier
from services.common.wire import model_info_to_proto, model_ref_from_proto, tier_to_proto
from services.storemgr.importer import ImportProgress
from services.storemgr.library import Grant, Library
from services.storemgr.manifest import Manifest
from services.storemgr.source import parse_source

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["StorageService"].full_name
ENDLESS_METHODS: Final = (f"/{SERVICE_NAME}/Lease",)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class StorageServicer(pb_grpc.StorageServiceServicer):
    """Answers brisk.storage.v1.StorageService."""

    def __init__(self, library: Library, *, node_id: str) -> None:
        self._library = library
        self._node_id = node_id

    async def Import(
        self, request: pb.ImportRequest, context: Context
    ) -> AsyncGenerator[pb.ImportResponse]:
        """Import a folder; see the proto."""
        source = parse_source(request.source_path, request.name, as_is=request.as_is)
        async with aclosing(self._library.import_model(source)) as events:
            total = 0
            async for event in events:
                match event:
                    case ImportProgress():
                        total = event.bytes_total
                        yield pb.ImportResponse(
                            bytes_done=event.bytes_done, bytes_total=total, file=event.file
                        )
                    case Manifest():
                        yield pb.ImportResponse(
                            bytes_done=total,
                            bytes_total=total,
                            model=model_info_to_proto(event.info),
                        )

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> pb.DeleteResponse:
        """Remove a model; see the proto."""
        await self._library.delete(model_ref_from_proto(request.model))
        return pb.DeleteResponse()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """List the models; see the proto."""
        description = await self._library.describe()
        return pb.DescribeResponse(
            node_id=self._node_id,
            models=[
                pb.StoredModel(
                    info=model_info_to_proto(holding.manifest.info),
                    file_bytes=holding.manifest.file_bytes,
                    leases=holding.leases,
                )
                for holding in description.models
            ],
            free_bytes=description.free_bytes,
        )

    async def Lease(
        self, request: pb.LeaseRequest, context: Context
    ) -> AsyncGenerator[pb.LeaseResponse]:
        """Hold a lease for as long as the stream is open; see the proto."""
        ref = model_ref_from_proto(request.model)
        async with self._library.lease(ref, request.holder) as grant:
            yield _lease_response(grant)
            await grant.released.wait()

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        """End a lease; see the proto."""
        self._library.release(request.lease_id)
        return pb.ReleaseResponse()


def _lease_response(grant: Grant) -> pb.LeaseResponse:
    return pb.LeaseResponse(
        lease_id=grant.lease_id,
        folder=str(grant.folder),
        weights=[
            pb.WeightFile(name=file.name, size_bytes=file.size_bytes)
            for file in grant.manifest.weights
        ],
        info=model_info_to_proto(grant.manifest.info),
        tier=tier_to_proto(Tier.SSD),
    )
