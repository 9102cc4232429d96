"""The cluster: it carries out what the scheduler decides, and tells it what becomes of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from random import Random
from time import thread_time_ns

from services.common.model import Tier
from services.common.placement import InstanceState
from services.scheduler import actions, events
from sim import facts
from sim.agenda import Agenda
from sim.decisions import Decisions
from sim.engine import Engine
from sim.loads import Loads
from sim.request import Arrival, Request
from sim.router import Router
from sim.seam import Scheduler
from sim.setup import Failure, Setup
from sim.store import Store
from sim.worker import Held, Worker

DRAIN_S = 3600.0  # how long after the last arrival a run may go on


class World:
    """One run."""

    def __init__(self, setup: Setup, scheduler: Scheduler, seed: int) -> None:
        self.setup = setup
        self.scheduler = scheduler
        self.agenda = Agenda()
        self.random = Random(f"loads {seed}")
        self.router = Router(
            self, setup.control, setup.patience_s, hears_lines=scheduler.hears_lines
        )
        self.decisions = Decisions()
        self.requests: list[Request] = []
        self.stores: list[Store] = []
        self.workers: dict[str, Worker] = {}
        self.homes: dict[str, Worker] = {}  # by instance, from its order until it is gone
        self.on_ssd: dict[str, list[str]] = {}  # by model: nodes that have it
        self.loads = Loads(self)
        self.migrations = self.preemptions = 0
        self._open = 0  # requests that have not ended
        self._is_told_tiers = False
        self._is_all_in = False
        self._wake = 0
        self._handlers: dict[type, Callable[..., None]] = {
            actions.StartLoad: self._start_load,
            actions.CancelLoad: self._cancel_load,
            actions.StartUnload: self._start_unload,
            actions.TellProgress: self._ignore,
            actions.Grant: self.router.grant,
            actions.Refuse: self.router.refuse,
            actions.RouteUp: self.router.route_up,
            actions.RouteDown: self.router.route_down,
            actions.WakeAt: self._wake_at,
            actions.Explain: self._ignore,
            actions.Outcome: self._ignore,
            facts.Migrate: self._migrate,
            facts.Preempt: self._preempt,
        }

    def run(self, arrivals: Iterable[Arrival]) -> None:
        """Let a workload come in and be served."""
        self._begin()
        coming = iter(arrivals)
        self._next_arrival(coming)
        last_s = math.inf
        while self._open and self.agenda.now_s < last_s + DRAIN_S:
            self.agenda.run(self.agenda.now_s + 1.0)
            if self._is_all_in:
                last_s = min(last_s, self.agenda.now_s)
        for request in self.requests:
            if request.ended_s is None and not request.failure:
                request.failure = "UNSERVED"

    # --- for the parts of the world ---

    def feed(self, happening: facts.Happening) -> None:
        """Have the scheduler decide, and do what it wants."""
        began_ns = thread_time_ns()
        deeds = self.scheduler.decide(happening)
        self.decisions.note(type(happening).__name__, thread_time_ns() - began_ns)
        handlers = self._handlers
        for deed in deeds:
            handlers[type(deed)](deed)
        self.router.settle()

    def tell(self, event: Callable[[float], facts.Happening]) -> None:
        """Send an event to the scheduler; it is made when it arrives."""
        self.agenda.later(self.setup.control.rpc_s, self._arrive_event, event)

    def dispatch(self, instance_id: str, request: Request) -> None:
        """Send a sequence to an instance."""
        control = self.setup.control
        self.agenda.later(control.rpc_s + control.router_s, self._take, instance_id, request)

    def failed(self, request: Request, reason: str) -> None:
        """End a request that got no first token."""
        request.failure = reason
        request.ended_s = self.agenda.now_s
        self._open -= 1

    def report(self, worker: Worker) -> None:
        """Have a worker tell that it has changed."""
        if not worker.is_report_due and not worker.is_dead:
            worker.is_report_due = True
            self.agenda.later(self.setup.control.report_gap_s, self._send_report, worker)

    def speed_factor(self) -> float:
        """Return by what a load's links differ from their usual speed this time."""
        return math.exp(self.random.gauss(0.0, self.setup.hardware.spread))

    def turned_idle(self, worker: Worker, held: Held) -> None:
        """Enter that a sequence has left an instance."""
        held.running -= 1
        held.idle_since_s = self.agenda.now_s
        self.report(worker)
        if held.state is InstanceState.LEAVING and not held.running:
            self.loads.free_later(worker, held)

    # --- beginning ---

    def _begin(self) -> None:
        setup = self.setup
        for index in range(setup.nodes):
            node_id = f"n{index:05d}"
            store = Store(node_id, setup.hardware, self._tier_changed)
            self.stores.append(store)
        self._place_copies()
        for model in setup.models.values():
            self.feed(events.DeploymentPut(now_s=0.0, deployment=model.deployment))
        self._is_told_tiers = True
        for index, store in enumerate(self.stores):
            told = tuple(store.ssd.sizes)
            self.feed(facts.StoreTold(now_s=0.0, node_id=store.node_id, on_ssd=told))
            self._raise_workers(store, 0, index)
        self.feed(events.WorkersLearned(now_s=0.0))
        for failure in setup.failures:
            self.agenda.at(failure.at_s, self._fail, failure)

    def _place_copies(self) -> None:
        """Spread each model over so many nodes, in turn, as an import does."""
        turn = 0
        count = len(self.stores)
        for model in self.setup.models.values():
            size = model.shape.weight_bytes
            for offset in range(min(self.setup.copies, count)):
                store = self.stores[(turn + offset) % count]
                store.place(((model.name, size),))
            turn += self.setup.copies

    def _raise_workers(self, store: Store, life: int, node: int = -1) -> None:
        """Let a node's workers report; with its number they have what is resident there."""
        setup = self.setup
        count = int(setup.hardware.devices)
        for index in range(count):
            suffix = f"-{life}" if life else ""
            worker = Worker(
                worker_id=f"{store.node_id}-w{index}{suffix}",
                store=store,
                index=index,
                engine=Engine(self.agenda, self._first_token, self._last_token),
                memory_bytes=int(setup.hardware.device_bytes),
            )
            self.workers[worker.worker_id] = worker
            for name in setup.resident.get((node, index), ()):
                self.loads.adopt(worker, name)
            now_s = self.agenda.now_s
            self.feed(events.WorkerReported(now_s=now_s, worker=worker.state(now_s)))
            stagger = (len(self.workers) % 997) / 997
            self.agenda.later(setup.control.heartbeat_s * (1.0 + stagger), self._beat, worker)

    def _next_arrival(self, coming: Iterator[Arrival]) -> None:
        arrival = next(coming, None)
        self._is_all_in = arrival is None
        if arrival is not None:
            self._open += 1
            self.agenda.at(arrival.at_s, self._arrive, arrival, coming)

    # --- what happens ---

    def _arrive(self, arrival: Arrival, coming: Iterator[Arrival]) -> None:
        self._next_arrival(coming)
        request = Request(key=f"r{len(self.requests)}", arrival=arrival, left=arrival.output_tokens)
        self.requests.append(request)
        self.router.arrive(request)

    def _arrive_event(self, event: Callable[[float], facts.Happening]) -> None:
        self.feed(event(self.agenda.now_s))

    def _beat(self, worker: Worker) -> None:
        if worker.is_dead or not (self._open or not self._is_all_in):
            return
        heartbeat_s = self.setup.control.heartbeat_s
        now_s = self.agenda.now_s
        if now_s - worker.reported_s >= heartbeat_s and not worker.is_report_due:
            self._send_report(worker)
        self.agenda.at(max(now_s, worker.reported_s) + heartbeat_s, self._beat, worker)

    def _send_report(self, worker: Worker) -> None:
        worker.is_report_due = False
        if worker.is_dead:
            return
        now_s = self.agenda.now_s
        self.feed(events.WorkerReported(now_s=now_s, worker=worker.state(now_s)))

    def _take(self, instance_id: str, request: Request) -> None:
        """Let a worker take a sequence, or send it back."""
        if request.failure or request.instance_id != instance_id:
            return
        worker = self.homes.get(instance_id)
        held = None if worker is None else worker.held.get(instance_id)
        if worker is None or held is None or held.state is not InstanceState.READY:
            self.router.again(request, instance_id)
            return
        held.running += 1
        worker.engine.begin(instance_id, request)
        self.router.taken(request)
        self.report(worker)

    def _first_token(self, request: Request) -> None:
        if request.first_token_s is None:
            request.first_token_s = self.agenda.now_s
        request.resume(self.agenda.now_s)

    def _last_token(self, instance_id: str, request: Request) -> None:
        worker = self.homes[instance_id]
        request.ended_s = self.agenda.now_s
        self._open -= 1
        self.turned_idle(worker, worker.held[instance_id])
        self.router.give_back(instance_id, request.arrival.deployment)

    def _tier_changed(self, node_id: str, model: str, tier: Tier, *, is_there: bool) -> None:
        if tier is Tier.SSD:
            nodes = self.on_ssd.setdefault(model, [])
            if is_there:
                nodes.append(node_id)
            else:
                nodes.remove(node_id)
        if self._is_told_tiers:
            self._tell_tier(node_id, model, tier, is_there=is_there)

    def _tell_tier(self, node_id: str, model: str, tier: Tier, *, is_there: bool) -> None:
        self.tell(lambda now_s: facts.TierChanged(now_s, node_id, model, tier, is_there))

    def _fail(self, failure: Failure) -> None:
        for index in failure.nodes:
            store = self.stores[index]
            for worker in list(self.workers.values()):
                if worker.store is store:
                    self._kill(worker)
            store.empty(self.agenda.now_s)
            self.agenda.at(failure.back_s, self._raise_workers, store, int(failure.at_s) + 1)

    def _kill(self, worker: Worker) -> None:
        control = self.setup.control
        worker.is_dead = True
        del self.workers[worker.worker_id]
        was_loading = False
        for instance_id, held in worker.held.items():
            was_loading = was_loading or held.state is InstanceState.LOADING
            if instance_id in worker.engine.decoders:
                for request in worker.engine.remove(instance_id):
                    request.pause(self.agenda.now_s)
                    request.moves += 1
                    self.agenda.later(control.broken_s, self.router.again, request, instance_id)
            del self.homes[instance_id]
            self.loads.lost(instance_id)
        worker.held.clear()
        # A load's broken stream makes the scheduler ask at once; else the registration tells.
        found_s = control.broken_s if was_loading else control.lost_s
        lost = worker.worker_id
        self.agenda.later(
            found_s,
            self._arrive_event,
            lambda now_s: events.WorkerLost(now_s=now_s, worker_id=lost),
        )

    # --- what the scheduler wants ---

    def _start_load(self, order: actions.StartLoad) -> None:
        self.agenda.later(self.setup.control.rpc_s, self.loads.begin, order)

    def _cancel_load(self, order: actions.CancelLoad) -> None:
        self.agenda.later(self.setup.control.rpc_s, self.loads.cancel, order.instance_id)

    def _start_unload(self, order: actions.StartUnload) -> None:
        self.agenda.later(self.setup.control.rpc_s, self.loads.unload, order)

    def _migrate(self, order: facts.Migrate) -> None:
        self.migrations += 1
        self.agenda.later(self.setup.control.rpc_s, self.loads.migrate, order)

    def _preempt(self, order: facts.Preempt) -> None:
        self.preemptions += 1
        self.agenda.later(self.setup.control.rpc_s, self.loads.preempt, order.instance_id)

    def _ignore(self, _: facts.Deed) -> None:
        """Leave progress to clients, and explanations to whoever asks."""

    def _wake_at(self, order: actions.WakeAt) -> None:
        self._wake += 1
        self.agenda.at(max(order.at_s, self.agenda.now_s), self._tick, self._wake)

    def _tick(self, wake: int) -> None:
        if wake == self._wake:
            self.feed(events.Tick(now_s=self.agenda.now_s))
