"""The gRPC face: messages to our types and back, nothing else."""

# ruff: noqa: ARG002, N802 - the methods' names and arguments are the wire's

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final, TypeAlias

import grpc
from brisk.storage.v1 import storage_service_pb2 as pb
from brisk.storage.v1 import storage_service_pb2_grpc as pb_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.wire import (
    duration_to_proto,
    model_info_to_proto,
    model_ref_from_proto,
    tier_to_proto,
)
from services.storemgr.chunk_server import chunk_path
from services.storemgr.library import Grant, Holding, Library
from services.storemgr.manifest import Manifest
from services.storemgr.progress import ImportProgress
from services.storemgr.residents import ArenaFacts, Mapping
from services.storemgr.source import parse_source

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["StorageService"].full_name
ENDLESS_METHODS: Final = (f"/{SERVICE_NAME}/Lease",)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class StorageServicer(pb_grpc.StorageServiceServicer):
    """Answers brisk.storage.v1.StorageService."""

    def __init__(self, library: Library, *, node_id: str, chunks_address: str) -> None:
        self._library = library
        self._node_id = node_id
        self._chunks_address = chunks_address

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
                            bytes_done=event.bytes_done,
                            bytes_total=total,
                            file=event.file,
                            bytes_per_second=event.bytes_per_s,
                            origin=event.origin,
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
            models=[_stored_model(holding) for holding in description.models],
            free_bytes=description.free_bytes,
            arena=_arena_state(description.arena) if description.arena is not None else None,
            disk=pb.IoState(
                queued_bytes=description.disk.queued_bytes,
                bytes_per_second=int(description.disk.bytes_per_s),
                busy_for=duration_to_proto(description.disk.busy_s),
            ),
        )

    async def Lease(
        self, request: pb.LeaseRequest, context: Context
    ) -> AsyncGenerator[pb.LeaseResponse]:
        """Hold a lease for as long as the stream is open; see the proto."""
        ref = model_ref_from_proto(request.model)
        async with self._library.lease(ref, request.holder, maps=request.map) as grant:
            yield _lease_response(grant)
            if grant.claim is not None:
                async with aclosing(grant.claim.progress()) as news:
                    async for progress in news:
                        if grant.released.is_set():
                            return
                        yield pb.LeaseResponse(
                            bytes_done=progress.bytes_done, bytes_total=progress.bytes_total
                        )
                yield pb.LeaseResponse(mapping=_mapping(grant.claim.mapping))
            await grant.released.wait()

    async def Fetch(
        self, request: pb.FetchRequest, context: Context
    ) -> AsyncGenerator[pb.FetchResponse]:
        """Bring a model from other nodes; see the proto."""
        ref = model_ref_from_proto(request.model)
        async with aclosing(self._library.fetch(ref)) as events:
            async for event in events:
                match event:
                    case ImportProgress():
                        yield pb.FetchResponse(
                            bytes_done=event.bytes_done,
                            bytes_total=event.bytes_total,
                            bytes_per_second=event.bytes_per_s,
                            origin=event.origin,
                        )
                    case Manifest():
                        yield pb.FetchResponse(
                            bytes_done=event.file_bytes,
                            bytes_total=event.file_bytes,
                            model=model_info_to_proto(event.info),
                        )

    async def ReadChunks(
        self, request: pb.ReadChunksRequest, context: Context
    ) -> pb.ReadChunksResponse:
        """Say where a model's chunks are read; see the proto."""
        ref = self._library.find(model_ref_from_proto(request.model)).ref
        return pb.ReadChunksResponse(url=f"http://{self._chunks_address}{chunk_path(ref)}")

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        """End a lease; see the proto."""
        self._library.release(request.lease_id)
        return pb.ReleaseResponse()

    async def Prefetch(
        self, request: pb.PrefetchRequest, context: Context
    ) -> AsyncGenerator[pb.PrefetchResponse]:
        """Bring a model into memory; see the proto."""
        ref = model_ref_from_proto(request.model)
        async with aclosing(self._library.prefetch(ref)) as news:
            async for progress in news:
                yield pb.PrefetchResponse(
                    bytes_done=progress.bytes_done, bytes_total=progress.bytes_total
                )

    async def Evict(self, request: pb.EvictRequest, context: Context) -> pb.EvictResponse:
        """Remove a model from memory; see the proto."""
        self._library.evict(model_ref_from_proto(request.model))
        return pb.EvictResponse()

    async def Verify(self, request: pb.VerifyRequest, context: Context) -> pb.VerifyResponse:
        """Compare a model's files with their checksums; see the proto."""
        manifest = await self._library.verify(model_ref_from_proto(request.model))
        return pb.VerifyResponse(files=len(manifest.files), file_bytes=manifest.file_bytes)

    async def Sweep(self, request: pb.SweepRequest, context: Context) -> pb.SweepResponse:
        """Delete what was put into quarantine; see the proto."""
        models, freed_bytes = await self._library.sweep()
        return pb.SweepResponse(models=models, freed_bytes=freed_bytes)

    async def Pin(self, request: pb.PinRequest, context: Context) -> pb.PinResponse:
        """Say whether a model must stay in memory; see the proto."""
        ref = model_ref_from_proto(request.model)
        self._library.pin(ref, is_pinned=request.pinned)
        return pb.PinResponse()


def _lease_response(grant: Grant) -> pb.LeaseResponse:
    return pb.LeaseResponse(
        lease_id=grant.lease_id,
        folder=str(grant.folder),
        weights=[
            pb.WeightFile(name=file.name, size_bytes=file.size_bytes)
            for file in grant.manifest.weights
        ],
        info=model_info_to_proto(grant.manifest.info),
        tier=tier_to_proto(grant.tier),
        more=grant.claim is not None,
    )


def _mapping(mapping: Mapping) -> pb.Mapping:
    return pb.Mapping(
        path=mapping.path,
        files=[
            pb.MappedFile(
                name=file.name,
                size_bytes=file.size_bytes,
                pieces=[
                    pb.Piece(offset=piece.offset, size_bytes=piece.size_bytes)
                    for piece in file.pieces
                ],
            )
            for file in mapping.files
        ],
    )


def _stored_model(holding: Holding) -> pb.StoredModel:
    stay = holding.stay
    return pb.StoredModel(
        info=model_info_to_proto(holding.manifest.info),
        file_bytes=holding.manifest.file_bytes,
        leases=holding.leases,
        dram_bytes=stay.size_bytes if stay is not None else 0,
        in_use=stay is not None and stay.in_use,
        pinned=holding.is_pinned,
        last_used=_timestamp(stay.used_at) if stay is not None else None,
    )


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _arena_state(facts: ArenaFacts) -> pb.ArenaState:
    return pb.ArenaState(
        size_bytes=facts.size_bytes,
        free_bytes=facts.free_bytes,
        in_use_bytes=facts.in_use_bytes,
        chunk_bytes=facts.chunk_bytes,
        populated_bytes=facts.populated_bytes,
        kind=facts.kind,
        huge_pages=facts.huge_pages,
    )
