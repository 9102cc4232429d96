"""Five hundred models at once with room for fifty: all are served, each start once, no livelock."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count, pairwise
from random import Random

from services.common.model import PhaseDuration, StartPhase, StartReport, Tier
from services.common.placement import InstanceState
from services.scheduler import actions as do
from services.scheduler import events as on
from services.scheduler.core import decide, new_state
from services.scheduler.state import Limits
from tests.unit.scheduler.dialogue import PRIORS, deployment
from tests.unit.scheduler.sim_worker import SimInstance, SimWorker

MODELS, WORKERS, ROOMS = 500, 5, 10
LOAD_S, SERVE_S, REST_S = 1.0, 0.5, 10.0


class Crowd:
    """Workers that keep their promises; every request is served for a while once granted."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)  # noqa: S311 - a game
        self.now_s = 0.0
        self.state = new_state(epoch=1, now_s=0.0, limits=Limits(rest_s=REST_S), priors=PRIORS)
        self.workers = {
            f"w{n}": SimWorker(worker_id=f"w{n}", devices={"cpu:0": 10 * ROOMS})
            for n in range(WORKERS)
        }
        self.loads: list[str] = []  # deployments, in the order of their loads
        self.evictions: dict[str, list[float]] = {}
        self.served: dict[str, float] = {}
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now_s + delay_s, next(self._order), what))

    def run(self, until_s: float, is_done: Callable[[], bool]) -> None:
        while self._agenda and self._agenda[0][0] <= until_s and not is_done():
            self.now_s, _, what = heapq.heappop(self._agenda)
            what()

    def feed(self, event: on.Event) -> None:
        self.state, actions = decide(self.state, event)
        for action in actions:
            self._do(action)

    def begin(self) -> None:
        for worker in self.workers.values():
            self._beat(worker)
        self.feed(on.WorkersLearned(now_s=0.0))
        for number in range(MODELS):
            put = on.DeploymentPut(now_s=0.0, deployment=deployment(f"m{number}", 10))
            self.feed(put)

    def ask(self, request_id: str, name: str) -> None:
        self.feed(on.AcquireRequested(now_s=self.now_s, request_id=request_id, deployment=name))

    def _beat(self, worker: SimWorker) -> None:
        self._report(worker)
        self.later(1.0, lambda: self._beat(worker))

    def _report(self, worker: SimWorker) -> None:
        self.feed(on.WorkerReported(now_s=self.now_s, worker=worker.state(self.now_s)))

    def _do(self, action: do.Action) -> None:
        match action:
            case do.StartLoad():
                self._load(action)
            case do.StartUnload():
                self._unload(action)
            case do.Grant():
                self.served[action.request_id] = self.now_s
                self._serve(action.request_id, action.route.worker_id, action.route.instance_id)
            case do.Refuse():
                raise AssertionError(f"refused: {action.error}")
            case do.WakeAt():
                delay_s = max(0.0, action.at_s - self.now_s)
                self.later(delay_s, lambda: self.feed(on.Tick(now_s=self.now_s)))
            case _:
                pass

    def _load(self, order: do.StartLoad) -> None:
        worker = self.workers[order.worker_id]
        assert worker.used("cpu:0") + order.memory_bytes <= 10 * ROOMS, "more than fits"
        self.loads.append(order.deployment)
        held = worker.instances[order.instance_id] = SimInstance(
            instance_id=order.instance_id,
            deployment=order.deployment,
            model=order.model,
            device_id=order.device_id,
            memory_bytes=order.memory_bytes,
            slots=order.slots,
            state=InstanceState.LOADING,
        )

        def finish() -> None:
            held.state, held.idle_since_s = InstanceState.READY, self.now_s
            phases = (PhaseDuration(phase=StartPhase.LOAD, duration_s=LOAD_S),)
            report = StartReport(cold=True, source=Tier.SSD, phases=phases)
            self.feed(
                on.LoadSucceeded(now_s=self.now_s, instance_id=order.instance_id, start=report)
            )

        self.later(LOAD_S * self.random.uniform(0.9, 1.1), finish)

    def _unload(self, order: do.StartUnload) -> None:
        worker = self.workers[order.worker_id]
        held = worker.instances[order.instance_id]

        def finish() -> None:
            if held.running:
                self.feed(on.UnloadRefused(now_s=self.now_s, instance_id=order.instance_id))
                return
            del worker.instances[order.instance_id]
            self.evictions.setdefault(held.deployment, []).append(self.now_s)
            self.feed(on.UnloadSucceeded(now_s=self.now_s, instance_id=order.instance_id))

        self.later(0.02, finish)

    def _serve(self, request_id: str, worker_id: str, instance_id: str) -> None:
        worker = self.workers[worker_id]
        held = worker.instances[instance_id]
        held.running += 1

        def finish() -> None:
            held.running -= 1
            held.idle_since_s = self.now_s
            self.feed(on.Released(now_s=self.now_s, request_id=request_id))
            self._report(worker)

        self.later(SERVE_S * self.random.uniform(0.5, 1.5), finish)


def test_all_are_served_and_each_model_is_loaded_once() -> None:
    crowd = Crowd(1)
    crowd.begin()
    for number in range(MODELS):
        crowd.ask(f"r{number}", f"m{number}")
    crowd.run(600.0, lambda: len(crowd.served) == MODELS)
    assert len(crowd.served) == MODELS
    assert sorted(crowd.loads) == sorted(f"m{number}" for number in range(MODELS))
    # Fifty rooms, each for a load and a service at a time: no room stands empty for long.
    ideal_s = MODELS / (WORKERS * ROOMS) * (LOAD_S + SERVE_S)
    assert crowd.now_s < 2.0 * ideal_s, crowd.now_s


def test_nobody_is_evicted_twice_within_ten_seconds_though_all_come_again_and_again() -> None:
    crowd = Crowd(2)
    crowd.begin()
    asked = count()
    for _ in range(2):
        for number in range(MODELS):
            crowd.ask(f"r{next(asked)}", f"m{number}")
        due = 0.5 * MODELS + len(crowd.served)
        crowd.run(crowd.now_s + 600.0, lambda due=due: len(crowd.served) >= due)  # type: ignore[misc] # bound now
    crowd.run(crowd.now_s + 900.0, lambda: len(crowd.served) == 2 * MODELS)
    assert len(crowd.served) == 2 * MODELS
    for name, times in crowd.evictions.items():
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert all(gap >= REST_S for gap in gaps), (name, gaps)
