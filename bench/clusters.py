"""A cluster of any size for `bench.scheduler`: the core's own events, no processes, virtual time.

Nodes have four devices of 80 GiB and one of three speeds of disk; models are of three sizes, each
on the disks of some nodes and in the memory of few; devices are filled with idle instances, as they
are in a cluster that has more models than memory. Everything is drawn from one seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from time import thread_time_ns

from services.common.model import ModelInfo, ModelRef, PhaseDuration, StartPhase, StartReport, Tier
from services.common.names import parse_model_name
from services.common.placement import Device, Instance, InstanceState, WorkerState
from services.scheduler import actions, events
from services.scheduler.core import decide, new_state
from services.scheduler.deployment import Deployment, Spec
from services.scheduler.residency import Stored
from services.scheduler.state import Limits, State

GIB = 2**30
DEVICES, DEVICE_BYTES = 4, 80 * GIB
SIZES = (13 * GIB, 26 * GIB, 60 * GIB)  # 6.7, 13 and 30 thousand million parameters
SHARES = (15, 40, 45)  # so that about three quarters of the models fit at a time
COPIES_ON_SSD = 8  # nodes that have a model on their disk
SPEEDS = (1.5e9, 3e9, 6e9)  # of disks
DRAM_MODELS = 4  # in a node's memory
CREATED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Timed:
    """How long decisions took, by the kind of event."""

    ns: dict[str, list[int]] = field(default_factory=dict)

    def note(self, kind: str, took_ns: int) -> None:
        """Enter one decision."""
        self.ns.setdefault(kind, []).append(took_ns)


class Cluster:
    """Feeds the core with what a cluster of this size would tell it."""

    def __init__(self, nodes: int, models: int, seed: int = 1) -> None:
        self.random = Random(seed)  # noqa: S311 - a benchmark, not a secret
        self.now_s = 1000.0
        self.state: State = new_state(
            epoch=1, now_s=0.0, limits=Limits(learning_s=0.0, waiters_max=1_000_000)
        )
        self.timed: Timed | None = None
        self.models = [self._model(number) for number in range(models)]
        self.nodes = [f"node-{number:05}" for number in range(nodes)]
        self.loads: dict[str, actions.StartLoad] = {}
        self.granted: list[str] = []
        self.starts = 0
        self._speeds = {node: self.random.choice(SPEEDS) for node in self.nodes}
        self._sequence = 1
        self._requests = 0

    # --- building ---

    def deploy(self) -> None:
        """Put all deployments."""
        for model in self.models:
            spec = Spec(keep_alive_s=None, slots=4, context_tokens_max=2048)
            deployment = Deployment(name=model.ref.name, model=model, spec=spec, created_at=CREATED)
            self._feed(events.DeploymentPut(now_s=self.now_s, deployment=deployment))

    def join(self) -> None:
        """Let all workers and store managers tell what they have."""
        on_ssd: dict[str, list[ModelRef]] = {node: [] for node in self.nodes}
        for model in self.models:
            for node in self.random.sample(self.nodes, min(COPIES_ON_SSD, len(self.nodes))):
                on_ssd[node].append(model.ref)
        for node in self.nodes:
            stored = [
                Stored(ref, self._info(ref).weight_bytes if at < DRAM_MODELS else 0)
                for at, ref in enumerate(on_ssd[node])
            ]
            self._feed(events.StoreReported(now_s=self.now_s, node_id=node, stored=tuple(stored)))
            for number in range(DEVICES):
                self._report(node, number, self._idle_instances(node, number))
        self._learn_speeds()

    def _model(self, number: int) -> ModelInfo:
        (size,) = self.random.choices(SIZES, SHARES)
        return ModelInfo(
            ref=ModelRef(name=parse_model_name(f"model-{number:06}"), revision="1"),
            architecture="LlamaForCausalLM",
            dtype="F16",
            weight_bytes=size,
            parameters=size // 2,
            context_tokens_max=2048,
            kv_bytes_per_token=0,
        )

    def _info(self, ref: ModelRef) -> ModelInfo:
        return self.models[int(ref.name.removeprefix("model-"))]

    def _idle_instances(self, node: str, number: int) -> Iterator[Instance]:
        """Fill most devices; every tenth stays half empty."""
        left_bytes = DEVICE_BYTES // (2 if self.random.random() < 0.1 else 1)
        for _ in range(8):
            model = self.random.choice(self.models)
            if model.weight_bytes > left_bytes:
                continue
            left_bytes -= model.weight_bytes
            self._sequence += 1
            yield Instance(
                instance_id=f"i0-{self._sequence}",
                deployment=model.ref.name,
                model=model.ref,
                worker_id=f"{node}-w{number}",
                device_id="gpu:0",
                memory_bytes=model.weight_bytes,
                slots=4,
                state=InstanceState.READY,
                idle_s=self.random.expovariate(1 / 300.0),
            )

    def _report(self, node: str, number: int, instances: Iterator[Instance]) -> None:
        self._sequence += 1
        worker = WorkerState(
            worker_id=f"{node}-w{number}",
            node_id=node,
            address="",
            devices=(Device(device_id="gpu:0", memory_bytes=DEVICE_BYTES, free_bytes=0),),
            instances=tuple(instances),
            sequence=self._sequence,
        )
        self._feed(events.WorkerReported(now_s=self.now_s, worker=worker))

    def _learn_speeds(self) -> None:
        """Let the estimates know every node's disk, as they would after its first loads."""
        for node in self.nodes:
            model = self.random.choice(self.models)
            for _ in range(3):
                self.state.estimates.learn_load(
                    node,
                    Tier.SSD,
                    model.ref,
                    model.weight_bytes,
                    transfer_s=model.weight_bytes / self._speeds[node],
                    init_s=0.5,
                )
            slowness = self.state.estimates.slowness(node, Tier.SSD)
            self.state.ledger.rank(node, slowness, None)

    # --- running ---

    def ask(self) -> str:
        """Let a request come for a model that nobody serves; return the deployment."""
        self.now_s += 1e-3
        while True:
            model = self.random.choice(self.models)
            if not any(True for _ in self.state.instances_of(model.ref.name)):
                break
        self._requests += 1
        self._feed(
            events.AcquireRequested(
                now_s=self.now_s, request_id=f"r{self._requests}", deployment=model.ref.name
            )
        )
        return model.ref.name

    def settle(self) -> None:
        """Let loads succeed and their requests be served, so that all is idle again."""
        for instance_id, order in list(self.loads.items()):
            self.now_s += 1e-3
            del self.loads[instance_id]
            self._feed(
                events.LoadSucceeded(
                    now_s=self.now_s, instance_id=instance_id, start=self._report_of(order)
                )
            )
        for request_id in self.granted:
            instance = self.state.instances.get(self.state.granted.get(request_id, ""))
            if instance is not None:  # its worker said so in a report, left out here
                instance.reported_idle_since_s = self.now_s + 0.001
                self.now_s += 0.5
            self._feed(events.Released(now_s=self.now_s, request_id=request_id))
        self.granted.clear()

    def _report_of(self, order: actions.StartLoad) -> StartReport:
        instance = self.state.instances[order.instance_id]
        expected = instance.expected
        if expected is None:
            return StartReport(cold=True, source=Tier.SSD)
        noise = self.random.lognormvariate(0.0, 0.03)
        estimate = expected.estimate
        spans = (
            (StartPhase.LOAD, (estimate.queue_ms + estimate.transfer_ms) / 1e3 * noise),
            (StartPhase.INIT, estimate.init_ms / 1e3 * noise),
        )
        phases = tuple(PhaseDuration(phase=phase, duration_s=span) for phase, span in spans)
        return StartReport(cold=True, source=expected.tier, phases=phases)

    def _feed(self, event: events.Event) -> None:
        pending: list[events.Event] = [event]
        while pending:
            event = pending.pop(0)
            begun_ns = thread_time_ns()
            self.state, done = decide(self.state, event)
            took_ns = thread_time_ns() - begun_ns
            if self.timed is not None:
                self.timed.note(type(event).__name__, took_ns)
            for action in done:
                match action:
                    case actions.StartLoad():
                        self.loads[action.instance_id] = action
                        self.starts += 1
                    case actions.StartUnload():
                        self.now_s += 1e-3
                        pending.append(
                            events.UnloadSucceeded(now_s=self.now_s, instance_id=action.instance_id)
                        )
                    case actions.Grant():
                        self.granted.append(action.request_id)
                    case _:
                        pass
