"""The core's actions as the dialogues write them, one line each."""

from __future__ import annotations

from services.common.errors import BriskError
from services.common.model import StartProgress, StartReport
from services.scheduler import actions as do
from services.scheduler.choice import Candidate, Choice
from services.scheduler.misses import misses


def shown(action: do.Action, *, explains: bool = False) -> str | None:
    """Return the line for an action; None for wake-ups, which dialogues leave to `wait`."""
    line: str | None = None
    match action:
        case do.WakeAt():
            pass
        case do.StartLoad():
            model = f"{action.deployment}@{action.model.revision}"
            place = f"{action.worker_id}/{action.device_id}"
            line = f"load {action.instance_id} {model} on {place} {action.memory_bytes} bytes"
        case do.CancelLoad():
            line = f"cancel load {action.instance_id}"
        case do.StartUnload():
            line = f"unload {action.instance_id}{' if idle' if action.only_if_idle else ''}"
        case do.TellProgress():
            line = f"tell {' '.join(action.request_ids)}: {_progress(action.progress)}"
        case do.Grant():
            instance_id = action.route.instance_id
            line = f"grant {action.request_id} {instance_id} {_report(action.start)}"
        case do.Refuse():
            line = f"refuse {action.request_id} {_error(action.error)}"
        case do.RouteUp():
            line = f"route up {action.route.instance_id} at {action.route.worker_address}"
        case do.RouteDown():
            line = f"route down {action.instance_id}"
        case do.Explain() if explains:
            line = f"because {action.placement_id}: {_choice(action.choice)}"
        case do.Outcome() if explains:
            line = f"outcome {action.placement_id} {action.instance_id}: {_outcome(action)}"
        case do.Explain() | do.Outcome():
            pass
    return line


def _choice(choice: Choice) -> str:
    """Show the chosen way first, then what it was compared with."""
    others = [each for each in choice.considered if each != choice.chosen]
    chosen = "nothing" if choice.chosen is None else _candidate(choice.chosen)
    return "; ".join([chosen, *(f"not {_candidate(each)}" for each in others)])


def _candidate(candidate: Candidate) -> str:
    key, estimate = candidate.device, candidate.estimate
    spans = [
        f"{name}={ms:.0f}" for name, ms in zip(estimate._fields, estimate, strict=True) if ms >= 0.5
    ]
    loss = f" loss={candidate.loss_ms:.0f}" if candidate.loss_ms >= 0.5 else ""
    victims = f" of {','.join(candidate.victims)}" if candidate.victims else ""
    refused = f" refused: {candidate.refused}" if candidate.refused else ""
    place = f"{key.worker_id}/{key.device_id}"
    told = f"{candidate.way} {place} {candidate.tier}"
    return f"{told} {' '.join(spans)}{loss}{victims}{refused}"


def _outcome(action: do.Outcome) -> str:
    if action.report is None:
        return "failed"
    return " ".join(
        f"{each.phase}={each.actual_s:g}/{each.predicted_s:.2f}"
        for each in misses(action.expected, action.report)
    )


def _progress(progress: StartProgress) -> str:
    amount = f" {progress.bytes_done}/{progress.bytes_total}" if progress.bytes_total else ""
    detail = f" ({progress.detail})" if progress.detail else ""
    return progress.phase.value + amount + detail


def _report(start: StartReport) -> str:
    phases = " ".join(f"{each.phase.value}={each.duration_s:g}" for each in start.phases)
    return f"{'cold' if start.cold else 'warm'} {phases}".rstrip()


def _error(error: BriskError) -> str:
    retry = "" if error.retry_after_s is None else f" retry={error.retry_after_s:g}"
    facts = "".join(f" {key}={value}" for key, value in error.metadata.items())
    return f"{error.code} {error.reason}{retry}{facts} {error.message!r}"
