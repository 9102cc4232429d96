"""The router's gRPC face for applications: proto to domain and back, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import grpc
from brisk.common.v1 import model_pb2
from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk.inference.v1 import inference_service_pb2 as inference_pb2
from brisk.inference.v1 import inference_service_pb2_grpc as inference_grpc

from services.common.deadline import Deadline
from services.common.log import bound_request_id
from services.common.model import StartProgress, StartReport
from services.common.prompt import Prompt
from services.common.sampling import Sampling
from services.common.wire import progress_to_proto, report_to_proto
from services.common.wire_sequence import (
    conversation_from_proto,
    prompt_from_proto,
    sampling_from_proto,
)
from services.router.control import ControlForwarder
from services.router.front import Front, generate, tokenize
from services.router.job import Job, make_job
from services.router.ports import TokenChunk

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Request: TypeAlias = inference_pb2.GenerateRequest | inference_pb2.ChatRequest
Respond: TypeAlias = type[inference_pb2.GenerateResponse] | type[inference_pb2.ChatResponse]

_INFERENCE: Final = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_CONTROL: Final = control_pb2.DESCRIPTOR.services_by_name["ControlService"]
SERVICE_NAMES: Final = (_INFERENCE.full_name, _CONTROL.full_name)
CONTROL_METHODS: Final = tuple(f"/{_CONTROL.full_name}/{m.name}" for m in _CONTROL.methods)


class InferenceServicer(inference_grpc.InferenceServiceServicer):
    """Generate, Chat and Tokenize.

    The streaming methods write by themselves instead of yielding: the deadline spans the whole
    stream, a client that does not read included, and a timeout must not span a yield (PEP 789).
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    async def Generate(  # type: ignore[override] # noqa: N802 - the wire's name; writes by itself
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> None:
        """Continue a prompt."""
        await self._answer(
            request,
            lambda: prompt_from_proto(request.prompt),
            inference_pb2.GenerateResponse,
            context,
        )

    async def Chat(  # type: ignore[override] # noqa: N802 - the wire's name; writes by itself
        self, request: inference_pb2.ChatRequest, context: Context
    ) -> None:
        """Continue a conversation."""
        await self._answer(
            request,
            lambda: conversation_from_proto(request.messages, request.tools),
            inference_pb2.ChatResponse,
            context,
        )

    async def Tokenize(  # noqa: N802 - the wire's name
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        """Turn a prompt into tokens."""

        def parse() -> Job:
            return make_job(
                request_id=request.request_id or bound_request_id() or "",
                model=request.model,
                prompt=prompt_from_proto(request.prompt),
                sampling=Sampling(),
                deadline=Deadline.from_context(context, self._front.request_s_default),
                want_progress=False,
            )

        tokenized = await tokenize(self._front, parse)
        return inference_pb2.TokenizeResponse(
            token_ids=tokenized.token_ids,
            pieces=tokenized.pieces,
            context_tokens_max=tokenized.context_tokens_max,
        )

    async def _answer(
        self, request: Request, prompt: Callable[[], Prompt], respond: Respond, context: Context
    ) -> None:
        def parse() -> Job:
            return make_job(
                request_id=request.request_id or bound_request_id() or "",
                model=request.model,
                prompt=prompt(),
                sampling=sampling_from_proto(request.sampling),
                deadline=Deadline.from_context(context, self._front.request_s_default),
                want_progress=request.want_progress,
                choices=request.choices or 1,
            )

        await generate(self._front, parse, _GrpcSink(respond, context))


class _GrpcSink:
    """Writes a generation's events to a call."""

    __slots__ = ("_context", "_respond")

    def __init__(self, respond: Respond, context: Context) -> None:
        self._respond = respond
        self._context = context

    async def progress(self, progress: StartProgress) -> None:
        await self._context.write(self._respond(progress=progress_to_proto(progress)))

    async def chunk(self, choice: int, chunk: TokenChunk, start: StartReport | None) -> None:
        # The chunk is the worker's own message, passed on as it was parsed.
        message = cast(model_pb2.TokenChunk, chunk)
        report = None if start is None else report_to_proto(start)
        await self._context.write(self._respond(chunk=message, start=report, choice_index=choice))


def add_to_server(
    server: grpc.aio.Server, servicer: InferenceServicer, forwarder: ControlForwarder
) -> None:
    """Have `server` serve both faces of the router."""
    inference_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers((forwarder,))
