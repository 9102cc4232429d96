"""The gRPC face towards operators: messages to our types and back, nothing else."""

# ruff: noqa: ARG002, N802 - the methods' names and arguments are the wire's

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
from brisk.control.v1 import control_service_pb2 as pb2
from brisk.control.v1 import control_service_pb2_grpc as pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.clock import monotonic_s, wall_clock
from services.common.errors import InvalidArgumentError, NotFoundError, Reason
from services.common.model import ModelInfo
from services.common.names import shorten
from services.common.wire import (
    duration_from_proto,
    duration_to_proto,
    instance_to_proto,
    model_info_to_proto,
    model_ref_from_proto,
    worker_state_to_proto,
)
from services.scheduler import view
from services.scheduler.catalogue import Catalogue, DeployWish
from services.scheduler.deployment import Deployment, Spec, SpecWish
from services.scheduler.election import Election
from services.scheduler.explaining import explanation
from services.scheduler.ports import ImportProgress, Peers
from services.scheduler.starts import unknown
from services.scheduler.view import DeploymentView, NodeView

SERVICE_NAME: Final = pb2.DESCRIPTOR.services_by_name["ControlService"].full_name
_FOR_EVER_S: Final = -1.0

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ControlServicer(pb2_grpc.ControlServiceServicer):
    """Answers brisk.control.v1.ControlService while this scheduler leads."""

    def __init__(
        self, *, election: Election, catalogue: Catalogue, peers: Peers, scheduler_id: str
    ) -> None:
        self._election = election
        self._catalogue = catalogue
        self._peers = peers
        self._scheduler_id = scheduler_id

    async def Import(
        self, request: pb2.ImportRequest, context: Context
    ) -> AsyncGenerator[pb2.ImportResponse]:
        """Import a folder on every node; see the proto."""
        reign = await self._election.leader()
        events = self._catalogue.import_model(
            reign, request.source_path, request.name, as_is=request.as_is
        )
        async with aclosing(events) as told:
            async for each in told:
                if isinstance(each, ModelInfo):
                    yield pb2.ImportResponse(model=model_info_to_proto(each))
                else:
                    yield pb2.ImportResponse(progress=_progress(each))

    async def Deploy(
        self, request: pb2.DeployRequest, context: Context
    ) -> AsyncGenerator[pb2.DeployResponse]:
        """Make a model available; see the proto."""
        reign = await self._election.leader()
        async with aclosing(self._catalogue.deploy(reign, _wish(request))) as told:
            async for each in told:
                if isinstance(each, Deployment):
                    shown = _deployment(view.deployment(reign.state, each))
                    yield pb2.DeployResponse(deployment=shown)
                else:
                    yield pb2.DeployResponse(progress=_progress(each))

    async def Delete(self, request: pb2.DeleteRequest, context: Context) -> pb2.DeleteResponse:
        """Remove a deployment; see the proto."""
        reign = await self._election.leader()
        await self._catalogue.delete(reign, request.name, keep_files=request.keep_files)
        return pb2.DeleteResponse()

    async def ListModels(
        self, request: pb2.ListModelsRequest, context: Context
    ) -> pb2.ListModelsResponse:
        """List all deployments; see the proto."""
        reign = await self._election.leader()
        shown = [_deployment(each) for each in view.deployments(reign.state)]
        return pb2.ListModelsResponse(deployments=shown)

    async def GetModel(
        self, request: pb2.GetModelRequest, context: Context
    ) -> pb2.GetModelResponse:
        """Describe one deployment; see the proto."""
        reign = await self._election.leader()
        deployment = reign.state.deployments.get(request.name)
        if deployment is None:
            raise unknown(request.name, reign.state.deployments)
        instances = view.instances(reign.state, monotonic_s(), of=deployment.name)
        return pb2.GetModelResponse(
            deployment=_deployment(view.deployment(reign.state, deployment)),
            instances=[instance_to_proto(each) for each in instances],
        )

    async def ListNodes(
        self, request: pb2.ListNodesRequest, context: Context
    ) -> pb2.ListNodesResponse:
        """List nodes and say who leads; see the proto."""
        reign = await self._election.leader()
        stores = await self._peers.stores()
        return pb2.ListNodesResponse(
            nodes=[_node(each) for each in view.nodes(reign.state, stores, monotonic_s())],
            leader_id=self._scheduler_id,
            leader_epoch=reign.epoch,
        )

    async def ListInstances(
        self, request: pb2.ListInstancesRequest, context: Context
    ) -> pb2.ListInstancesResponse:
        """List the instances of all deployments; see the proto."""
        reign = await self._election.leader()
        instances = view.instances(reign.state, monotonic_s())
        return pb2.ListInstancesResponse(instances=[instance_to_proto(each) for each in instances])

    async def Explain(self, request: pb2.ExplainRequest, context: Context) -> pb2.ExplainResponse:
        """Tell why a start went where it went; see the proto."""
        reign = await self._election.leader()
        placement = reign.explanations.find(request.id)
        if placement is None:
            raise NotFoundError(
                f"no placement is known for {shorten(request.id)}",
                reason=Reason.PLACEMENT_NOT_FOUND,
            )
        return explanation(placement, now_s=monotonic_s(), wall=wall_clock())


def _wish(request: pb2.DeployRequest) -> DeployWish:
    """Parse what to deploy. Raises InvalidArgumentError."""
    match request.WhichOneof("source"):
        case "source_path":
            return DeployWish(
                name=request.name,
                source=request.source_path,
                spec=_spec_wish(request.spec),
                as_is=request.as_is,
            )
        case "model":
            return DeployWish(
                name=request.name,
                source=model_ref_from_proto(request.model),
                spec=_spec_wish(request.spec),
            )
        case _:
            raise InvalidArgumentError("source must be set: source_path or model")


def _spec_wish(spec: pb2.DeploymentSpec) -> SpecWish:
    return SpecWish(
        keep_alive_s=duration_from_proto(spec.keep_alive) if spec.HasField("keep_alive") else None,
        slots=spec.slots if spec.HasField("slots") else None,
        context_tokens_max=spec.context_tokens_max if spec.HasField("context_tokens_max") else None,
        priority=spec.priority if spec.HasField("priority") else None,
        min_replicas=spec.min_replicas if spec.HasField("min_replicas") else None,
        max_replicas=spec.max_replicas if spec.HasField("max_replicas") else None,
        target_concurrency=spec.target_concurrency if spec.HasField("target_concurrency") else None,
        max_queue=spec.max_queue if spec.HasField("max_queue") else None,
        learns_keep_alive=spec.learned_keep_alive,
    )


def _deployment(shown: DeploymentView) -> pb2.Deployment:
    deployment = shown.deployment
    created_at = Timestamp()
    created_at.FromDatetime(deployment.created_at)
    return pb2.Deployment(
        name=deployment.name,
        model=model_info_to_proto(deployment.model),
        spec=_spec(deployment.spec),
        created_at=created_at,
        instances_ready=shown.instances_ready,
        instances_loading=shown.instances_loading,
        device_bytes=deployment.device_bytes,
    )


def _spec(spec: Spec) -> pb2.DeploymentSpec:
    keep_alive_s = _FOR_EVER_S if spec.keep_alive_s is None else spec.keep_alive_s
    return pb2.DeploymentSpec(
        keep_alive=duration_to_proto(keep_alive_s),
        slots=spec.slots,
        context_tokens_max=spec.context_tokens_max,
        priority=spec.priority,
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        target_concurrency=spec.target_concurrency or spec.slots,
        max_queue=spec.max_queue,
        learned_keep_alive=spec.learns_keep_alive,
    )


def _progress(progress: ImportProgress) -> pb2.ImportProgress:
    return pb2.ImportProgress(
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        file=progress.file,
        bytes_per_second=progress.bytes_per_s,
        origin=progress.origin,
    )


def _node(node: NodeView) -> pb2.Node:
    return pb2.Node(
        node_id=node.node_id,
        storemgr_address=node.storemgr_address,
        workers=[worker_state_to_proto(each) for each in node.workers],
        io=pb2.NodeIo(
            loads=node.io.loads,
            wait=duration_to_proto(node.io.wait_s),
            ssd_bytes_per_s=round(node.io.ssd_bytes_per_s),
            dram_bytes_per_s=round(node.io.dram_bytes_per_s),
            models_on_ssd=node.io.models_on_ssd,
            models_in_dram=node.io.models_in_dram,
        ),
    )
