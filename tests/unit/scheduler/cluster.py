"""A cluster made of chance: workers that load, refuse, stall, drain and die, and routers that ask.

Everything is drawn from one seed and happens in virtual time, so a failure repeats. Workers are
true to the contract: they keep their budgets, undo cancelled loads, refuse to unload what is busy,
and number their reports, which travel for a while and may overtake one another.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from random import Random

from services.common.errors import (
    BriskError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from services.common.model import StartPhase, StartProgress, StartReport, Tier
from services.common.placement import InstanceState
from services.scheduler import actions as do
from services.scheduler import events as on
from services.scheduler.core import decide, new_state
from services.scheduler.state import Limits, State
from tests.unit.scheduler.audit import audit
from tests.unit.scheduler.dialogue import deployment
from tests.unit.scheduler.sim_worker import SimInstance, SimWorker

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")
SIZES = (10, 25, 40, 60, 90)
TRAVEL_S = 0.3


class Cluster:
    """Feeds the core and does what it wants done."""

    def __init__(self, seed: int, limits: Limits | None = None) -> None:
        self.random = Random(seed)  # noqa: S311 - a game, not a secret
        self.now_s = 0.0
        self.state: State = new_state(epoch=1, now_s=0.0, limits=limits)
        self.workers: dict[str, SimWorker] = {}
        self.loads: set[str] = set()  # load calls that the shell holds open
        self.open: set[str] = set()  # requests without an answer
        self.granted: dict[str, str] = {}
        self.answers: dict[str, int] = {}
        self.routes: dict[str, str] = {}  # deployment by instance
        self.is_calm = False  # nothing goes wrong any more
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._made = 0
        self.hear: Callable[[on.Event, tuple[do.Action, ...]], None] = lambda _event, _done: None

    # --- time ---

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Do `what` in a while."""
        self._made += 1
        heapq.heappush(self._agenda, (self.now_s + delay_s, self._made, what))

    def run(self, until_s: float) -> None:
        """Let time pass."""
        while self._agenda and self._agenda[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self._agenda)
            what()
        self.now_s = until_s

    def feed(self, event: on.Event) -> None:
        """Have the core decide, check it, and do what it wants."""
        self.state, actions = decide(self.state, event)
        self.hear(event, actions)
        audit(self.state)
        for action in actions:
            self._do(action)
        ready = {
            each.instance_id
            for each in self.state.instances.values()
            if each.state is InstanceState.READY
        }
        assert set(self.routes) == ready, "routes are not the ready instances"
        assert set(self.state.waiting_for) == self.open, "a request was forgotten"

    # --- what the core wants ---

    def _do(self, action: do.Action) -> None:
        match action:
            case do.StartLoad():
                self._start_load(action)
            case do.CancelLoad():
                self.loads.discard(action.instance_id)
                self.later(self._soon(), lambda: self._undo(action.instance_id))
            case do.StartUnload():
                self.later(self._soon(), lambda: self._unload(action))
            case do.Grant():
                self._close(action.request_id)
                self.granted[action.request_id] = action.route.instance_id
                assert action.route.instance_id in self.routes, "granted without a route"
                assert all(each.duration_s >= 0.0 for each in action.start.phases)
                self._use_grant(action.request_id, action.route.instance_id)
            case do.Refuse():
                self._close(action.request_id)
            case do.RouteUp():
                assert action.route.instance_id not in self.routes
                self.routes[action.route.instance_id] = action.route.deployment
            case do.RouteDown():
                del self.routes[action.instance_id]
            case do.TellProgress():
                assert set(action.request_ids) <= self.open
                assert action.request_ids
            case do.WakeAt():
                delay_s = max(0.0, action.at_s - self.now_s)
                self.later(delay_s, lambda: self.feed(on.Tick(now_s=self.now_s)))

    def _close(self, request_id: str) -> None:
        assert request_id in self.open, "answered twice, or though it was cancelled"
        self.open.remove(request_id)
        self.answers[request_id] = self.answers.get(request_id, 0) + 1

    def _start_load(self, order: do.StartLoad) -> None:
        ours = [
            each for each in self.state.instances.values() if each.deployment == order.deployment
        ]
        loading = [each for each in ours if each.state is InstanceState.LOADING]
        assert len(loading) <= 1, "two loads of one deployment"
        self.loads.add(order.instance_id)
        self.later(self._soon(), lambda: self._begin_load(order))

    def _begin_load(self, order: do.StartLoad) -> None:
        worker = self.workers.get(order.worker_id)
        if order.instance_id not in self.loads:
            return
        if worker is None or worker.is_dead or worker.draining:
            self._load_ends(order.instance_id, UnavailableError("away"))
            return
        room = worker.devices[order.device_id] - worker.used(order.device_id)
        assert order.memory_bytes <= room, "ordered to load more than fits"
        worker.instances[order.instance_id] = SimInstance(
            instance_id=order.instance_id,
            deployment=order.deployment,
            model=order.model,
            device_id=order.device_id,
            memory_bytes=order.memory_bytes,
            slots=order.slots,
            state=InstanceState.LOADING,
        )
        self._report(worker)
        self.later(self.random.uniform(0.01, 1.0), lambda: self._progress(order.instance_id))
        self.later(self.random.uniform(0.01, 3.0), lambda: self._finish_load(worker, order))

    def _progress(self, instance_id: str) -> None:
        if instance_id in self.loads:
            progress = StartProgress(phase=StartPhase.LOAD, bytes_done=1, bytes_total=2)
            self.feed(
                on.LoadProgressed(now_s=self.now_s, instance_id=instance_id, progress=progress)
            )

    def _finish_load(self, worker: SimWorker, order: do.StartLoad) -> None:
        instance = worker.instances.get(order.instance_id)
        if instance is None or worker.is_dead:
            return
        if not self.is_calm and self.random.random() < 0.2:
            del worker.instances[order.instance_id]
            self._load_ends(order.instance_id, self._some_error())
            return
        instance.state, instance.idle_since_s = InstanceState.READY, self.now_s
        self._report(worker)
        report = StartReport(cold=True, source=Tier.SSD)

        def succeed() -> None:
            if order.instance_id in self.loads:
                self.loads.remove(order.instance_id)
                self.feed(
                    on.LoadSucceeded(now_s=self.now_s, instance_id=order.instance_id, start=report)
                )

        self.later(self._soon(), succeed)

    def _load_ends(self, instance_id: str, error: BriskError) -> None:
        def fail() -> None:
            if instance_id in self.loads:
                self.loads.remove(instance_id)
                self.feed(on.LoadFailed(now_s=self.now_s, instance_id=instance_id, error=error))

        self.later(self._soon(), fail)

    def _some_error(self) -> BriskError:
        return self.random.choice(
            [UnavailableError("away"), InternalError("broken"), InvalidArgumentError("bad")]
        )

    def _undo(self, instance_id: str) -> None:
        for worker in self.workers.values():
            instance = worker.instances.get(instance_id)
            if instance is not None and instance.state is InstanceState.LOADING:
                instance.state = InstanceState.LEAVING
                self.later(self._soon(), partial(self._free, worker, instance_id))

    def _free(self, worker: SimWorker, instance_id: str) -> None:
        worker.instances.pop(instance_id, None)
        self._report(worker)

    def _unload(self, order: do.StartUnload) -> None:
        worker = self.workers.get(order.worker_id)
        instance = None if worker is None else worker.instances.get(order.instance_id)
        if worker is None or worker.is_dead or (not self.is_calm and self.random.random() < 0.1):
            self._answer(
                on.UnloadFailed(
                    now_s=0, instance_id=order.instance_id, error=UnavailableError("away")
                )
            )
        elif instance is None:
            self._answer(on.UnloadSucceeded(now_s=0, instance_id=order.instance_id))
        elif order.only_if_idle and instance.running:
            self._answer(on.UnloadRefused(now_s=0, instance_id=order.instance_id))
        else:
            instance.state = InstanceState.LEAVING
            self._report(worker)
            self._drain_instance(worker, order.instance_id)

    def _drain_instance(self, worker: SimWorker, instance_id: str) -> None:
        instance = worker.instances.get(instance_id)
        if worker.is_dead:
            return
        if instance is not None and instance.running:
            self.later(0.2, lambda: self._drain_instance(worker, instance_id))
            return
        self._free(worker, instance_id)
        self._answer(on.UnloadSucceeded(now_s=0, instance_id=instance_id))

    def _answer(self, event: on.UnloadSucceeded | on.UnloadRefused | on.UnloadFailed) -> None:
        def arrive() -> None:
            kind = type(event)
            if isinstance(event, on.UnloadFailed):
                self.feed(
                    on.UnloadFailed(
                        now_s=self.now_s, instance_id=event.instance_id, error=event.error
                    )
                )
            else:
                self.feed(kind(now_s=self.now_s, instance_id=event.instance_id))  # type: ignore[call-arg] # the third kind is handled above

        self.later(self._soon(), arrive)

    def _use_grant(self, request_id: str, instance_id: str) -> None:
        def begin() -> None:
            for worker in self.workers.values():
                instance = worker.instances.get(instance_id)
                if instance is not None and instance.state is InstanceState.READY:
                    self._serve(worker, instance)
            self.feed(on.Released(now_s=self.now_s, request_id=request_id))

        if self.is_calm or self.random.random() < 0.9:  # else the router died
            self.later(self._soon(), begin)

    def _serve(self, worker: SimWorker, instance: SimInstance) -> None:
        def end() -> None:
            instance.running -= 1
            instance.idle_since_s = self.now_s
            self._report(worker)

        instance.running += 1
        self._report(worker)
        self.later(self.random.uniform(0.01, 4.0), end)

    # --- what happens by itself ---

    def _soon(self) -> float:
        return self.random.uniform(0.0, TRAVEL_S)

    def _report(self, worker: SimWorker) -> None:
        if worker.is_dead or worker.stalled:
            return
        said = worker.state(self.now_s)
        self.later(
            self._soon(), lambda: self.feed(on.WorkerReported(now_s=self.now_s, worker=said))
        )

    def beat(self, worker: SimWorker) -> None:
        """Report once a second for as long as the worker lives."""
        if not worker.is_dead:
            self._report(worker)
            self.later(1.0, lambda: self.beat(worker))

    def add_worker(self) -> None:
        """Start a worker with one or two devices."""
        worker_id = f"w{len(self.workers) + 1}"
        count = self.random.randint(1, 2)
        worker = SimWorker(
            worker_id=worker_id,
            devices={f"cpu:{n}": self.random.choice((60, 100, 150)) for n in range(count)},
        )
        self.workers[worker_id] = worker
        self.beat(worker)

    def step(self) -> None:
        """Let something happen."""
        self._made += 1
        alive = [each for each in self.workers.values() if not each.is_dead]
        name = self.random.choice(NAMES)
        match self.random.choices(range(9), weights=(30, 4, 1, 6, 2, 1, 1, 2, 2))[0]:
            case 0:
                self.ask(f"r{self._made}", name)
            case 1:
                self.put(name)
            case 2:
                self.feed(on.DeploymentRemoved(now_s=self.now_s, name=name))
            case 3 if self.open:
                self.cancel(self.random.choice(sorted(self.open)))
            case 4 if len(alive) < 4:
                self.add_worker()
            case 5 if len(alive) > 1:
                self.kill(self.random.choice(alive))
            case 6 if len(alive) > 1:
                self.random.choice(alive).draining = True
            case 7 if alive:
                self.stall(self.random.choice(alive))
            case 8 if self.granted:
                request_id, instance_id = self.random.choice(sorted(self.granted.items()))
                if request_id not in self.open:
                    self.ask(request_id, name, excluded=frozenset({instance_id}))
            case _:
                pass

    def put(self, name: str) -> None:
        """Deploy something under `name`."""
        size = self.random.choice(SIZES)
        keep_alive_s = self.random.choice((0.0, 2.0, 20.0, None))
        event = on.DeploymentPut(
            now_s=self.now_s, deployment=deployment(name, size, keep_alive_s=keep_alive_s)
        )
        self.feed(event)

    def ask(self, request_id: str, name: str, excluded: frozenset[str] = frozenset()) -> None:
        """Acquire an instance."""
        self.open.add(request_id)
        self.feed(
            on.AcquireRequested(
                now_s=self.now_s, request_id=request_id, deployment=name, excluded=excluded
            )
        )

    def cancel(self, request_id: str) -> None:
        """Give a request up."""
        self.open.remove(request_id)
        self.feed(on.AcquireCancelled(now_s=self.now_s, request_id=request_id))

    def kill(self, worker: SimWorker) -> None:
        """End a worker; the cluster learns it by its silence or from a failed call."""
        worker.is_dead = True
        worker.instances.clear()
        if self.random.random() < 0.5:
            self.later(
                self._soon(),
                lambda: self.feed(on.WorkerLost(now_s=self.now_s, worker_id=worker.worker_id)),
            )

    def stall(self, worker: SimWorker) -> None:
        """Let a worker be silent for a while, perhaps for too long."""

        def wake() -> None:
            worker.stalled = False
            self._report(worker)

        worker.stalled = True
        self.later(self.random.uniform(0.5, 7.0), wake)

    def calm_down(self) -> None:
        """From now on nothing goes wrong, and there is a worker large enough for anything."""
        self.is_calm = True
        for worker in self.workers.values():
            worker.stalled = False
        worker = SimWorker(worker_id="w-last", devices={"cpu:0": 600})
        self.workers[worker.worker_id] = worker
        self.beat(worker)
