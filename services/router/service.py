"""The router's gRPC face for applications: proto to domain and back, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc
from brisk.common.v1 import model_pb2
from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk.inference.v1 import inference_service_pb2 as inference_pb2
from brisk.inference.v1 import inference_service_pb2_grpc as inference_grpc

from services.common.deadline import Deadline
from services.common.errors import BriskError
from services.common.log import bind_request_id, bound_request_id, get_logger
from services.common.model import StartProgress, StartReport
from services.common.wire import (
    conversation_from_proto,
    progress_to_proto,
    prompt_from_proto,
    report_to_proto,
    sampling_from_proto,
)
from services.router.admission import Admission
from services.router.control import ControlForwarder
from services.router.dispatch import Dispatcher
from services.router.farewell import Farewell
from services.router.job import Job, make_job
from services.router.metrics import RequestMeter
from services.router.ports import Workers
from services.router.relay import RelayConfig, relay

log = get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Respond: TypeAlias = type[inference_pb2.GenerateResponse] | type[inference_pb2.ChatResponse]

_INFERENCE: Final = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_CONTROL: Final = control_pb2.DESCRIPTOR.services_by_name["ControlService"]
SERVICE_NAMES: Final = (_INFERENCE.full_name, _CONTROL.full_name)
CONTROL_METHODS: Final = tuple(f"/{_CONTROL.full_name}/{m.name}" for m in _CONTROL.methods)


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What serves a request."""

    admission: Admission
    farewell: Farewell
    dispatcher: Dispatcher
    workers: Workers
    relay: RelayConfig
    request_s_default: float


class InferenceServicer(inference_grpc.InferenceServiceServicer):
    """Generate and Chat.

    The methods write by themselves instead of yielding: the deadline spans the whole stream, a
    client that does not read included, and a timeout must not span a yield (PEP 789).
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    async def Generate(  # type: ignore[override] # noqa: N802 - the wire's name; writes by itself
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> None:
        """Continue a prompt."""

        def parse(deadline: Deadline) -> Job:
            return make_job(
                request_id=request.request_id or bound_request_id() or "",
                model=request.model,
                prompt=prompt_from_proto(request.prompt),
                sampling=sampling_from_proto(request.sampling),
                deadline=deadline,
                want_progress=request.want_progress,
            )

        await self._answer(parse, inference_pb2.GenerateResponse, context)

    async def Chat(  # type: ignore[override] # noqa: N802 - the wire's name; writes by itself
        self, request: inference_pb2.ChatRequest, context: Context
    ) -> None:
        """Continue a conversation."""

        def parse(deadline: Deadline) -> Job:
            return make_job(
                request_id=request.request_id or bound_request_id() or "",
                model=request.model,
                prompt=conversation_from_proto(request.messages),
                sampling=sampling_from_proto(request.sampling),
                deadline=deadline,
                want_progress=request.want_progress,
            )

        await self._answer(parse, inference_pb2.ChatResponse, context)

    async def _answer(
        self, parse: Callable[[Deadline], Job], respond: Respond, context: Context
    ) -> None:
        meter = RequestMeter()
        try:
            with self._front.admission.admit():
                job = parse(Deadline.from_context(context, self._front.request_s_default))
                bind_request_id(job.request_id)
                async with self._front.farewell.stream(job.deadline):
                    reason = await self._stream(job, respond, context, meter)
        except BriskError as error:
            meter.failed(error.reason)
            log.info("generation refused", reason=error.reason, seconds=meter.seconds)
            raise
        except asyncio.CancelledError:
            meter.cancelled()
            log.info("generation cancelled", seconds=meter.seconds)
            raise
        meter.finished(reason)
        log.info("generation finished", reason=reason, seconds=meter.seconds)

    async def _stream(
        self, job: Job, respond: Respond, context: Context, meter: RequestMeter
    ) -> str:
        """Write the job's events and return why it finished."""
        front = self._front
        start: model_pb2.StartReport | None = None
        last: model_pb2.TokenChunk | None = None
        async with aclosing(relay(job, front.dispatcher, front.workers, front.relay)) as events:
            async for event in events:
                if isinstance(event, model_pb2.TokenChunk):  # most are; passed on as they came
                    if start is None:
                        meter.tokens(len(event.token_ids))
                    await context.write(respond(chunk=event, start=start))
                    start, last = None, event
                elif isinstance(event, StartProgress):
                    if job.want_progress:
                        await context.write(respond(progress=progress_to_proto(event)))
                elif isinstance(event, StartReport):
                    meter.first_token(is_cold=event.cold)
                    start = report_to_proto(event)
        return "NONE" if last is None else model_pb2.FinishReason.Name(last.finish_reason)


def add_to_server(
    server: grpc.aio.Server, servicer: InferenceServicer, forwarder: ControlForwarder
) -> None:
    """Have `server` serve both faces of the router."""
    inference_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers((forwarder,))
