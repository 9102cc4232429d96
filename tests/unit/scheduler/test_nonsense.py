"""Whatever one worker, store manager or router says, the core goes on deciding for all others."""

from random import Random

import pytest

from services.common.errors import InternalError
from services.common.model import ModelRef, PhaseDuration, StartPhase, StartReport, Tier
from services.common.names import parse_model_name
from services.common.placement import Device, Instance, InstanceState, WorkerState
from services.scheduler import events as on
from services.scheduler.core import decide, new_state
from services.scheduler.events import Event
from services.scheduler.residency import Stored
from services.scheduler.state import State
from tests.unit.scheduler.dialogue import deployment

NAMES = ("alpha", "beta", "gamma")


class Liar:
    """Makes up what peers say: sizes, states, ids and times without rhyme or reason."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)  # noqa: S311 - a game
        self.known: list[str] = ["i1-1", "i1-2", "i9-9"]

    def instance(self, worker_id: str) -> Instance:
        random = self.random
        return Instance(
            instance_id=random.choice(self.known),
            deployment=random.choice((*NAMES, "nothing")),
            model=ModelRef(name=parse_model_name(random.choice(NAMES)), revision="1"),
            worker_id=random.choice((worker_id, "w9")),
            device_id=random.choice(("cpu:0", "cpu:1", "cpu:7")),
            memory_bytes=random.choice((0, 1, 40, 10**15)),
            slots=random.choice((0, 4)),
            state=random.choice(list(InstanceState)),
            running=random.choice((0, 3, 10**6)),
            waiting=random.choice((0, 5)),
            idle_s=random.choice((None, 0.0, 5.0, -100.0, 1e9)),
        )

    def worker(self) -> WorkerState:
        random = self.random
        worker_id = random.choice(("w1", "w2"))
        devices = tuple(
            Device(
                device_id=random.choice(("cpu:0", "cpu:1")),
                memory_bytes=random.choice((0, 30, 100, 10**12)),
                free_bytes=random.choice((0, 10**18)),
            )
            for _ in range(random.randrange(4))
        )
        return WorkerState(
            worker_id=worker_id,
            node_id=random.choice(("n1", "n2")),
            address=random.choice(("", "here:1")),
            devices=devices,
            instances=tuple(self.instance(worker_id) for _ in range(random.randrange(4))),
            draining=random.random() < 0.05,
            sequence=random.randrange(10**6),
        )

    def event(self, state: State, now_s: float) -> Event:
        random = self.random
        instance_id = random.choice([*state.instances, *self.known])
        phases = tuple(
            PhaseDuration(phase=phase, duration_s=random.choice((0.0, -5.0, 1e12)))
            for phase in (StartPhase.LOAD, StartPhase.INIT)
        )
        ref = ModelRef(name=parse_model_name(random.choice(NAMES)), revision="1")
        made: list[Event] = [
            on.WorkerReported(now_s=now_s, worker=self.worker()),
            on.StoreReported(
                now_s=now_s,
                node_id=random.choice(("n1", "n2", "n3")),
                stored=(Stored(ref, random.choice((0, 7, 10**18))), Stored(ref)),
                busy_s=random.choice((0.0, 1e9)),
            ),
            on.StoreChanged(now_s=now_s, node_id="n1", stored=(Stored(ref, 3),), removed=(ref,)),
            on.DemandReported(
                now_s=now_s,
                router_id="router",
                lines=(on.Line("alpha", 10**9), on.Line("alpha", 0), on.Line("nothing", 1)),
            ),
            on.LoadSucceeded(
                now_s=now_s,
                instance_id=instance_id,
                start=StartReport(cold=True, source=Tier.UNSPECIFIED, phases=phases),
            ),
            on.UnloadSucceeded(now_s=now_s, instance_id=instance_id),
            on.UnloadRefused(now_s=now_s, instance_id=instance_id),
            on.LoadFailed(now_s=now_s, instance_id=instance_id, error=InternalError("no")),
            on.AcquireRequested(
                now_s=now_s,
                request_id=f"r{random.randrange(30)}",
                deployment=random.choice((*NAMES, "nothing")),
            ),
            on.AcquireCancelled(now_s=now_s, request_id=f"r{random.randrange(30)}"),
            on.WorkerLost(now_s=now_s, worker_id=random.choice(("w1", "w2"))),
            on.Tick(now_s=now_s),
        ]
        weights = [6, 2, 1, 1, 2, 1, 1, 1, 4, 1, 0.3, 2]
        return random.choices(made, weights)[0]


@pytest.mark.parametrize("seed", range(40))
def test_no_report_ends_the_reign(seed: int) -> None:
    liar, state, now_s = Liar(seed), new_state(epoch=1, now_s=0.0), 0.0
    for name in NAMES:
        put = on.DeploymentPut(now_s=0.0, deployment=deployment(name, 40, max_replicas=3))
        state, _ = decide(state, put)
    for _ in range(250):
        now_s += liar.random.expovariate(2.0)
        state, _ = decide(state, liar.event(state, now_s))


def test_a_worker_that_lies_costs_others_nothing() -> None:
    liar, state, now_s = Liar(1), new_state(epoch=1, now_s=0.0), 0.0
    state, _ = decide(state, on.DeploymentPut(now_s=0.0, deployment=deployment("alpha", 40)))
    for _ in range(50):
        now_s += 0.1
        lie = on.WorkerReported(now_s=now_s, worker=liar.worker())
        state, _ = decide(state, lie)
    for each in tuple(state.workers):
        state, _ = decide(state, on.WorkerLost(now_s=now_s, worker_id=each))
    assert not state.ledger.devices, "a device outlives its worker"
    honest = WorkerState(
        worker_id="honest",
        node_id="n9",
        address="honest:1",
        devices=(Device(device_id="cpu:0", memory_bytes=100, free_bytes=100),),
    )
    state, _ = decide(state, on.WorkerReported(now_s=now_s, worker=honest))
    state, done = decide(
        state, on.AcquireRequested(now_s=now_s, request_id="mine", deployment="alpha")
    )
    assert "honest" in [getattr(each, "worker_id", "") for each in done]
