"""The worker's gRPC face: messages to domain types and back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

import grpc
from brisk.common.v1 import model_pb2
from brisk.worker.v1 import worker_service_pb2 as pb2
from brisk.worker.v1 import worker_service_pb2_grpc as pb2_grpc

from services.common import wire, wire_sequence
from services.common.errors import InvalidArgumentError
from services.common.log import bind_request_id, bound_request_id
from services.common.names import new_request_id, parse_id, parse_model_name, parse_request_id
from services.common.prompt import TokensPrompt
from services.worker.instances import Instances
from services.worker.ports import Loaded, LoadOrder
from services.worker.reports import StateSource

SERVICE_NAME: Final = pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name


class WorkerServicer(pb2_grpc.WorkerServiceServicer):
    """Serves WorkerService; raises BriskError, which the server's boundary turns into statuses."""

    def __init__(self, instances: Instances, source: StateSource) -> None:
        self._instances = instances
        self._source = source

    async def Check(  # noqa: N802 - gRPC's name
        self,
        request: pb2.CheckRequest,
        context: grpc.aio.ServicerContext[pb2.CheckRequest, pb2.CheckResponse],  # noqa: ARG002
    ) -> pb2.CheckResponse:
        """Compare a model's skeleton with what is stored."""
        await self._instances.check(wire.model_ref_from_proto(request.model))
        return pb2.CheckResponse()

    async def Load(  # noqa: N802
        self,
        request: pb2.LoadRequest,
        context: grpc.aio.ServicerContext[pb2.LoadRequest, pb2.LoadResponse],  # noqa: ARG002
    ) -> AsyncIterator[pb2.LoadResponse]:
        """Bring a model onto a device."""
        order = _order(request)
        async with aclosing(self._instances.load(order, request.leader_epoch)) as events:
            async for event in events:
                if isinstance(event, Loaded):
                    yield pb2.LoadResponse(
                        loaded=pb2.Loaded(
                            start=wire.report_to_proto(event.report),
                            bytes_read=event.bytes_read,
                        )
                    )
                else:
                    yield pb2.LoadResponse(progress=wire.progress_to_proto(event))

    async def Unload(  # noqa: N802
        self,
        request: pb2.UnloadRequest,
        context: grpc.aio.ServicerContext[pb2.UnloadRequest, pb2.UnloadResponse],  # noqa: ARG002
    ) -> pb2.UnloadResponse:
        """Remove an instance."""
        await self._instances.unload(
            parse_id(request.instance_id, what="instance id"),
            request.leader_epoch,
            only_if_idle=request.only_if_idle,
        )
        return pb2.UnloadResponse()

    async def Generate(  # noqa: N802
        self,
        request: pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[pb2.GenerateRequest, pb2.GenerateResponse],  # noqa: ARG002
    ) -> AsyncIterator[pb2.GenerateResponse]:
        """Continue a prompt."""
        if request.request_id:
            bind_request_id(parse_request_id(request.request_id))
        prompt = wire_sequence.prompt_from_proto(request.prompt)
        if request.delivered.ids and not isinstance(prompt, TokensPrompt):
            raise InvalidArgumentError("delivered tokens must follow a prompt of tokens")
        stream = self._instances.generate(
            parse_id(request.instance_id, what="instance id"),
            bound_request_id() or new_request_id(),
            prompt,
            wire_sequence.sampling_from_proto(request.sampling),
            tuple(request.delivered.ids),
        )
        async with aclosing(stream) as produced:
            async for each in produced:
                prompt_tokens = (
                    model_pb2.TokenIds(ids=each.prompt_tokens) if each.prompt_tokens else None
                )
                yield pb2.GenerateResponse(
                    chunk=wire_sequence.chunk_to_proto(each.chunk), prompt_tokens=prompt_tokens
                )

    async def Tokenize(  # noqa: N802
        self,
        request: pb2.TokenizeRequest,
        context: grpc.aio.ServicerContext[pb2.TokenizeRequest, pb2.TokenizeResponse],  # noqa: ARG002
    ) -> pb2.TokenizeResponse:
        """Turn a prompt into tokens."""
        if request.request_id:
            bind_request_id(parse_request_id(request.request_id))
        tokenized = await self._instances.tokenize(
            parse_id(request.instance_id, what="instance id"),
            wire_sequence.prompt_from_proto(request.prompt),
        )
        return pb2.TokenizeResponse(
            token_ids=tokenized.token_ids,
            pieces=tokenized.pieces,
            context_tokens_max=tokenized.context_tokens_max,
        )

    async def Describe(  # noqa: N802
        self,
        request: pb2.DescribeRequest,  # noqa: ARG002
        context: grpc.aio.ServicerContext[pb2.DescribeRequest, pb2.DescribeResponse],  # noqa: ARG002
    ) -> pb2.DescribeResponse:
        """Tell the whole state."""
        return pb2.DescribeResponse(state=wire.worker_state_to_proto(self._source.take()))


def _order(request: pb2.LoadRequest) -> LoadOrder:
    """Parse an order. Raises InvalidArgumentError; the ledger checks device and memory."""
    for name, given in (
        ("slots", request.slots),
        ("context_tokens_max", request.context_tokens_max),
    ):
        if given < 1:
            raise InvalidArgumentError(f"{name} must be at least 1. Given: {given}")
    return LoadOrder(
        instance_id=parse_id(request.instance_id, what="instance id"),
        deployment=parse_model_name(request.deployment),
        model=wire.model_ref_from_proto(request.model),
        device_id=request.device_id,
        slots=request.slots,
        context_tokens_max=request.context_tokens_max,
        memory_bytes=request.memory_bytes,
    )
