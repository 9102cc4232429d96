"""The wire's messages to our types and back; those of sequences are in `wire_sequence`.

These two are the only modules of `common` that know protobuf's types. `*_from_proto` parses:
what comes out needs no further check. It raises InvalidArgumentError.
"""

from __future__ import annotations

from typing import Final

from brisk.common.v1 import model_pb2, placement_pb2
from google.protobuf.duration_pb2 import Duration

from services.common.model import (
    ModelInfo,
    ModelRef,
    PhaseDuration,
    StartPhase,
    StartProgress,
    StartReport,
    Tier,
)
from services.common.names import parse_id, parse_model_name
from services.common.placement import Device, Instance, InstanceState, Route, WorkerState

_TIERS: Final[dict[Tier, model_pb2.Tier.ValueType]] = {
    Tier.UNSPECIFIED: model_pb2.TIER_UNSPECIFIED,
    Tier.DEVICE: model_pb2.TIER_DEVICE,
    Tier.DRAM: model_pb2.TIER_DRAM,
    Tier.SSD: model_pb2.TIER_SSD,
    Tier.PEER: model_pb2.TIER_PEER,
    Tier.REMOTE: model_pb2.TIER_REMOTE,
}
_PHASES: Final[dict[StartPhase, model_pb2.StartPhase.ValueType]] = {
    StartPhase.UNSPECIFIED: model_pb2.START_PHASE_UNSPECIFIED,
    StartPhase.QUEUE: model_pb2.START_PHASE_QUEUE,
    StartPhase.PLACEMENT: model_pb2.START_PHASE_PLACEMENT,
    StartPhase.FETCH: model_pb2.START_PHASE_FETCH,
    StartPhase.LOAD: model_pb2.START_PHASE_LOAD,
    StartPhase.INIT: model_pb2.START_PHASE_INIT,
    StartPhase.FIRST_TOKEN: model_pb2.START_PHASE_FIRST_TOKEN,
}
_STATES: Final[dict[InstanceState, placement_pb2.InstanceState.ValueType]] = {
    InstanceState.UNSPECIFIED: placement_pb2.INSTANCE_STATE_UNSPECIFIED,
    InstanceState.LOADING: placement_pb2.INSTANCE_STATE_LOADING,
    InstanceState.READY: placement_pb2.INSTANCE_STATE_READY,
    InstanceState.LEAVING: placement_pb2.INSTANCE_STATE_LEAVING,
}
_TIERS_BACK: Final = {number: tier for tier, number in _TIERS.items()}
_PHASES_BACK: Final = {number: phase for phase, number in _PHASES.items()}
_STATES_BACK: Final = {number: state for state, number in _STATES.items()}


# --- Models ---


def model_ref_from_proto(message: model_pb2.ModelRef) -> ModelRef:
    """Parse a reference; an empty revision stays empty. Raises InvalidArgumentError."""
    revision = message.revision
    return ModelRef(
        name=parse_model_name(message.name),
        revision=parse_id(revision, what="revision") if revision else "",
    )


def model_ref_to_proto(ref: ModelRef) -> model_pb2.ModelRef:
    """Return the message that parses back to `ref`."""
    return model_pb2.ModelRef(name=ref.name, revision=ref.revision)


def model_info_from_proto(message: model_pb2.ModelInfo) -> ModelInfo:
    """Parse what a store manager says about a model. Raises InvalidArgumentError."""
    return ModelInfo(
        ref=model_ref_from_proto(message.ref),
        architecture=message.architecture,
        dtype=message.dtype,
        weight_bytes=message.weight_bytes,
        parameters=message.parameters,
        context_tokens_max=message.context_tokens_max,
        kv_bytes_per_token=message.kv_bytes_per_token,
    )


def model_info_to_proto(info: ModelInfo) -> model_pb2.ModelInfo:
    """Return the message that parses back to `info`."""
    return model_pb2.ModelInfo(
        ref=model_ref_to_proto(info.ref),
        architecture=info.architecture,
        dtype=info.dtype,
        weight_bytes=info.weight_bytes,
        parameters=info.parameters,
        context_tokens_max=info.context_tokens_max,
        kv_bytes_per_token=info.kv_bytes_per_token,
    )


# --- Starts ---


def tier_from_proto(number: model_pb2.Tier.ValueType) -> Tier:
    """Return the tier; one that we do not know yet is UNSPECIFIED."""
    return _TIERS_BACK.get(number, Tier.UNSPECIFIED)


def tier_to_proto(tier: Tier) -> model_pb2.Tier.ValueType:
    """Return the tier's number."""
    return _TIERS[tier]


def progress_from_proto(message: model_pb2.StartProgress) -> StartProgress:
    """Parse how far a start has come."""
    return StartProgress(
        phase=_PHASES_BACK.get(message.phase, StartPhase.UNSPECIFIED),
        bytes_done=message.bytes_done,
        bytes_total=message.bytes_total,
        source=tier_from_proto(message.source),
        detail=message.detail,
    )


def progress_to_proto(progress: StartProgress) -> model_pb2.StartProgress:
    """Return the message that parses back to `progress`."""
    return model_pb2.StartProgress(
        phase=_PHASES[progress.phase],
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        source=tier_to_proto(progress.source),
        detail=progress.detail,
    )


def report_from_proto(message: model_pb2.StartReport) -> StartReport:
    """Parse how a request got to its first token."""
    return StartReport(
        cold=message.cold,
        source=tier_from_proto(message.source),
        phases=tuple(
            PhaseDuration(
                phase=_PHASES_BACK.get(phase.phase, StartPhase.UNSPECIFIED),
                duration_s=duration_from_proto(phase.duration),
            )
            for phase in message.phases
        ),
    )


def report_to_proto(report: StartReport) -> model_pb2.StartReport:
    """Return the message that parses back to `report`."""
    return model_pb2.StartReport(
        cold=report.cold,
        source=tier_to_proto(report.source),
        phases=[
            model_pb2.PhaseDuration(
                phase=_PHASES[phase.phase], duration=duration_to_proto(phase.duration_s)
            )
            for phase in report.phases
        ],
    )


def duration_from_proto(message: Duration) -> float:
    """Return seconds."""
    return message.seconds + message.nanos / 1e9


def duration_to_proto(seconds: float) -> Duration:
    """Return the message for `seconds`, rounded to microseconds."""
    message = Duration()
    message.FromMicroseconds(round(seconds * 1e6))
    return message


# --- Placement ---


def device_from_proto(message: placement_pb2.Device) -> Device:
    """Parse a device."""
    return Device(
        device_id=message.device_id,
        memory_bytes=message.memory_bytes,
        free_bytes=message.free_bytes,
    )


def device_to_proto(device: Device) -> placement_pb2.Device:
    """Return the message that parses back to `device`."""
    return placement_pb2.Device(
        device_id=device.device_id,
        memory_bytes=device.memory_bytes,
        free_bytes=device.free_bytes,
    )


def instance_from_proto(message: placement_pb2.Instance) -> Instance:
    """Parse an instance. Raises InvalidArgumentError if its model's name is none."""
    return Instance(
        instance_id=message.instance_id,
        deployment=message.deployment,
        model=model_ref_from_proto(message.model),
        worker_id=message.worker_id,
        device_id=message.device_id,
        memory_bytes=message.memory_bytes,
        slots=message.slots,
        state=_STATES_BACK.get(message.state, InstanceState.UNSPECIFIED),
        running=message.running,
        waiting=message.waiting,
        idle_s=duration_from_proto(message.idle) if message.HasField("idle") else None,
        keep_alive_left_s=duration_from_proto(message.keep_alive_left)
        if message.HasField("keep_alive_left")
        else None,
        serial_reason=message.serial_reason,
    )


def instance_to_proto(instance: Instance) -> placement_pb2.Instance:
    """Return the message that parses back to `instance`."""
    idle_s, left_s = instance.idle_s, instance.keep_alive_left_s
    return placement_pb2.Instance(
        instance_id=instance.instance_id,
        deployment=instance.deployment,
        model=model_ref_to_proto(instance.model),
        worker_id=instance.worker_id,
        device_id=instance.device_id,
        memory_bytes=instance.memory_bytes,
        slots=instance.slots,
        state=_STATES[instance.state],
        running=instance.running,
        waiting=instance.waiting,
        idle=None if idle_s is None else duration_to_proto(idle_s),
        keep_alive_left=None if left_s is None else duration_to_proto(left_s),
        serial_reason=instance.serial_reason,
    )


def worker_state_from_proto(message: placement_pb2.WorkerState) -> WorkerState:
    """Parse a worker's state. Raises InvalidArgumentError."""
    return WorkerState(
        worker_id=parse_id(message.worker_id, what="worker id"),
        node_id=parse_id(message.node_id, what="node id"),
        address=message.address,
        devices=tuple(device_from_proto(device) for device in message.devices),
        instances=tuple(instance_from_proto(instance) for instance in message.instances),
        draining=message.draining,
        sequence=message.sequence,
    )


def worker_state_to_proto(state: WorkerState) -> placement_pb2.WorkerState:
    """Return the message that parses back to `state`."""
    return placement_pb2.WorkerState(
        worker_id=state.worker_id,
        node_id=state.node_id,
        address=state.address,
        devices=[device_to_proto(device) for device in state.devices],
        instances=[instance_to_proto(instance) for instance in state.instances],
        draining=state.draining,
        sequence=state.sequence,
    )


def route_from_proto(message: placement_pb2.Route) -> Route:
    """Parse a route."""
    return Route(
        instance_id=message.instance_id,
        deployment=message.deployment,
        worker_address=message.worker_address,
        worker_id=message.worker_id,
        slots=message.slots,
    )


def route_to_proto(route: Route) -> placement_pb2.Route:
    """Return the message that parses back to `route`."""
    return placement_pb2.Route(
        instance_id=route.instance_id,
        deployment=route.deployment,
        worker_address=route.worker_address,
        worker_id=route.worker_id,
        slots=route.slots,
    )
