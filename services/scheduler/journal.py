"""One log line for each decision, and what it means in numbers.

At debug level each line holds the whole event and all that was decided, so that `replay` can decide
again; otherwise it is what a person wants to know.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from services.common.log import get_logger
from services.common.placement import InstanceState
from services.scheduler import actions, events, metrics
from services.scheduler.actions import Action
from services.scheduler.choice import Candidate
from services.scheduler.codec import encode, encode_actions, encode_event
from services.scheduler.deployment import Deployment
from services.scheduler.estimates import Priors
from services.scheduler.events import Event
from services.scheduler.misses import misses
from services.scheduler.replay import BEGUN, DECIDED
from services.scheduler.state import Limits, State

LOGGER: Final = "services.scheduler.decisions"
log = get_logger(LOGGER)

_FREQUENT = (
    events.WorkerReported,
    events.StoreReported,
    events.StoreChanged,
    events.LoadProgressed,
    events.Tick,
    events.Released,
    events.DemandReported,
)
_TOLD_MAX: Final = 4  # candidates of a choice that a log line names
_IDS: Final = {
    "request_id": "request",
    "deployment": "deployment",
    "name": "deployment",
    "worker_id": "worker",
    "instance_id": "instance",
    "node_id": "node",
    "router_id": "router",
}
_Facts = dict[str, object]  # what a log line takes


def begin(*, epoch: int, term: int, now_s: float, limits: Limits, priors: Priors) -> None:
    """Log how a reign begins: with this and the decisions' lines it can be replayed."""
    log.info(
        BEGUN,
        epoch=epoch,
        term=term,
        now_s=now_s,
        limits=encode(limits),
        priors=encode(priors),
    )


def write(
    epoch: int,
    event: Event,
    done: tuple[Action, ...],
    took_s: float,
    *,
    is_beginning: bool = False,
) -> None:
    """Log and count a decision; one that changes nothing is worth a debug line."""
    kind = type(event).__name__
    metrics.DECISIONS.labels(kind).inc()
    metrics.DECISION_SECONDS.observe(took_s)
    _count(event, done)
    told = [_brief(each) for each in done if not isinstance(each, actions.WakeAt)]
    is_dull = is_beginning or (
        isinstance(event, _FREQUENT)
        and all(isinstance(each, actions.TellProgress | actions.WakeAt) for each in done)
    )
    say = log.debug if is_dull else log.info
    whole: _Facts = {}
    if logging.getLogger(LOGGER).isEnabledFor(logging.DEBUG):
        whole = {"input": encode_event(event), "output": encode_actions(done)}
    say(
        DECIDED,
        kind=kind,
        epoch=epoch,
        actions=told,
        took_us=round(took_s * 1e6),
        **_ids(event),
        **whole,
    )


def export(state: State) -> None:
    """Set the gauges to what the core knows."""
    metrics.QUEUE_LENGTH.set(len(state.queue))
    metrics.WAITERS.set(len(state.waiting_for))
    metrics.WORKERS.set(len(state.workers))
    metrics.DEPLOYMENTS.set(len(state.deployments))
    counts = Counter(instance.state for instance in state.instances.values())
    for each in (InstanceState.LOADING, InstanceState.READY, InstanceState.LEAVING):
        metrics.INSTANCES.labels(each.value).set(counts[each])


def _ids(event: Event) -> _Facts:
    """Return what `event` is about."""
    facts: _Facts = {}
    for attribute, label in _IDS.items():
        value = getattr(event, attribute, None)
        if value is not None:
            facts[label] = value.name if isinstance(value, Deployment) else value
    match event:
        case events.WorkerReported():
            facts["worker"] = event.worker.worker_id
        case events.LoadFailed() | events.UnloadFailed():
            facts |= {"reason": event.error.reason, "error": event.error.message}
        case _:
            pass
    return facts


def _brief(action: Action) -> _Facts:
    """Return what matters of `action` to someone who reads the log."""
    facts: _Facts = {"do": type(action).__name__}
    match action:
        case actions.StartLoad():
            facts |= {
                "instance": action.instance_id,
                "deployment": action.deployment,
                "revision": action.model.revision,
                "worker": action.worker_id,
                "device": action.device_id,
                "memory_bytes": action.memory_bytes,
            }
        case actions.StartUnload():
            facts |= {"instance": action.instance_id, "only_if_idle": action.only_if_idle}
        case actions.TellProgress():
            facts |= {"requests": len(action.request_ids), "phase": action.progress.phase.value}
            facts |= {"detail": action.progress.detail} if action.progress.detail else {}
        case actions.Grant():
            instance_id = action.route.instance_id
            facts |= {"request": action.request_id, "instance": instance_id}
            facts |= {"cold": action.start.cold}
        case actions.Refuse():
            facts |= {"request": action.request_id, "reason": action.error.reason}
        case actions.RouteUp():
            facts |= {"instance": action.route.instance_id}
        case actions.RouteDown() | actions.CancelLoad():
            facts |= {"instance": action.instance_id}
        case actions.WakeAt():
            facts |= {"at_s": action.at_s}
        case actions.Explain():
            facts |= {"placement": action.placement_id, "deployment": action.deployment}
            if action.choice.chosen is not None:
                facts |= {"chosen": _candidate(action.choice.chosen)}
            others = [_candidate(each) for each in action.choice.considered[:_TOLD_MAX]]
            facts |= {"considered": others, "candidates": len(action.choice.considered)}
        case actions.Outcome():
            facts |= {"placement": action.placement_id, "instance": action.instance_id}
            facts |= {"expected": _candidate(action.expected)}
            if action.report is not None:
                took = misses(action.expected, action.report)
                facts |= {"took_ms": {each.phase: _ms(each.actual_s) for each in took}}
    return facts


def _candidate(candidate: Candidate) -> _Facts:
    """Return a candidate in few words."""
    key = candidate.device
    return {
        "way": candidate.way.value,
        "device": f"{key.worker_id}/{key.device_id}",
        "tier": candidate.tier.value,
        "start_ms": round(candidate.estimate.total_ms, 1),
        "loss_ms": round(candidate.loss_ms, 1),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)


def _count(event: Event, done: tuple[Action, ...]) -> None:
    if isinstance(event, events.AcquireCancelled):
        metrics.ACQUIRES.labels("cancelled").inc()
    elif isinstance(event, events.LoadSucceeded):
        metrics.STARTS.labels("ready").inc()
    elif isinstance(event, events.LoadFailed):
        metrics.STARTS.labels(event.error.reason).inc()
    for action in done:
        match action:
            case actions.CancelLoad():
                metrics.STARTS.labels("cancelled").inc()
            case actions.Grant():
                metrics.ACQUIRES.labels("cold" if action.start.cold else "warm").inc()
                if action.start.cold:
                    for each in action.start.phases:
                        phase = metrics.START_PHASE_SECONDS.labels(each.phase.value)
                        phase.observe(each.duration_s)
            case actions.Outcome() if action.report is not None:
                tier = action.expected.tier.value
                for miss in misses(action.expected, action.report):
                    errors = metrics.ESTIMATE_ERROR_SECONDS.labels(miss.phase, tier)
                    errors.observe(miss.error_s)
            case actions.Refuse():
                metrics.ACQUIRES.labels(action.error.reason).inc()
            case _:
                pass
