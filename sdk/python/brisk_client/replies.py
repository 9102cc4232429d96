"""From protobuf replies to the values of `results`; no protobuf type leaves this module."""

from __future__ import annotations

import math
from datetime import UTC

from brisk.common.v1 import model_pb2, placement_pb2
from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk.inference.v1 import inference_service_pb2 as inference_pb2
from google.protobuf.duration_pb2 import Duration

from brisk_client.explanation import (
    Attempt,
    Candidate,
    Choice,
    Explanation,
    ServedRequest,
    Way,
)
from brisk_client.results import (
    Chunk,
    ClusterView,
    Deployment,
    DeploymentDetail,
    Device,
    FinishReason,
    ImportProgress,
    Instance,
    InstanceState,
    ModelInfo,
    Node,
    NodeIo,
    Phase,
    PhaseDuration,
    Progress,
    StartReport,
    Tier,
    Tokenized,
    TokenLogprob,
    TokenLogprobs,
    Usage,
    Worker,
)

# A newer server may send values that this client does not know: they become UNKNOWN or None.
_TIERS = {
    model_pb2.TIER_DEVICE: Tier.DEVICE,
    model_pb2.TIER_DRAM: Tier.DRAM,
    model_pb2.TIER_SSD: Tier.SSD,
    model_pb2.TIER_PEER: Tier.PEER,
    model_pb2.TIER_REMOTE: Tier.REMOTE,
}
_PHASES = {
    model_pb2.START_PHASE_QUEUE: Phase.QUEUE,
    model_pb2.START_PHASE_PLACEMENT: Phase.PLACEMENT,
    model_pb2.START_PHASE_FETCH: Phase.FETCH,
    model_pb2.START_PHASE_LOAD: Phase.LOAD,
    model_pb2.START_PHASE_INIT: Phase.INIT,
    model_pb2.START_PHASE_FIRST_TOKEN: Phase.FIRST_TOKEN,
}
_FINISH_REASONS = {
    model_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    model_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}
_STATES = {
    placement_pb2.INSTANCE_STATE_LOADING: InstanceState.LOADING,
    placement_pb2.INSTANCE_STATE_READY: InstanceState.READY,
    placement_pb2.INSTANCE_STATE_LEAVING: InstanceState.LEAVING,
}
_WAYS = {
    control_pb2.PLACEMENT_WAY_FREE: Way.FREE,
    control_pb2.PLACEMENT_WAY_EVICT: Way.EVICT,
    control_pb2.PLACEMENT_WAY_WAIT: Way.WAIT,
    control_pb2.PLACEMENT_WAY_MIGRATE: Way.MIGRATE,
}


def seconds(duration: Duration) -> float:
    """Return a duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def chunk(message: model_pb2.TokenChunk, choice: int = 0) -> Chunk:
    """Return the tokens of one message, which belong to the answer `choice`."""
    usage = None
    if message.HasField("usage"):
        usage = Usage(
            prompt_tokens=message.usage.prompt_tokens,
            completion_tokens=message.usage.completion_tokens,
        )
    return Chunk(
        index=message.first_index,
        token_ids=tuple(message.token_ids),
        text=message.text,
        finish_reason=_FINISH_REASONS.get(message.finish_reason),
        usage=usage,
        choice=choice,
        logprobs=tuple(
            TokenLogprobs(chosen=_logprob(each.chosen), top=tuple(map(_logprob, each.top)))
            for each in message.logprobs
        ),
    )


def tokenized(message: inference_pb2.TokenizeResponse) -> Tokenized:
    """Return what a model made of a prompt."""
    return Tokenized(
        token_ids=tuple(message.token_ids),
        pieces=tuple(message.pieces),
        context_tokens_max=message.context_tokens_max,
    )


def _logprob(message: model_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token_id=message.token_id, logprob=message.logprob, piece=message.piece)


def progress(message: model_pb2.StartProgress) -> Progress:
    """Return how far a start has come."""
    return Progress(
        phase=_PHASES.get(message.phase, Phase.UNKNOWN),
        bytes_done=message.bytes_done,
        bytes_total=message.bytes_total,
        source=_TIERS.get(message.source, Tier.UNKNOWN),
        detail=message.detail,
    )


def start_report(message: model_pb2.StartReport) -> StartReport:
    """Return how a request got to its first token."""
    return StartReport(
        cold=message.cold,
        source=_TIERS.get(message.source, Tier.UNKNOWN),
        phases=tuple(
            PhaseDuration(
                phase=_PHASES.get(entry.phase, Phase.UNKNOWN), duration_s=seconds(entry.duration)
            )
            for entry in message.phases
        ),
    )


def model_info(message: model_pb2.ModelInfo) -> ModelInfo:
    """Return what the store knows about a checkpoint."""
    return ModelInfo(
        name=message.ref.name,
        revision=message.ref.revision,
        architecture=message.architecture,
        dtype=message.dtype,
        weight_bytes=message.weight_bytes,
        parameters=message.parameters,
        context_tokens_max=message.context_tokens_max,
        kv_bytes_per_token=message.kv_bytes_per_token,
    )


def deployment(message: control_pb2.Deployment) -> Deployment:
    """Return a deployment; a negative keep-alive on the wire is math.inf here."""
    keep_alive_s = seconds(message.spec.keep_alive)
    return Deployment(
        name=message.name,
        model=model_info(message.model),
        keep_alive_s=math.inf if keep_alive_s < 0 else keep_alive_s,
        slots=message.spec.slots,
        context_tokens_max=message.spec.context_tokens_max,
        created_at=message.created_at.ToDatetime(tzinfo=UTC),
        instances_ready=message.instances_ready,
        instances_loading=message.instances_loading,
        device_bytes=message.device_bytes,
        learned_keep_alive=message.spec.learned_keep_alive,
        min_replicas=message.spec.min_replicas,
        max_replicas=message.spec.max_replicas,
        target_concurrency=message.spec.target_concurrency,
        max_queue=message.spec.max_queue if message.spec.HasField("max_queue") else None,
        priority=message.spec.priority,
    )


def deployment_detail(message: control_pb2.GetModelResponse) -> DeploymentDetail:
    """Return a deployment with its instances."""
    return DeploymentDetail(
        deployment=deployment(message.deployment),
        instances=tuple(instance(entry) for entry in message.instances),
    )


def instance(message: placement_pb2.Instance) -> Instance:
    """Return an instance."""
    left = message.keep_alive_left
    return Instance(
        instance_id=message.instance_id,
        deployment=message.deployment,
        model_name=message.model.name,
        revision=message.model.revision,
        worker_id=message.worker_id,
        device_id=message.device_id,
        memory_bytes=message.memory_bytes,
        slots=message.slots,
        state=_STATES.get(message.state, InstanceState.UNKNOWN),
        running=message.running,
        waiting=message.waiting,
        idle_s=seconds(message.idle) if message.HasField("idle") else None,
        keep_alive_left_s=seconds(left) if message.HasField("keep_alive_left") else None,
    )


def worker(message: placement_pb2.WorkerState) -> Worker:
    """Return a worker and what it holds."""
    return Worker(
        worker_id=message.worker_id,
        node_id=message.node_id,
        address=message.address,
        devices=tuple(
            Device(
                device_id=device.device_id,
                memory_bytes=device.memory_bytes,
                free_bytes=device.free_bytes,
            )
            for device in message.devices
        ),
        instances=tuple(instance(entry) for entry in message.instances),
        draining=message.draining,
    )


def cluster_view(message: control_pb2.ListNodesResponse) -> ClusterView:
    """Return all nodes and who leads."""
    return ClusterView(
        nodes=tuple(
            Node(
                node_id=node.node_id,
                storemgr_address=node.storemgr_address or None,
                workers=tuple(worker(state) for state in node.workers),
                io=node_io(node.io) if node.HasField("io") else None,
            )
            for node in message.nodes
        ),
        leader_id=message.leader_id,
        leader_epoch=message.leader_epoch,
    )


def node_io(message: control_pb2.NodeIo) -> NodeIo:
    """Return what the scheduler has learnt of a node."""
    return NodeIo(
        loads=message.loads,
        wait_s=seconds(message.wait),
        ssd_bytes_per_s=message.ssd_bytes_per_s,
        dram_bytes_per_s=message.dram_bytes_per_s,
        models_on_ssd=message.models_on_ssd if message.HasField("models_on_ssd") else None,
        models_in_dram=message.models_in_dram if message.HasField("models_in_dram") else None,
    )


def explanation(message: control_pb2.ExplainResponse) -> Explanation:
    """Return why a start went where it went."""
    return Explanation(
        placement_id=message.placement_id,
        deployment=message.deployment,
        began_at=message.began_at.ToDatetime(tzinfo=UTC),
        choices=tuple(
            Choice(
                at_s=seconds(entry.at),
                chosen=candidate(entry.chosen) if entry.HasField("chosen") else None,
                considered=tuple(candidate(each) for each in entry.considered),
            )
            for entry in message.choices
        ),
        attempts=tuple(
            Attempt(
                instance_id=entry.instance_id,
                expected=candidate(entry.expected),
                ordered_s=seconds(entry.ordered),
                took_s=seconds(entry.took),
                report=start_report(entry.report) if entry.HasField("report") else None,
                failure=entry.failure,
            )
            for entry in message.attempts
        ),
        served=tuple(
            ServedRequest(request_id=entry.request_id, start=start_report(entry.start))
            for entry in message.served
        ),
    )


def candidate(message: control_pb2.PlacementCandidate) -> Candidate:
    """Return one way to start a model."""
    return Candidate(
        way=_WAYS.get(message.way, Way.UNKNOWN),
        node_id=message.node_id,
        worker_id=message.worker_id,
        device_id=message.device_id,
        source=_TIERS.get(message.tier, Tier.UNKNOWN),
        room_s=seconds(message.room),
        queue_s=seconds(message.queue),
        transfer_s=seconds(message.transfer),
        init_s=seconds(message.init),
        loss_s=seconds(message.loss),
        victims=tuple(message.victim_instance_ids),
        refused=message.refused,
    )


def import_progress(message: control_pb2.ImportProgress) -> ImportProgress:
    """Return how far an import has come."""
    return ImportProgress(
        bytes_done=message.bytes_done,
        bytes_total=message.bytes_total,
        file=message.file,
        bytes_per_s=message.bytes_per_second,
        origin=message.origin,
    )
