"""Dialogues with the core: what happens above the line, what it wants done below.

    1.0 acquire r1 alpha        time, event, details
    ----
    tell r1: placement          the actions, in order
    load i1-1 alpha@1 on w1/cpu:0 40 bytes

Blocks are separated by blank lines, `#` begins a comment. `wait` lets the core be woken as often
as it asked to be. Rewrite what is below the lines with `python -m tests.unit.scheduler.dialogue
FILE...` and read the difference before you keep it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.common import errors
from services.common.errors import BriskError, Reason
from services.common.model import (
    ModelInfo,
    ModelRef,
    PhaseDuration,
    StartPhase,
    StartProgress,
    StartReport,
    Tier,
)
from services.common.names import parse_model_name
from services.common.placement import Device, Instance, InstanceState, WorkerState
from services.scheduler import actions as do
from services.scheduler import events as on
from services.scheduler.core import decide, new_state
from services.scheduler.deployment import Deployment, Spec
from services.scheduler.estimates import Priors
from services.scheduler.residency import Stored
from services.scheduler.state import Limits, State
from tests.unit.scheduler.audit import audit
from tests.unit.scheduler.shown import shown

LINE = "----"
# Models are some tens of bytes here: a second for ten bytes from SSD, a tenth of that from DRAM.
PRIORS = Priors(
    dram_bytes_per_s=100.0,
    ssd_bytes_per_s=10.0,
    peer_bytes_per_s=5.0,
    remote_bytes_per_s=1.0,
    overhead_s=0.001,
    init_s=0.5,
    unload_s=0.1,
    busy_s=5.0,
)
CREATED = datetime(2026, 1, 1, tzinfo=UTC)
ERRORS: dict[str, BriskError] = {
    "invalid": errors.InvalidArgumentError("no such architecture", reason=Reason.INVALID_MODEL),
    "damaged": errors.DataLossError("chunk 3 is damaged"),
    "away": errors.UnavailableError("call failed"),
    "leaving": errors.UnavailableError(
        "worker leaves", reason=Reason.SHUTTING_DOWN, retry_after_s=0.5
    ),
    "storeless": errors.UnavailableError("no store", reason=Reason.STORE_UNREACHABLE),
    "full": errors.ResourceExhaustedError("device full", reason=Reason.INSUFFICIENT_MEMORY),
    "broken": errors.InternalError("it broke", reason=Reason.ENGINE_FAILED),
    "stale": errors.FailedPreconditionError("a newer leader", reason=Reason.STALE_EPOCH),
    "late": errors.DeadlineError("load took too long"),
}


def deployment(
    name: str,
    weight_bytes: int,
    *,
    revision: str = "1",
    slots: int = 4,
    keep_alive_s: float | None = 300.0,
    **more: Any,
) -> Deployment:
    """Return a deployment whose instances take `weight_bytes`."""
    model = ModelInfo(
        ref=ModelRef(name=parse_model_name(name), revision=revision),
        architecture="LlamaForCausalLM",
        dtype="F32",
        weight_bytes=weight_bytes,
        parameters=weight_bytes // 4,
        context_tokens_max=128,
        kv_bytes_per_token=0,
    )
    spec = Spec(keep_alive_s=keep_alive_s, slots=slots, context_tokens_max=128, **more)
    return Deployment(name=model.ref.name, model=model, spec=spec, created_at=CREATED)


@dataclass(slots=True)
class Dialogue:
    """One conversation from an empty state on."""

    state: State = field(default_factory=lambda: new_state(epoch=1, now_s=0.0, priors=PRIORS))
    instances: dict[str, Instance] = field(default_factory=dict)  # as their loads were ordered
    workers: dict[str, WorkerState] = field(default_factory=dict)
    wake_s: float | None = None
    is_explaining: bool = False  # whether choices are shown with their reasons
    hear: Callable[[on.Event, tuple[do.Action, ...]], None] = lambda _event, _actions: None

    def answer(self, line: str) -> list[str]:
        """Return what the core wants done about the event in `line`."""
        time, kind, *rest = line.split()
        now_s = float(time)
        if kind == "begin":
            limits = {key: float(value) for key, value in (each.split("=") for each in rest)}
            self.state = new_state(
                epoch=1,
                now_s=now_s,
                priors=PRIORS,
                limits=Limits(
                    **{  # type: ignore[arg-type] # the dialogue names float fields and counts
                        key: int(value) if key.endswith("_max") or key == "window" else value
                        for key, value in limits.items()
                    }
                ),
            )
            return []
        if kind == "explain":
            self.is_explaining = True
            return []
        if kind == "given":
            self._give(rest)
            return []
        if kind == "wait":
            return self._wait(now_s, float(rest[0]))
        handle = getattr(self, "_on_" + kind.replace("-", "_"))
        return self._decide(handle(now_s, rest))

    def _decide(self, event: on.Event) -> list[str]:
        self.state, actions = decide(self.state, event)
        audit(self.state)
        self.hear(event, actions)
        lines = []
        for action in actions:
            match action:
                case do.WakeAt():
                    self.wake_s = action.at_s
                case do.StartLoad():
                    model = f"{action.deployment}@{action.model.revision}"
                    place = f"{action.worker_id}/{action.device_id}"
                    size = action.memory_bytes
                    self._made(action.instance_id, model, place, size, action.slots)
            if (line := shown(action, explains=self.is_explaining)) is not None:
                lines.append(line)
        return lines

    def _wait(self, now_s: float, until_s: float) -> list[str]:
        lines = []
        while self.wake_s is not None and self.wake_s <= until_s:
            now_s, self.wake_s = max(now_s, self.wake_s), None
            lines += [f"at {now_s:g} {line}" for line in self._decide(on.Tick(now_s=now_s))]
        return lines

    def _give(self, words: list[str]) -> None:
        """Parse `given i9-1 alpha@1 w1/cpu:0 40`: an instance of another leader."""
        instance_id, model, place, size = words
        self._made(instance_id, model, place, int(size))

    def _made(self, instance_id: str, model: str, place: str, size: int, slots: int = 4) -> None:
        name, _, revision = model.rpartition("@")
        worker_id, _, device_id = place.partition("/")
        self.instances[instance_id] = Instance(
            instance_id=instance_id,
            deployment=name,
            model=ModelRef(name=parse_model_name(name), revision=revision),
            worker_id=worker_id,
            device_id=device_id,
            memory_bytes=size,
            slots=slots,
            state=InstanceState.READY,
        )

    # --- events ---

    def _on_put(self, now_s: float, words: list[str]) -> on.Event:
        """Parse `put alpha 40 rev=2 slots=8 keep_alive=10`."""
        name, size, *options = words
        given = dict(each.split("=") for each in options)
        keep_alive = given.get("keep_alive", "300")
        return on.DeploymentPut(
            now_s=now_s,
            deployment=deployment(
                name,
                int(size),
                revision=given.get("rev", "1"),
                slots=int(given.get("slots", "4")),
                keep_alive_s=_keep_alive_s(keep_alive),
                learns_keep_alive=keep_alive == "learned",
                **{key: int(value) for key, value in given.items() if key in _COUNTS},
            ),
        )

    def _on_remove(self, now_s: float, words: list[str]) -> on.Event:
        return on.DeploymentRemoved(now_s=now_s, name=words[0])

    def _on_learned(self, now_s: float, words: list[str]) -> on.Event:
        return on.WorkersLearned(now_s=now_s)

    def _on_worker(self, now_s: float, words: list[str]) -> on.Event:
        """Parse `worker w1 cpu:0=100 draining seq=7 | i1-1 idle 2 | i1-2 busy 1+0`."""
        head, *told = [part.split() for part in " ".join(words).split("|")]
        worker_id, *options = head
        before = self.workers.get(worker_id)
        sequence = 1 if before is None else before.sequence + 1
        devices = () if before is None else before.devices
        draining = False
        for option in options:
            key, _, value = option.partition("=")
            match key:
                case "draining":
                    draining = True
                case "seq":
                    sequence = int(value)
                case _:
                    known = tuple(each for each in devices if each.device_id != key)
                    device = Device(device_id=key, memory_bytes=int(value), free_bytes=0)
                    devices = (*known, device)
        worker = WorkerState(
            worker_id=worker_id,
            node_id="n" + worker_id[1:],
            address=f"{worker_id}:1",
            devices=devices,
            instances=tuple(self._told(each) for each in told),
            draining=draining,
            sequence=sequence,
        )
        self.workers[worker_id] = worker
        return on.WorkerReported(now_s=now_s, worker=worker)

    def _told(self, words: list[str]) -> Instance:
        instance_id, how, *rest = words
        made = self.instances[instance_id]
        state, running, waiting, idle_s = InstanceState.READY, 0, 0, None
        match how:
            case "idle":
                idle_s = float(rest[0]) if rest else 0.0
            case "busy":
                running, waiting = (int(each) for each in (rest or ["1+0"])[0].split("+"))
            case _:
                state = InstanceState(how)
        return Instance(
            instance_id=instance_id,
            deployment=made.deployment,
            model=made.model,
            worker_id=made.worker_id,
            device_id=made.device_id,
            memory_bytes=made.memory_bytes,
            slots=made.slots,
            state=state,
            running=running,
            waiting=waiting,
            idle_s=idle_s,
        )

    def _on_store(self, now_s: float, words: list[str]) -> on.Event:
        """Parse `store n1 busy=2 alpha@1=40 beta@1`: 40 bytes of alpha are in DRAM."""
        node_id, *told = words
        busy_s, stored = 0.0, []
        for each in told:
            key, _, value = each.partition("=")
            if key == "busy":
                busy_s = float(value)
                continue
            name, _, revision = key.partition("@")
            ref = ModelRef(name=parse_model_name(name), revision=revision)
            stored.append(Stored(ref, int(value or "0")))
        return on.StoreReported(now_s=now_s, node_id=node_id, stored=tuple(stored), busy_s=busy_s)

    def _on_store_lost(self, now_s: float, words: list[str]) -> on.Event:
        return on.StoreLost(now_s=now_s, node_id=words[0])

    def _on_lost(self, now_s: float, words: list[str]) -> on.Event:
        return on.WorkerLost(now_s=now_s, worker_id=words[0])

    def _on_acquire(self, now_s: float, words: list[str]) -> on.Event:
        """Parse `acquire r1 alpha deadline=20 not i1-1 i1-2`."""
        request_id, name, *rest = words
        deadline_s = math.inf
        if rest and rest[0].startswith("deadline="):
            deadline_s = float(rest.pop(0).removeprefix("deadline="))
        return on.AcquireRequested(
            now_s=now_s,
            request_id=request_id,
            deployment=name,
            excluded=frozenset(rest[1:]),
            deadline_s=deadline_s,
        )

    def _on_lines(self, now_s: float, words: list[str]) -> on.Event:
        """Parse `lines router-1 alpha=3 beta=1`."""
        router_id, *told = words
        lines = (each.split("=") for each in told)
        return on.DemandReported(
            now_s=now_s,
            router_id=router_id,
            lines=tuple(on.Line(name, int(waiting)) for name, waiting in lines),
        )

    def _on_cancel(self, now_s: float, words: list[str]) -> on.Event:
        return on.AcquireCancelled(now_s=now_s, request_id=words[0])

    def _on_release(self, now_s: float, words: list[str]) -> on.Event:
        return on.Released(now_s=now_s, request_id=words[0])

    def _on_progress(self, now_s: float, words: list[str]) -> on.Event:
        """Parse `progress i1-1 load 10/40`."""
        instance_id, phase, amount = words
        done, total = amount.split("/")
        progress = StartProgress(
            phase=StartPhase(phase), bytes_done=int(done), bytes_total=int(total), source=Tier.SSD
        )
        return on.LoadProgressed(now_s=now_s, instance_id=instance_id, progress=progress)

    def _on_loaded(self, now_s: float, words: list[str]) -> on.Event:
        """Parse `loaded i1-1 from=dram fetch=0.5 load=1 init=0.25`."""
        instance_id, *told = words
        source = Tier.SSD
        if told and told[0].startswith("from="):
            source = Tier(told.pop(0).removeprefix("from="))
        phases = tuple(
            PhaseDuration(phase=StartPhase(key), duration_s=float(value))
            for key, value in (each.split("=") for each in told)
        )
        report = StartReport(cold=True, source=source, phases=phases)
        return on.LoadSucceeded(now_s=now_s, instance_id=instance_id, start=report)

    def _on_failed(self, now_s: float, words: list[str]) -> on.Event:
        return on.LoadFailed(now_s=now_s, instance_id=words[0], error=ERRORS[words[1]])

    def _on_unloaded(self, now_s: float, words: list[str]) -> on.Event:
        return on.UnloadSucceeded(now_s=now_s, instance_id=words[0])

    def _on_unload_refused(self, now_s: float, words: list[str]) -> on.Event:
        return on.UnloadRefused(now_s=now_s, instance_id=words[0])

    def _on_unload_failed(self, now_s: float, words: list[str]) -> on.Event:
        return on.UnloadFailed(now_s=now_s, instance_id=words[0], error=ERRORS["away"])

    def _on_tick(self, now_s: float, words: list[str]) -> on.Event:
        return on.Tick(now_s=now_s)


_COUNTS = ("priority", "min_replicas", "max_replicas", "target_concurrency", "max_queue")


def _keep_alive_s(given: str) -> float | None:
    if given == "learned":
        return 300.0
    return None if given == "ever" else float(given)


def blocks(text: str) -> list[tuple[list[str], list[str], list[str]]]:
    """Return the blocks of a file: comments, events and expected actions of each."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        comments = [line for line in lines if line.startswith("#")]
        rest = [line for line in lines if not line.startswith("#")]
        at = rest.index(LINE) if LINE in rest else len(rest)
        found.append((comments, rest[:at], rest[at + 1 :]))
    return found


def run(text: str) -> list[tuple[list[str], list[str], list[str], list[str]]]:
    """Play a file; return each block with what was really answered."""
    dialogue = Dialogue()
    played = []
    for comments, told, expected in blocks(text):
        answered = [line for each in told for line in dialogue.answer(each)]
        played.append((comments, told, expected, answered))
    return played


def rewrite(path: Path) -> None:
    """Replace what a file expects with what is answered."""
    parts = []
    for comments, told, _, answered in run(path.read_text(encoding="utf-8")):
        lines = [*comments, *told, *([LINE] if told else []), *answered]
        parts.append("\n".join(lines))
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rewrite(Path(name))
