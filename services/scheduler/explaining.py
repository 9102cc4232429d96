"""Explanations as messages: what `Explain` answers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from brisk.control.v1 import control_service_pb2 as pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.wire import duration_to_proto, report_to_proto, tier_to_proto
from services.scheduler.choice import Candidate, Way
from services.scheduler.explanations import Attempt, Chosen, Placement

_WAYS: Final = {
    Way.FREE: pb2.PLACEMENT_WAY_FREE,
    Way.EVICT: pb2.PLACEMENT_WAY_EVICT,
    Way.WAIT: pb2.PLACEMENT_WAY_WAIT,
    Way.MIGRATE: pb2.PLACEMENT_WAY_MIGRATE,
}


def explanation(placement: Placement, *, now_s: float, wall: datetime) -> pb2.ExplainResponse:
    """Return all that is kept of a start; `now_s` and `wall` are the same moment."""
    began_at = Timestamp()
    began_at.FromDatetime(wall - timedelta(seconds=now_s - placement.began_s))
    return pb2.ExplainResponse(
        placement_id=placement.placement_id,
        deployment=placement.deployment,
        began_at=began_at,
        choices=[_choice(each, placement.began_s) for each in placement.choices],
        attempts=[_attempt(each, placement.began_s) for each in placement.attempts],
        served=[
            pb2.PlacementRequest(request_id=request_id, start=report_to_proto(start))
            for request_id, start in placement.served.items()
        ],
    )


def _choice(made: Chosen, began_s: float) -> pb2.PlacementChoice:
    chosen = made.choice.chosen
    return pb2.PlacementChoice(
        at=duration_to_proto(made.at_s - began_s),
        chosen=None if chosen is None else _candidate(chosen),
        considered=[_candidate(each) for each in made.choice.considered],
    )


def _attempt(attempt: Attempt, began_s: float) -> pb2.PlacementAttempt:
    return pb2.PlacementAttempt(
        instance_id=attempt.instance_id,
        expected=_candidate(attempt.expected),
        ordered=duration_to_proto(attempt.ordered_s - began_s),
        took=duration_to_proto(attempt.ended_s - attempt.ordered_s),
        report=None if attempt.report is None else report_to_proto(attempt.report),
        failure=attempt.reason,
    )


def _candidate(candidate: Candidate) -> pb2.PlacementCandidate:
    key, estimate = candidate.device, candidate.estimate
    return pb2.PlacementCandidate(
        way=_WAYS[candidate.way],
        node_id=key.node_id,
        worker_id=key.worker_id,
        device_id=key.device_id,
        tier=tier_to_proto(candidate.tier),
        room=duration_to_proto(estimate.room_ms / 1e3),
        queue=duration_to_proto(estimate.queue_ms / 1e3),
        transfer=duration_to_proto(estimate.transfer_ms / 1e3),
        init=duration_to_proto(estimate.init_ms / 1e3),
        loss=duration_to_proto(candidate.loss_ms / 1e3),
        victim_instance_ids=candidate.victims,
        refused=candidate.refused,
    )
