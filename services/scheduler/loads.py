"""Loads under way: what was predicted of each, and what is learned when it ends."""

from __future__ import annotations

from services.common.errors import BriskError
from services.common.model import ModelInfo, StartPhase, StartReport, Tier
from services.scheduler import actions
from services.scheduler.choice import Candidate
from services.scheduler.instance import Instance
from services.scheduler.misses import MOVED, spent_s
from services.scheduler.node_io import Load, NodeIo
from services.scheduler.state import State, Turn


def begin(turn: Turn, instance: Instance, expected: Candidate, model: ModelInfo) -> None:
    """Enter a load that is ordered, with what was predicted of it."""
    instance.expected = expected
    node_id = instance.device.node_id
    io = turn.state.io.setdefault(node_id, NodeIo())
    source = turn.state.residency.source(node_id, model.ref, model.weight_bytes)
    io.begin(
        instance.instance_id,
        turn.now_s,
        size_bytes=source.missing_bytes,
        transfer_s=expected.estimate.transfer_ms / 1e3,
    )
    _rank(turn.state, node_id)


def end(turn: Turn, instance: Instance) -> Load | None:
    """Enter that a load is over, however it went. Nothing happens if it was over already."""
    node_id = instance.device.node_id
    if (io := turn.state.io.get(node_id)) is None:
        return None
    load = io.end(instance.instance_id, turn.now_s)
    if load is not None:
        if not io.loads and io.stated_s <= turn.now_s:
            del turn.state.io[node_id]
        _rank(turn.state, node_id)
    return load


def succeed(turn: Turn, instance: Instance, report: StartReport) -> None:
    """Enter that a load has succeeded, and learn from it."""
    load = end(turn, instance)
    expected = instance.expected
    if load is None or expected is None:
        return
    _tell(turn, instance, load, report=report)
    moved_s = spent_s(report, *MOVED)
    turn.state.estimates.learn_load(
        instance.device.node_id,
        _tier(report.source, expected.tier),
        instance.model,
        load.size_bytes,
        transfer_s=None if moved_s is None else max(0.0, moved_s - _waited_s(load)),
        init_s=spent_s(report, StartPhase.INIT),
        is_alone=load.is_alone,
    )
    _rank(turn.state, instance.device.node_id)


def fail(turn: Turn, instance: Instance, error: BriskError) -> None:
    """Enter that a load has failed; that teaches nothing about times."""
    load = end(turn, instance)
    if load is not None:
        _tell(turn, instance, load, error=error)


def _tell(
    turn: Turn,
    instance: Instance,
    load: Load,
    *,
    report: StartReport | None = None,
    error: BriskError | None = None,
) -> None:
    if (expected := instance.expected) is None:
        return
    turn.do(
        actions.Outcome(
            placement_id=instance.placement_id,
            instance_id=instance.instance_id,
            expected=expected,
            ordered_s=load.ordered_s,
            report=report,
            error=error,
        )
    )


def _waited_s(load: Load) -> float:
    """Return how long a load is likely to have waited for others before its first byte."""
    return max(0.0, load.begins_s - load.ordered_s)


def _tier(said: Tier, expected: Tier) -> Tier:
    """Return where the bytes came from: the worker knows best, if it says so."""
    return expected if said is Tier.UNSPECIFIED else said


def _rank(state: State, node_id: str) -> None:
    """Bring the index of devices up to date with how soon a node would load."""
    io = state.io.get(node_id)
    is_busy = io is not None and bool(io.loads)
    state.ledger.rank(
        node_id,
        state.estimates.slowness(node_id, Tier.SSD),
        max(0.0, io.free_s) if io is not None and is_busy else None,
    )
