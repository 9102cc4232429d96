"""How many instances a deployment should have: what asks for it now, within what was specified."""

from __future__ import annotations

from services.common.placement import InstanceState
from services.scheduler.state import State


def demand(state: State, deployment: str) -> int:
    """Return how many sequences there are or are about to be.

    Those that wait for an instance, those on instances, and those in the routers' lines.
    """
    waiting = sum(len(start.waiters) for start in state.starts_of(deployment))
    running = sum(
        # A grant is counted until its sequence is: some are in both for a moment.
        max(instance.running + instance.waiting, len(instance.grants))
        for instance in state.instances_of(deployment)
        if instance.state is InstanceState.READY
    )
    return waiting + running + sum(state.lines.get(deployment, {}).values())


def wanted(state: State, deployment: str) -> int:
    """Return how many instances there should be; 0 for a deployment that is gone."""
    known = state.deployments.get(deployment)
    if known is None:
        return 0
    spec = known.spec
    target = spec.target_concurrency or spec.slots
    return max(spec.min_replicas, min(-(-demand(state, deployment) // target), spec.max_replicas))


def lacking(state: State, deployment: str) -> int:
    """Return how many instances should be started; negative: how many starts are too many."""
    there = sum(
        instance.state is InstanceState.READY for instance in state.instances_of(deployment)
    )
    coming = sum(
        start.instance_id is None
        or state.instances[start.instance_id].state is InstanceState.LOADING
        for start in state.starts_of(deployment)
    )
    return wanted(state, deployment) - there - coming
