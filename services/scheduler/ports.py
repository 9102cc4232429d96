"""What the scheduler needs of the world; `adapters` has it over gRPC and Redis."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from services.common.model import ModelInfo, ModelRef, StartProgress, StartReport
from services.common.placement import WorkerState
from services.scheduler.actions import StartLoad, StartUnload
from services.scheduler.residency import Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """How far an import has come."""

    bytes_done: int
    bytes_total: int
    file: str
    bytes_per_s: int = 0  # 0: unknown
    origin: str = ""  # where the bytes come from; empty for a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A process that is registered."""

    service_id: str
    node_id: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreContents:
    """What a node's store has now."""

    stored: tuple[Stored, ...]
    busy_s: float = 0.0  # until a read that is asked for now would begin


class Workers(Protocol):
    """Orders to workers and questions; every one may raise BriskError."""

    def load(self, order: StartLoad, epoch: int) -> AsyncGenerator[StartProgress | StartReport]:
        """Yield progress, then how it went as the last. Closing it undoes the load."""

    async def unload(self, order: StartUnload, epoch: int) -> None:
        """Return when the instance's memory is free.

        Raises FailedPreconditionError (INSTANCE_BUSY) if it has sequences and must be idle.
        """

    async def describe(self, address: str) -> WorkerState:
        """Return a worker's state, within about a second."""

    async def check(self, address: str, model: ModelRef) -> None:
        """Return if the model can be loaded. Raises InvalidArgumentError (INVALID_MODEL)."""


class Stores(Protocol):
    """Orders to store managers; every one may raise BriskError."""

    def import_model(
        self, address: str, source_path: str, name: str, *, as_is: bool
    ) -> AsyncGenerator[ImportProgress | ModelInfo]:
        """Yield progress, then the published model as the last. Closing it leaves nothing.

        With `as_is` the weights keep their files; else they are written in the stored form.
        """

    async def models(self, address: str) -> tuple[ModelInfo, ...]:
        """Return the stored models, sorted by name, then by time of import."""

    async def contents(self, address: str) -> StoreContents:
        """Return where the bytes of each stored model are, within about a second."""

    async def delete(self, address: str, model: ModelRef) -> None:
        """Remove a model's files. Raises FailedPreconditionError (MODEL_LEASED)."""


class Peers(Protocol):
    """Who is registered."""

    async def stores(self) -> tuple[Peer, ...]:
        """Return the store managers. Raises UnavailableError."""

    def watch_workers(self) -> AsyncGenerator[tuple[Peer, ...]]:
        """Yield all workers now and after each change, for ever."""


class Records(Protocol):
    """Durable texts by name, written by the newest leader only."""

    async def read(self) -> Mapping[str, str]:
        """Return all. Raises UnavailableError."""

    async def mark(self) -> str | None:
        """Return the text under MARK alone. Raises UnavailableError."""

    async def put(self, epoch: int, key: str, value: str, /) -> None:
        """Set one. Raises FailedPreconditionError (STALE_EPOCH) or UnavailableError."""

    async def delete(self, epoch: int, key: str, /) -> None:
        """Remove one; raises like `put`."""
