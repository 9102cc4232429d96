"""What the comparison policies share: instances, requests that wait, and what is done about them.

As many instances of a model are started as its waiting requests need slots. Who finds no place
waits in order of arrival until something changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from services.common.model import PhaseDuration, StartPhase, StartReport, Tier
from services.common.placement import Instance, InstanceState, Route
from services.scheduler import actions, events
from sim import facts
from sim.calibration import Hardware
from sim.policies.choices import POLICIES, Kill, Move, Place, Policy
from sim.policies.cluster import Cluster, Kept, Slot

WINDOW: Final = 64  # deployments that wait and are looked at when something changes
WARM: Final = StartReport(
    cold=False,
    source=Tier.DEVICE,
    phases=(PhaseDuration(phase=StartPhase.QUEUE, duration_s=0.0),),
)


@dataclass(slots=True)
class _Due:
    """A start that waits for a device that is being cleared."""

    deployment: str
    slot: Slot
    need_bytes: int
    leaving: set[str] = field(default_factory=set)  # instances that are on their way out


class Baseline:
    """A scheduler with a comparison policy."""

    hears_lines = False

    def __init__(self, name: str, hardware: Hardware, seed: int) -> None:
        self.name = name
        self._policy: Policy = POLICIES[name]
        self._cluster = Cluster(hardware, seed)
        self._waiting: dict[str, dict[str, None]] = {}  # requests by deployment
        self._deployment_of: dict[str, str] = {}
        self._blocked: dict[str, None] = {}  # deployments without a place
        self._granted: dict[str, Kept] = {}
        self._dues: dict[str, _Due] = {}  # by the instance that leaves
        self._coming: dict[str, int] = {}  # dues by deployment
        self._moving_to: dict[str, str] = {}  # where the sequences of an instance go
        self._made = 0
        self._now_s = 0.0
        self._deeds: list[facts.Deed] = []
        self._is_changed = False

    def decide(self, happening: facts.Happening) -> Sequence[facts.Deed]:
        """Return what is to be done about `happening`."""
        self._deeds = []
        self._now_s = happening.now_s
        self._handle(happening)
        if self._is_changed:
            self._is_changed = False
            for deployment in list(islice(self._blocked, WINDOW)):
                self._consider(deployment)
        return self._deeds

    def _handle(self, happening: facts.Happening) -> None:
        match happening:
            case events.WorkerReported():
                self._report(happening)
            case facts.TierChanged():
                self._cluster.tier_changed(
                    happening.node_id, happening.model, happening.tier, is_there=happening.is_there
                )
            case facts.StoreTold():
                for name in happening.on_ssd:
                    self._cluster.tier_changed(happening.node_id, name, Tier.SSD, is_there=True)
            case events.AcquireRequested():
                self._acquire(happening.request_id, happening.deployment)
            case events.AcquireCancelled() | events.Released():
                self._leave(happening.request_id)
            case events.DeploymentPut():
                self._cluster.deployments[happening.deployment.name] = happening.deployment
            case events.WorkerLost():
                for kept in self._cluster.lose(happening.worker_id):
                    self._vanish(kept)
            case _:
                self._handle_outcome(happening)

    def _handle_outcome(self, happening: facts.Happening) -> None:
        match happening:
            case events.LoadSucceeded():
                self._loaded(happening)
            case events.UnloadSucceeded() | events.LoadFailed():
                self._gone(happening.instance_id)
            case events.UnloadRefused():
                self._stays(happening.instance_id)
            case facts.Moved():
                self._moved(happening.instance_id)
            case _:
                pass

    # --- requests ---

    def _acquire(self, request_id: str, deployment: str) -> None:
        self._waiting.setdefault(deployment, {})[request_id] = None
        self._deployment_of[request_id] = deployment
        self._consider(deployment)

    def _leave(self, request_id: str) -> None:
        if (kept := self._granted.pop(request_id, None)) is not None:
            kept.granted -= 1
            kept.running = max(1, kept.running)  # until a report says otherwise
        deployment = self._deployment_of.pop(request_id, None)
        if deployment is not None:
            waiting = self._waiting[deployment]
            del waiting[request_id]
            if not waiting:
                del self._waiting[deployment]
                self._blocked.pop(deployment, None)

    def _consider(self, deployment: str) -> None:
        """Start as many instances as requests wait for, as far as the policy finds places."""
        waiting = len(self._waiting.get(deployment, ()))
        slots = self._cluster.deployments[deployment].spec.slots
        coming = self._coming.get(deployment, 0)
        for kept in self._cluster.by_deployment.get(deployment, {}).values():
            coming += kept.state is InstanceState.LOADING and not kept.is_moving
        while waiting > coming * slots:
            if not self._start(deployment):
                self._blocked[deployment] = None
                return
            coming += 1
        self._blocked.pop(deployment, None)

    def _start(self, deployment: str) -> bool:
        match self._policy(self._cluster, deployment, self._now_s):
            case Place(slot):
                self._place(deployment, slot)
            case Kill(victim):
                victim.state = InstanceState.LEAVING
                self._clear(deployment, victim.device, [victim], is_evicting=False)
                self._route_down(victim)
                self._deeds.append(facts.Preempt(victim.instance_id))
            case Move(victim, to):
                return self._migrate(deployment, victim, to)
            case _:
                return False
        return True

    # --- starts ---

    def _place(self, deployment: str, slot: Slot) -> None:
        need_bytes = self._cluster.need_bytes(deployment)
        victims: list[Kept] = []
        lacking = need_bytes - slot.free_bytes
        for kept in slot.idle() if lacking > 0 else ():
            victims.append(kept)
            lacking -= kept.memory_bytes
            if lacking <= 0:
                break
        if victims:
            self._clear(deployment, slot, victims, is_evicting=True)
        else:
            self._deeds.append(self._load(deployment, slot))

    def _clear(
        self, deployment: str, slot: Slot, victims: list[Kept], *, is_evicting: bool
    ) -> None:
        """Claim a device and wait for what leaves it."""
        due = _Due(deployment, slot, self._cluster.need_bytes(deployment))
        # The claim takes what the victims give back, so nobody else counts on it.
        slot.claimed_bytes += due.need_bytes
        self._coming[deployment] = self._coming.get(deployment, 0) + 1
        for kept in victims:
            due.leaving.add(kept.instance_id)
            self._dues[kept.instance_id] = due
            if is_evicting:
                self._unload(kept)

    def _unload(self, kept: Kept) -> None:
        kept.state = InstanceState.LEAVING
        self._route_down(kept)
        worker_id = kept.device.key.worker_id
        self._deeds.append(
            actions.StartUnload(
                instance_id=kept.instance_id,
                worker_id=worker_id,
                address=worker_id,
                only_if_idle=True,
            )
        )

    def _load(self, deployment: str, slot: Slot) -> actions.StartLoad:
        self._made += 1
        spec = self._cluster.deployments[deployment].spec
        kept = Kept(
            instance_id=f"b-{self._made}",
            deployment=deployment,
            device=slot,
            memory_bytes=self._cluster.need_bytes(deployment),
            slots=spec.slots,
        )
        self._cluster.add(kept)
        self._cluster.load_ordered(slot, deployment, self._now_s)
        return actions.StartLoad(
            instance_id=kept.instance_id,
            deployment=deployment,
            model=self._cluster.deployments[deployment].model.ref,
            worker_id=slot.key.worker_id,
            address=slot.key.worker_id,
            device_id=slot.key.device_id,
            slots=spec.slots,
            context_tokens_max=spec.context_tokens_max,
            memory_bytes=kept.memory_bytes,
            request_id="",
        )

    def _migrate(self, deployment: str, victim: Kept, to: Slot) -> bool:
        """Move, unless the destination must be cleared first: then look again when it is."""
        need_bytes = self._cluster.need_bytes(victim.deployment)
        if to.free_bytes < need_bytes:  # evict there first, and look again when it is free
            for kept in to.idle():
                if to.free_bytes >= need_bytes:
                    break
                self._unload(kept)
            return False
        order = self._load(victim.deployment, to)
        self._cluster.instances[order.instance_id].is_moving = True
        victim.is_moving = True
        self._clear(deployment, victim.device, [victim], is_evicting=False)
        self._route_down(victim)
        self._moving_to[victim.instance_id] = order.instance_id
        self._deeds.append(facts.Migrate(victim.instance_id, order))
        return True

    # --- outcomes ---

    def _report(self, event: events.WorkerReported) -> None:
        slot = self._cluster.follow(event.worker)
        for said in event.worker.instances:
            kept = self._cluster.instances.get(said.instance_id)
            if kept is None:
                self._adopt(slot, said)
                continue
            was_idle, kept.running = kept.is_idle, said.running
            if said.idle_s is not None and not was_idle and kept.is_idle:
                kept.idle_since_s = self._now_s - said.idle_s
                self._is_changed = True

    def _adopt(self, slot: Slot, said: Instance) -> None:
        """Take over what was started before the run; anything else unknown is on its way out."""
        if said.state is not InstanceState.READY:
            return
        kept = Kept(
            instance_id=said.instance_id,
            deployment=said.deployment,
            device=slot,
            memory_bytes=said.memory_bytes,
            slots=said.slots,
            state=InstanceState.READY,
            running=said.running,
            idle_since_s=self._now_s - (said.idle_s or 0.0),
        )
        self._cluster.add(kept)
        self._deeds.append(actions.RouteUp(route=self._route(kept)))

    def _loaded(self, event: events.LoadSucceeded) -> None:
        kept = self._cluster.instances.get(event.instance_id)
        if kept is None or kept.state is not InstanceState.LOADING:
            return
        kept.state, kept.ready_s = InstanceState.READY, self._now_s
        kept.idle_since_s = self._now_s
        if kept.is_moving:  # its slots are for the sequences that come
            return
        route = self._route(kept)
        self._deeds.append(actions.RouteUp(route=route))
        self._is_changed = True
        waiting = self._waiting.get(kept.deployment, {})
        for request_id in list(islice(waiting, kept.slots)):
            self._leave(request_id)
            self._granted[request_id] = kept
            kept.granted += 1
            self._deeds.append(actions.Grant(request_id=request_id, route=route, start=event.start))

    def _gone(self, instance_id: str) -> None:
        kept = self._cluster.instances.get(instance_id)
        if kept is not None:
            self._cluster.remove(kept)
            self._vanish(kept)

    def _vanish(self, kept: Kept) -> None:
        """After an instance has gone, in whatever way: go on with the start that waited for it."""
        self._is_changed = True
        if kept.state is InstanceState.READY:
            self._route_down(kept)
        if kept.state is InstanceState.LOADING:
            self._blocked[kept.deployment] = None
        due = self._dues.pop(kept.instance_id, None)
        if due is None:
            return
        due.leaving.discard(kept.instance_id)
        if not due.leaving:
            self._end_due(due)

    def _end_due(self, due: _Due) -> None:
        due.slot.claimed_bytes -= due.need_bytes
        self._coming[due.deployment] -= 1
        if not self._waiting.get(due.deployment):
            return  # its requests found a slot elsewhere
        if self._cluster.has_worker(due.slot) and due.slot.free_bytes >= due.need_bytes:
            self._deeds.append(self._load(due.deployment, due.slot))
        else:
            self._blocked[due.deployment] = None

    def _stays(self, instance_id: str) -> None:
        """Take a victim back that turned out to be busy: its start looks elsewhere."""
        kept = self._cluster.instances.get(instance_id)
        if kept is None or kept.state is not InstanceState.LEAVING:
            return
        kept.state, kept.running = InstanceState.READY, max(1, kept.running)
        self._deeds.append(actions.RouteUp(route=self._route(kept)))
        self._is_changed = True
        if (due := self._dues.pop(instance_id, None)) is not None:
            due.leaving.discard(instance_id)
            if not due.leaving:
                self._end_due(due)

    def _moved(self, instance_id: str) -> None:
        """Serve at a migration's destination, and unload what was left behind."""
        target = self._cluster.instances.get(self._moving_to.pop(instance_id, ""))
        if target is not None and target.state is InstanceState.READY:
            target.is_moving = False
            self._deeds.append(actions.RouteUp(route=self._route(target)))
            self._is_changed = True
        kept = self._cluster.instances.get(instance_id)
        if kept is None:
            return
        kept.is_moving = False
        if kept.state is InstanceState.READY:
            kept.state = InstanceState.LEAVING
            worker_id = kept.device.key.worker_id
            self._deeds.append(
                actions.StartUnload(
                    instance_id=instance_id,
                    worker_id=worker_id,
                    address=worker_id,
                    only_if_idle=False,
                )
            )

    def _route_down(self, kept: Kept) -> None:
        self._deeds.append(actions.RouteDown(instance_id=kept.instance_id))

    def _route(self, kept: Kept) -> Route:
        return Route(
            instance_id=kept.instance_id,
            deployment=kept.deployment,
            worker_address=kept.device.key.worker_id,
            worker_id=kept.device.key.worker_id,
            slots=kept.slots,
        )
