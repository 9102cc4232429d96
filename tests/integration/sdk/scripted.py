"""A router that answers by script: real gRPC on loopback, behaviour chosen by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from brisk.common.v1 import model_pb2, placement_pb2
from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk.control.v1 import control_service_pb2_grpc
from brisk.inference.v1 import inference_service_pb2 as inference_pb2
from brisk.inference.v1 import inference_service_pb2_grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import (  # type: ignore[import-untyped]  # ships without annotations
    code_pb2,
    error_details_pb2,
    status_pb2,
)
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

Context = grpc.aio.ServicerContext[Any, Any]
HANG = object()  # in a script: send nothing more and wait for the client to leave


@dataclass(frozen=True, slots=True)
class Refuse:
    """In a script: end the call with this status."""

    code: int
    reason: str
    retry_after_s: float | None = None
    message: str = "refused by the script"

    def status(self) -> grpc.Status:
        """Return it as grpc wants it."""
        made = status_pb2.Status(code=self.code, message=self.message)
        made.details.add().Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain="brisk"))
        if self.retry_after_s is not None:
            pause = Duration()
            pause.FromNanoseconds(round(self.retry_after_s * 1e9))
            made.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=pause))
        status: grpc.Status = rpc_status.to_status(made)
        return status


NOT_NOW = Refuse(code_pb2.UNAVAILABLE, "NO_WORKER", retry_after_s=0.01)


def chunk(
    index: int, *ids: int, text: str = "", last: bool = False, start: bool = False
) -> inference_pb2.GenerateResponse:
    """Return a message with tokens; the last one carries reason and usage."""
    made = inference_pb2.GenerateResponse(
        chunk=model_pb2.TokenChunk(first_index=index, token_ids=ids, text=text)
    )
    if last:
        made.chunk.finish_reason = model_pb2.FINISH_REASON_LENGTH
        made.chunk.usage.prompt_tokens = 3
        made.chunk.usage.completion_tokens = index + len(ids)
    if start:
        made.start.cold = True
        made.start.source = model_pb2.TIER_SSD
        phase = made.start.phases.add(phase=model_pb2.START_PHASE_LOAD)
        phase.duration.FromMilliseconds(250)
    return made


def progress(done: int, total: int) -> inference_pb2.GenerateResponse:
    """Return a message with the progress of a load."""
    return inference_pb2.GenerateResponse(
        progress=model_pb2.StartProgress(
            phase=model_pb2.START_PHASE_LOAD,
            bytes_done=done,
            bytes_total=total,
            source=model_pb2.TIER_SSD,
        )
    )


ANSWER = (
    chunk(0, 5, 6, text="a ", start=True),
    chunk(2, 7, text="b"),
    chunk(3, 8, text=" c", last=True),
)
Script = tuple[object, ...]


@dataclass
class ScriptedRouter:
    """What the calls do, one script after the other, the last one for ever; and what came in."""

    scripts: list[Script] = field(default_factory=lambda: [ANSWER])
    requests: list[object] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    deadlines_s: list[float | None] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # a client left a hanging call
    address: str = ""

    def next_script(self, request: object, context: Context) -> Script:
        """Record the call and return what it does."""
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.deadlines_s.append(context.time_remaining())
        return self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]

    async def play(self, request: object, context: Context) -> AsyncIterator[Message]:
        """Do what the script says."""
        for step in self.next_script(request, context):
            if step is HANG:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.left.set()
            elif isinstance(step, Refuse):
                await context.abort_with_status(step.status())
            elif isinstance(step, Message):
                yield step


class _Inference(inference_service_pb2_grpc.InferenceServiceServicer):
    def __init__(self, script: ScriptedRouter) -> None:
        self._script = script

    async def Generate(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        async for step in self._script.play(request, context):
            yield step

    async def Chat(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        async for step in self._script.play(request, context):
            yield inference_pb2.ChatResponse.FromString(step.SerializeToString())

    async def Tokenize(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        async for step in self._script.play(request, context):
            return step
        return None


class _Control(control_service_pb2_grpc.ControlServiceServicer):
    def __init__(self, script: ScriptedRouter) -> None:
        self._script = script

    async def Import(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        async for step in self._script.play(request, context):
            yield step

    async def Deploy(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        async for step in self._script.play(request, context):
            yield step

    async def _unary(self, request: object, context: Context) -> object:
        async for step in self._script.play(request, context):
            return step
        return None

    async def Delete(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        return await self._unary(request, context)

    async def ListModels(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        return await self._unary(request, context)

    async def GetModel(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        return await self._unary(request, context)

    async def ListNodes(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        return await self._unary(request, context)

    async def ListInstances(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        return await self._unary(request, context)

    async def Explain(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        return await self._unary(request, context)


@asynccontextmanager
async def scripted_router() -> AsyncIterator[ScriptedRouter]:
    """Run a scripted router for one test."""
    script = ScriptedRouter()
    server = grpc.aio.server()
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(_Inference(script), server)
    control_service_pb2_grpc.add_ControlServiceServicer_to_server(_Control(script), server)
    names = [
        inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
        control_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name,
        reflection.SERVICE_NAME,
    ]
    reflection.enable_server_reflection(names, server)
    script.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield script
    finally:
        await server.stop(grace=0)


def deployment(name: str = "tiny") -> control_pb2.Deployment:
    """Return a deployment with every field set."""
    made = control_pb2.Deployment(
        name=name,
        model=model_pb2.ModelInfo(
            ref=model_pb2.ModelRef(name="base", revision="0123456789abcdef"),
            architecture="LlamaForCausalLM",
            dtype="F32",
            weight_bytes=6_000_000,
            parameters=1_500_000,
            context_tokens_max=256,
            kv_bytes_per_token=1_024,
        ),
        spec=control_pb2.DeploymentSpec(
            keep_alive=Duration(seconds=-1), slots=4, context_tokens_max=128
        ),
        instances_ready=1,
        instances_loading=2,
        device_bytes=7_000_000,
    )
    made.created_at.FromJsonString("2026-11-21T09:30:00Z")
    return made


def instance() -> placement_pb2.Instance:
    """Return an idle instance."""
    return placement_pb2.Instance(
        instance_id="i-1",
        deployment="tiny",
        model=model_pb2.ModelRef(name="base", revision="0123456789abcdef"),
        worker_id="w-1",
        device_id="cpu:0",
        memory_bytes=7_000_000,
        slots=4,
        state=placement_pb2.INSTANCE_STATE_READY,
        idle=Duration(seconds=2, nanos=500_000_000),
        keep_alive_left=Duration(seconds=90),
    )


def nodes() -> control_pb2.ListNodesResponse:
    """Return a node with one worker."""
    worker = placement_pb2.WorkerState(
        worker_id="w-1",
        node_id="local",
        address="127.0.0.1:1",
        devices=[placement_pb2.Device(device_id="cpu:0", memory_bytes=2**30, free_bytes=2**29)],
        instances=[instance()],
    )
    node = control_pb2.Node(node_id="local", storemgr_address="127.0.0.1:2", workers=[worker])
    return control_pb2.ListNodesResponse(nodes=[node], leader_id="s-1", leader_epoch=7)
