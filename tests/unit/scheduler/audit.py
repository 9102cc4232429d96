"""What must be true of the core's state after every decision, whatever happened before."""

from __future__ import annotations

from services.common.placement import InstanceState
from services.scheduler.instance import Exit
from services.scheduler.state import State


def audit(state: State) -> None:
    """Raise AssertionError if the state contradicts itself."""
    _audit_bytes(state)
    _audit_starts(state)
    _audit_instances(state)


def _audit_bytes(state: State) -> None:
    ledger = state.ledger
    for key, device in ledger.devices.items():
        here = [each for each in state.instances.values() if each.device == key]
        assert device.used_bytes == sum(each.memory_bytes for each in here)
        assert device.used_bytes <= device.memory_bytes, f"{key} is over its budget"
        coming = [each for each in here if each.is_gone_soon]
        assert all(each.state is InstanceState.LEAVING for each in coming)
        assert device.coming_bytes == sum(each.memory_bytes for each in coming)
        idle = [each for each in here if each.idle_since_s is not None]
        assert all(each.state is InstanceState.READY and not each.grants for each in idle)
        assert device.idle_bytes == sum(each.memory_bytes for each in idle)
        if device.is_open:
            indexed = ledger.free_at_rest.room_bytes(key) + ledger.free_at_work.room_bytes(key)
            assert indexed == max(0, device.free_bytes())
            assert ledger.soon.first(device.soon_bytes()) is not None
        else:
            assert not device.claims
        for claimant in device.claims:
            assert state.starts[claimant].claim == key
    idle_ids = {each.instance_id for each in state.instances.values() if each.idle_since_s}
    assert idle_ids <= set(ledger.idle_instances())
    since = [state.instances[each].idle_since_s for each in ledger.idle_instances()]
    assert since == sorted(since, key=lambda each: each or 0.0)


def _audit_starts(state: State) -> None:
    waiting = {}
    for key, start in state.starts.items():
        assert start.key == key
        assert start in state.starts_of(start.deployment)
        spec = state.deployments[start.deployment].spec
        is_scaled = spec.max_replicas > 1 or spec.min_replicas > 0 or spec.learns_keep_alive
        assert start.waiters or is_scaled, "a start nobody waits for"
        waiting.update(dict.fromkeys(start.waiters, key))
        is_queued = start.place in state.queue
        assert is_queued == (start.instance_id is None)
        if start.instance_id is not None:
            assert state.instances[start.instance_id].state is InstanceState.LOADING
            assert start.claim is None
        if start.claim is not None:
            assert key in state.ledger.devices[start.claim].claims
    assert waiting == state.waiting_for
    assert len(state.queue) == sum(1 for each in state.starts.values() if not each.instance_id)
    assert state.queue == sorted(state.queue)
    assert not set(waiting) & set(state.granted), "both waiting and granted"


def _audit_instances(state: State) -> None:
    loading = [each for each in state.instances.values() if each.state is InstanceState.LOADING]
    assert {each.instance_id for each in loading} == {
        each.instance_id for each in state.starts.values() if each.instance_id
    }
    granted = {
        request_id: instance.instance_id
        for instance in state.instances.values()
        for request_id in instance.grants
    }
    assert granted == state.granted
    for instance in state.instances.values():
        assert (instance.exit is not None) == (instance.state is InstanceState.LEAVING)
        worker = state.workers[instance.worker_id]
        assert instance.instance_id in worker.instances
        if worker.draining:
            assert instance.state is InstanceState.LEAVING
        if instance.exit is Exit.WITH_WORKER:
            assert worker.draining
        if instance.state is InstanceState.READY:
            assert instance.deployment in state.deployments
