"""The scheduler's ports without processes: workers, stores, a registry and durable records."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field

from services.common.errors import (
    BriskError,
    FailedPreconditionError,
    Reason,
    UnavailableError,
)
from services.common.model import (
    ModelInfo,
    ModelRef,
    StartPhase,
    StartProgress,
    StartReport,
    Tier,
)
from services.common.names import parse_model_name
from services.common.placement import Device, Instance, InstanceState, WorkerState
from services.scheduler.actions import StartLoad, StartUnload
from services.scheduler.deployments import MARK
from services.scheduler.ports import ImportProgress, Peer, StoreContents
from services.scheduler.residency import Stored

HALF = StartProgress(phase=StartPhase.LOAD, bytes_done=1, bytes_total=2)
LOADED = StartReport(cold=True, source=Tier.SSD)


def model(name: str, revision: str = "1") -> ModelInfo:
    """Return what a store knows about a small model."""
    return ModelInfo(
        ref=ModelRef(name=parse_model_name(name), revision=revision),
        architecture="LlamaForCausalLM",
        dtype="F32",
        weight_bytes=40,
        parameters=10,
        context_tokens_max=128,
        kv_bytes_per_token=0,
    )


@dataclass(slots=True)
class OneWorker:
    """`ports.Workers` with a single worker, "w1" at "w1:1", whose loads tests hold and fail."""

    memory_bytes: int = 100
    held: dict[str, StartLoad] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    load_errors: deque[BriskError] = field(default_factory=deque)
    unload_errors: deque[BriskError] = field(default_factory=deque)
    check_error: BriskError | None = None
    describe_error: BriskError | None = None
    is_gone: bool = False
    ends_without_result: bool = False
    may_load: asyncio.Event = field(default_factory=asyncio.Event)
    may_check: asyncio.Event = field(default_factory=asyncio.Event)
    sequence: int = 0

    def __post_init__(self) -> None:
        self.may_check.set()

    async def load(
        self, order: StartLoad, epoch: int
    ) -> AsyncGenerator[StartProgress | StartReport]:
        """Load, held half-way until `may_load` is set."""
        self.calls.append(f"load {order.instance_id} epoch {epoch}")
        if self.load_errors:
            raise self.load_errors.popleft()
        self.held[order.instance_id] = order
        is_loaded = False
        try:
            yield HALF
            await self.may_load.wait()
            is_loaded = True
        finally:
            if not is_loaded:
                self.calls.append(f"undone {order.instance_id}")
                del self.held[order.instance_id]
        if not self.ends_without_result:
            yield LOADED

    async def unload(self, order: StartUnload, epoch: int) -> None:
        """Unload at once."""
        how = " if idle" if order.only_if_idle else ""
        self.calls.append(f"unload {order.instance_id}{how} epoch {epoch}")
        if self.unload_errors:
            raise self.unload_errors.popleft()
        self.held.pop(order.instance_id, None)

    async def describe(self, address: str) -> WorkerState:
        """Tell the state, unless gone."""
        self.calls.append("describe")
        if self.is_gone:
            raise UnavailableError("call failed")
        if self.describe_error is not None:
            raise self.describe_error
        return self.state()

    def state(self) -> WorkerState:
        """Return what the worker says about itself."""
        self.sequence += 1
        return WorkerState(
            worker_id="w1",
            node_id="n1",
            address="w1:1",
            devices=(Device(device_id="cpu:0", memory_bytes=self.memory_bytes, free_bytes=0),),
            instances=tuple(
                Instance(
                    instance_id=order.instance_id,
                    deployment=order.deployment,
                    model=order.model,
                    worker_id="w1",
                    device_id=order.device_id,
                    memory_bytes=order.memory_bytes,
                    slots=order.slots,
                    state=InstanceState.READY,
                    idle_s=0.0,
                )
                for order in self.held.values()
            ),
            sequence=self.sequence,
        )

    async def check(self, address: str, ref: ModelRef) -> None:
        """Give the verdict that the test has set."""
        self.calls.append(f"check {ref.name}")
        await self.may_check.wait()
        if self.check_error is not None:
            raise self.check_error


@dataclass(slots=True)
class Registered:
    """`ports.Peers`: two store managers, and workers as tests set them."""

    nodes: tuple[Peer, ...] = (
        Peer(service_id="s1", node_id="n1", address="n1:1"),
        Peer(service_id="s2", node_id="n2", address="n2:1"),
    )
    sets: asyncio.Queue[tuple[Peer, ...]] = field(default_factory=asyncio.Queue)
    error: BriskError | None = None

    async def stores(self) -> tuple[Peer, ...]:
        """Return the store managers."""
        if self.error is not None:
            raise self.error
        return self.nodes

    async def watch_workers(self) -> AsyncGenerator[tuple[Peer, ...]]:
        """Yield the sets of workers that tests put in."""
        while True:
            yield await self.sets.get()


WORKER = Peer(service_id="w1", node_id="n1", address="w1:1")


@dataclass(slots=True)
class TwoStores:
    """`ports.Stores` at "n1:1" and "n2:1"."""

    held: dict[str, list[ModelInfo]] = field(default_factory=lambda: {"n1:1": [], "n2:1": []})
    errors: dict[str, BriskError] = field(default_factory=dict)  # of imports, by address
    delete_errors: dict[str, deque[BriskError]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    may_finish: asyncio.Event = field(default_factory=asyncio.Event)
    held_back: set[str] = field(default_factory=set)  # addresses whose imports wait for it
    ends_without_result: bool = False
    publishes_late: bool = False  # what was cancelled is there a moment later
    models_errors: dict[str, deque[BriskError | None]] = field(default_factory=dict)
    contents_errors: dict[str, BriskError] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)  # imports, by their folders
    kept_as_is: list[bool] = field(default_factory=list)  # and whether they keep their files
    deleted: list[str] = field(default_factory=list)

    async def import_model(
        self, address: str, source_path: str, name: str, *, as_is: bool
    ) -> AsyncGenerator[ImportProgress | ModelInfo]:
        """Import a folder."""
        self.begun.append(source_path)
        self.kept_as_is.append(as_is)
        info = model(
            name or source_path.rstrip("/").rsplit("/", 1)[-1], self.revisions.get(address, "1")
        )
        yield ImportProgress(bytes_done=10, bytes_total=40, file="config.json")
        if address in self.held_back:
            try:
                await self.may_finish.wait()
            except asyncio.CancelledError:
                if self.publishes_late:
                    loop = asyncio.get_running_loop()
                    loop.call_later(0.005, self.held[address].append, info)
                raise
        if address in self.errors:
            raise self.errors[address]
        if self.ends_without_result:
            return
        if info not in self.held[address]:
            self.held[address].append(info)
        yield info

    async def models(self, address: str) -> tuple[ModelInfo, ...]:
        """List the models."""
        if self.models_errors.get(address) and (error := self.models_errors[address].popleft()):
            raise error
        return tuple(self.held[address])

    async def contents(self, address: str) -> StoreContents:
        """Tell which models are there, none of them in DRAM."""
        if (error := self.contents_errors.get(address)) is not None:
            raise error
        return StoreContents(stored=tuple(Stored(info.ref) for info in self.held[address]))

    async def delete(self, address: str, ref: ModelRef) -> None:
        """Delete a model, unless the test has set an error."""
        if self.delete_errors.get(address):
            raise self.delete_errors[address].popleft()
        self.deleted.append(f"{ref.name} at {address}")
        self.held[address] = [info for info in self.held[address] if info.ref != ref]


@dataclass(slots=True)
class Hash:
    """`ports.Records`, fenced like the real one."""

    epoch: int = 1
    fields: dict[str, str] = field(default_factory=dict)
    errors: deque[BriskError] = field(default_factory=deque)
    unwritable: frozenset[str] = frozenset()  # keys whose writes fail
    may_write: asyncio.Event = field(default_factory=asyncio.Event)
    reads: int = 0

    def __post_init__(self) -> None:
        self.may_write.set()

    async def read(self) -> Mapping[str, str]:
        """Return all."""
        self.reads += 1
        return dict(self.fields)

    async def mark(self) -> str | None:
        """Return the count of writes."""
        return self.fields.get(MARK)

    async def put(self, epoch: int, key: str, value: str, /) -> None:
        """Set one."""
        await self.may_write.wait()
        self._fence(epoch)
        if key in self.unwritable:
            raise UnavailableError("away")
        self.fields[key] = value

    async def delete(self, epoch: int, key: str, /) -> None:
        """Remove one."""
        self._fence(epoch)
        self.fields.pop(key, None)

    def _fence(self, epoch: int) -> None:
        if self.errors:
            raise self.errors.popleft()
        if epoch != self.epoch:
            raise FailedPreconditionError("a newer leader", reason=Reason.STALE_EPOCH)


async def settled() -> None:
    """Let everything that is ready to run, run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(holds: Callable[[], object]) -> None:
    """Wait until `holds`, for what takes real time."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
