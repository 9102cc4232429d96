"""Loads, unloads, migrations and preemptions, as workers and stores carry them out."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final, Protocol

from services.common.errors import UnavailableError
from services.common.model import PhaseDuration, StartPhase, StartReport
from services.common.placement import InstanceState
from services.scheduler import actions, events
from sim import facts
from sim.agenda import Agenda
from sim.request import Request
from sim.router import Router
from sim.setup import Setup
from sim.store import Store
from sim.worker import Held, Worker

GAP_TOKENS: Final = 8  # a migration's last round hands over at most so many tokens
ROUNDS_MAX: Final = 5
PEERS_MAX: Final = 8  # nodes with a model that are compared


class Cluster(Protocol):
    """What loads need of the world."""

    agenda: Agenda
    setup: Setup
    random: Random
    router: Router
    stores: list[Store]
    workers: dict[str, Worker]
    homes: dict[str, Worker]
    on_ssd: dict[str, list[str]]

    def tell(self, event: Callable[[float], facts.Happening]) -> None:
        """Send an event to the scheduler."""

    def report(self, worker: Worker) -> None:
        """Have a worker tell that it has changed."""

    def speed_factor(self) -> float:
        """Return by what a load's links differ from their usual speed this time."""


class Loads:
    """Carries out orders."""

    def __init__(self, world: Cluster) -> None:
        self._world = world
        self._by_node: dict[str, Store] = {}
        self._moving: dict[str, str] = {}  # the instance that is left, by its destination
        self.finished = self._adopted = 0

    def begin(self, order: actions.StartLoad) -> None:
        """Begin a load."""
        world = self._world
        worker = world.workers.get(order.worker_id)
        if worker is None or order.memory_bytes > worker.free_bytes:
            self._failed(order.instance_id)
            return
        held = Held(order=order, model=order.model)
        worker.held[order.instance_id] = held
        world.homes[order.instance_id] = worker
        model = world.setup.models[order.deployment]
        held.loading = worker.store.load(
            world.agenda.now_s,
            model.name,
            model.shape.weight_bytes,
            device=worker.index,
            factor=world.speed_factor(),
            peer=self._peer(worker.store, model.name),
        )
        began_s = world.agenda.now_s
        ready_s = held.loading.ends_s + world.setup.control.init_s
        world.agenda.at(ready_s, self._loaded, worker, held, began_s)
        world.report(worker)

    def adopt(self, worker: Worker, name: str) -> None:
        """Have an instance on a worker that another leader has started before the run."""
        world, model = self._world, self._world.setup.models[name]
        self._adopted += 1
        order = actions.StartLoad(
            instance_id=f"old-{self._adopted}",
            deployment=name,
            model=model.deployment.model.ref,
            worker_id=worker.worker_id,
            address=worker.worker_id,
            device_id=f"d{worker.index}",
            slots=model.deployment.spec.slots,
            context_tokens_max=model.deployment.spec.context_tokens_max,
            memory_bytes=model.deployment.device_bytes,
            request_id="",
        )
        held = Held(order=order, model=order.model, state=InstanceState.READY)
        worker.held[order.instance_id] = held
        world.homes[order.instance_id] = worker
        worker.engine.add(order.instance_id, model.pace)
        worker.store.warm(name, model.shape.weight_bytes)

    def cancel(self, instance_id: str) -> None:
        """Stop a load, if it is still one; the unload that follows frees its memory."""
        world = self._world
        worker = world.homes.get(instance_id)
        held = None if worker is None else worker.held.get(instance_id)
        if worker is None or held is None or held.state is not InstanceState.LOADING:
            return
        if held.loading is not None:
            worker.store.give_up(world.agenda.now_s, held.loading)
            held.loading = None
        held.state = InstanceState.LEAVING
        world.report(worker)

    def unload(self, order: actions.StartUnload) -> None:
        """Free an instance's memory, at once or when its sequences have ended, or refuse to."""
        world, instance_id = self._world, order.instance_id
        worker = world.homes.get(instance_id)
        held = None if worker is None else worker.held.get(instance_id)
        if order.worker_id not in world.workers:
            error = UnavailableError("the worker is gone")
            world.tell(
                lambda now_s: events.UnloadFailed(now_s=now_s, instance_id=instance_id, error=error)
            )
        elif worker is None or held is None:
            self._unloaded(instance_id)
        elif held.running and order.only_if_idle:
            world.tell(lambda now_s: events.UnloadRefused(now_s=now_s, instance_id=instance_id))
        else:
            held.is_unload_owed = True
            held.state = InstanceState.LEAVING
            world.report(worker)
            if not held.running:
                self.free_later(worker, held)

    def migrate(self, order: facts.Migrate) -> None:
        """Load the destination; its sequences follow when it is ready."""
        self._moving[order.load.instance_id] = order.instance_id
        self.begin(order.load)

    def preempt(self, instance_id: str) -> None:
        """Kill an instance; its sequences begin again with nothing."""
        world = self._world
        worker = world.homes.get(instance_id)
        held = None if worker is None else worker.held.get(instance_id)
        if worker is None or held is None or held.state is not InstanceState.READY:
            self._unloaded(instance_id)
            return
        held.state = InstanceState.LEAVING
        for request in worker.engine.remove(instance_id):
            request.pause(world.agenda.now_s)
            request.moves += 1
            request.restarts += 1
            request.left += request.done
            request.done = 0
            world.agenda.later(world.setup.control.rpc_s, world.router.again, request, instance_id)
        held.running = 0
        world.agenda.later(world.setup.control.unload_s, self._free, worker, held)

    def free_later(self, worker: Worker, held: Held) -> None:
        """Free a leaving instance that has no sequences any more."""
        self._world.agenda.later(self._world.setup.control.unload_s, self._free, worker, held)

    def lost(self, instance_id: str) -> None:
        """Enter that an instance died: a migration to it is over."""
        self._end_move(instance_id)

    def _peer(self, store: Store, model: str) -> Store | None:
        """Return a node that could give a model: the one whose link is free soonest, of a few."""
        world = self._world
        if not self._by_node:
            self._by_node = {each.node_id: each for each in world.stores}
        nodes = world.on_ssd.get(model, ())
        few = nodes if len(nodes) <= PEERS_MAX else world.random.sample(nodes, PEERS_MAX)
        stores = [self._by_node[each] for each in few if each != store.node_id]
        return min(stores, key=lambda each: each.outward.free_s, default=None)

    def _failed(self, instance_id: str) -> None:
        error = UnavailableError("the worker cannot take the load")
        world = self._world
        world.tell(lambda at: events.LoadFailed(now_s=at, instance_id=instance_id, error=error))
        self._end_move(instance_id)

    def _loaded(self, worker: Worker, held: Held, began_s: float) -> None:
        world, loading = self._world, held.loading
        if held.state is not InstanceState.LOADING or loading is None or worker.is_dead:
            return
        worker.store.finish(loading)
        self.finished += 1
        order = held.order
        held.state, held.idle_since_s = InstanceState.READY, world.agenda.now_s
        worker.engine.add(order.instance_id, world.setup.models[order.deployment].pace)
        phases = (
            PhaseDuration(phase=StartPhase.FETCH, duration_s=loading.fetched_s - began_s),
            PhaseDuration(phase=StartPhase.LOAD, duration_s=loading.ends_s - loading.fetched_s),
            PhaseDuration(phase=StartPhase.INIT, duration_s=world.setup.control.init_s),
        )
        report = StartReport(cold=True, source=loading.source, phases=phases)
        world.tell(
            lambda now_s: events.LoadSucceeded(
                now_s=now_s, instance_id=order.instance_id, start=report
            )
        )
        world.report(worker)
        if (source := self._moving.pop(order.instance_id, None)) is not None:
            self._follow(source, worker, order.instance_id)

    def _follow(self, source: str, to: Worker, destination: str) -> None:
        """Move an instance's sequences: prefill rounds while it decodes on, then the last tokens.

        Sequences move at once; what is modelled of the rounds is how long they take.
        """
        world = self._world
        home = world.homes.get(source)
        held = None if home is None else home.held.get(source)
        if home is None or held is None or held.state is not InstanceState.READY:
            world.tell(lambda now_s: facts.Moved(now_s, source))
            return
        pace = world.setup.models[held.order.deployment].pace
        most = max((home.engine.tokens(source, each) for each in self._of(source)), default=0)
        took_s, tokens = 0.0, most
        for _ in range(ROUNDS_MAX):
            if tokens <= GAP_TOKENS:
                break
            round_s = pace.prefill_s(tokens)
            took_s += round_s
            tokens = int(round_s / pace.decode_s(max(1, held.running)))
        pause_s = pace.prefill_s(tokens) if most else 0.0
        world.agenda.later(took_s, self._hand_over, source, to, destination, pause_s)

    def _of(self, instance_id: str) -> list[Request]:
        worker = self._world.homes[instance_id]
        decoder = worker.engine.decoders.get(instance_id)
        if decoder is None:
            return []
        known = {request.key: request for _, _, request in decoder.ends}
        return [*decoder.prefilling.values(), *(known[each] for each in decoder.decoding)]

    def _hand_over(self, source: str, to: Worker, destination: str, pause_s: float) -> None:
        world = self._world
        home = world.homes.get(source)
        held = None if home is None else home.held.get(source)
        target = to.held.get(destination)
        if home is None or held is None or held.state is not InstanceState.READY:
            world.tell(lambda now_s: facts.Moved(now_s, source))
            return
        if target is None or target.state is not InstanceState.READY or to.is_dead:
            world.tell(lambda now_s: facts.Moved(now_s, source))
            return
        free = target.order.slots - target.running
        for request in self._of(source)[:free]:
            home.engine.leave(source, request)
            held.running -= 1
            target.running += 1
            request.moves += 1
            request.pause(world.agenda.now_s)
            world.router.moved(request, destination)
            world.agenda.later(pause_s, self._join, to, destination, request)
        held.idle_since_s = world.agenda.now_s
        world.report(home)
        world.report(to)
        world.tell(lambda now_s: facts.Moved(now_s, source))

    def _join(self, to: Worker, destination: str, request: Request) -> None:
        if to.is_dead or destination not in to.engine.decoders:
            self._world.router.again(request, destination)
        elif request.first_token_s is not None:
            request.resume(self._world.agenda.now_s)
            to.engine.join(destination, request)
        else:
            to.engine.begin(destination, request)

    def _end_move(self, destination: str) -> None:
        source = self._moving.pop(destination, None)
        if source is not None:
            self._world.tell(lambda now_s: facts.Moved(now_s, source))

    def _free(self, worker: Worker, held: Held) -> None:
        world, instance_id = self._world, held.order.instance_id
        if worker.held.get(instance_id) is not held or worker.is_dead:
            return
        if held.running:
            return  # a sequence came in the same moment; its end frees the memory
        del worker.held[instance_id]
        del world.homes[instance_id]
        if instance_id in worker.engine.decoders:
            worker.engine.remove(instance_id)
        world.report(worker)
        self._unloaded(instance_id)

    def _unloaded(self, instance_id: str) -> None:
        world = self._world
        world.tell(lambda now_s: events.UnloadSucceeded(now_s=now_s, instance_id=instance_id))
