"""What the worker's domain needs from outside, and the interfaces between its own threads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.common.constraint import Constraint
from services.common.errors import BriskError
from services.common.model import ModelInfo, ModelRef, StartProgress, StartReport, Tier
from services.common.placement import WorkerState
from services.common.prompt import Prompt
from services.worker.adjustments import Adjustment
from services.worker.plan import TokenLimits
from services.worker.sampler import Logits, Sampler
from services.worker.text import Continuation, Decoded


class Strand(Protocol):
    """One sequence's place in a model: its keys and values."""

    @property
    def seen(self) -> int:
        """Return how many of its tokens the model has seen."""

    def close(self, *, is_sound: bool = True) -> None:
        """Free the place. What is not sound is not shown to later sequences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a model is to see of one sequence in a step."""

    strand: Strand
    token_ids: Sequence[int]  # they follow those that it has seen; at least one
    wants_logits: bool  # of what follows the last of them


class Decoder(Protocol):
    """A resident model, used by its device's thread only. Dropping it frees the weights."""

    @property
    def shares_max(self) -> int:
        """Return how many sequences a step may show. With 1, no failed step is tried again."""

    def open(self, tokens: Sequence[int], tokens_max: int) -> Strand | None:
        """Return a place for a sequence that begins with `tokens`, or None while there is no room.

        Of the first tokens, all but one at most, it may have seen some already. The sequence will
        have `tokens_max` tokens at most.
        """

    def extend(self, strand: Strand, tokens: int) -> bool:
        """Make room for `tokens` tokens in all; without room return False, changing nothing."""

    def step(self, shares: Sequence[Share]) -> Sequence[Logits | None]:
        """Show the model all `shares`, at most `shares_max`; return the logits wanted. Blocks.

        Raises whatever a model's code raises; then no strand has seen anything, unless
        `shares_max` is 1: then that strand is of no use any more.
        """

    def audit(self) -> None:
        """Raise RuntimeError if memory is held although no strand is open."""


class TokenSink(Protocol):
    """Where a sequence's tokens go. Called from a device's thread; never blocks."""

    def has_room(self) -> bool:
        """Return whether to go on; once there is room again, the engine is woken."""

    def put(self, decoded: Decoded) -> None:
        """Hand on a token that is not the last."""

    def end(self, error: BriskError | None, last: Decoded | None = None) -> None:
        """Say that nothing comes after `last` and that all the sequence held is freed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One admitted sequence. Nothing unvalidated ever becomes a Job."""

    ticket: str  # unique on this worker
    request_id: str
    instance_id: str
    prompt: tuple[int, ...]  # what to begin behind, tokens already delivered included
    tokens_max: int  # of prompt and continuation together
    sampler: Sampler  # these two belong to the device's thread from `add` on
    continuation: Continuation
    sink: TokenSink


class Engine(Protocol):
    """Decodes sequences on one device. Every method returns at once, from any thread."""

    def load(self, instance_id: str, decoder: Decoder) -> None:
        """Make a model ready for sequences. The engine holds the only lasting reference."""

    def unload(self, instance_id: str, done: Callable[[], None]) -> None:
        """Drop a model, end what sequences it has, and call `done` from the device's thread."""

    def add(self, job: Job) -> None:
        """Decode a sequence until it ends; its sink hears `end` exactly once."""

    def cancel(self, ticket: str, error: BriskError | None = None) -> None:
        """End a sequence within one decode step; unknown tickets are ignored."""

    def wake(self) -> None:
        """Look again at sequences whose sink had no room."""


class TextCodec(Protocol):
    """A model's tokenizer. Safe to use from several threads."""

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return a prompt's token ids. Blocks for up to a second on a long text.

        Raises InvalidArgumentError: NO_CHAT_TEMPLATE, NO_TOOLS, TEMPLATE_FAILED.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some tokens, special ones left out."""

    def piece(self, token_id: int) -> bytes:
        """Return a token's bytes, which need not be whole characters; a special token's name."""

    def constrain(
        self, constraint: Constraint, *, vocabulary: int, eos_token_ids: frozenset[int]
    ) -> Adjustment:
        """Return what keeps a sequence to `constraint`. Blocks for a second at the worst.

        Raises InvalidArgumentError (INVALID_CONSTRAINT).
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedFile:
    """A weight file in memory that the store manager shares."""

    name: str
    size_bytes: int
    pieces: tuple[tuple[int, int], ...]  # offset and bytes of each, one after another


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """Where a model's weights lie in memory."""

    path: str  # what to map
    files: tuple[MappedFile, ...]


OnBytes = Callable[[int, int], None]  # gets the bytes there so far and in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A model's files, kept in place for as long as the lease is held."""

    lease_id: str
    folder: Path
    weight_files: tuple[str, ...]
    info: ModelInfo
    tier: Tier  # that the weights come from
    bring: Callable[[OnBytes], Awaitable[Mapping]] | None = None
    """Waits for the weights in memory. None: they are to be read from the folder."""
    is_held: Callable[[], bool] = lambda: True
    """Whether the store manager still holds to it, as far as we have heard."""


class ModelStore(Protocol):
    """The node's store manager."""

    def lease(self, model: ModelRef, *, maps: bool = False) -> AbstractAsyncContextManager[Lease]:
        """Hold a lease for the block; who `maps` may use weights where they are in memory.

        Raises NotFoundError (MODEL_NOT_FOUND) and UnavailableError (STORE_UNREACHABLE). `bring`
        raises the latter, too, and DataLossError.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """What the scheduler wants here."""

    instance_id: str
    deployment: str
    model: ModelRef
    device_id: str
    slots: int
    context_tokens_max: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """How a load went."""

    report: StartReport
    bytes_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A model that can serve."""

    decoder: Decoder  # dropping it frees the weights
    codec: TextCodec | None  # None: the model has no tokenizer
    limits: TokenLimits
    eos_token_ids: frozenset[int]
    loaded: Loaded
    serial_reason: str = ""  # why its sequences are decoded one at a time, if they are


class ModelStarter(Protocol):
    """Makes models ready to serve."""

    async def check(self, model: ModelRef) -> None:
        """Return if the model could be started, without reading its weights.

        Raises what `start` raises before it reads.
        """

    async def start(
        self,
        order: LoadOrder,
        progress: Callable[[StartProgress], None],
        resize: Callable[[int], None],
    ) -> Started:
        """Start a model. Cancelling ends it and frees all it took before it returns.

        `progress` is called from any thread. `resize` makes the reservation that many bytes; it is
        called on the event loop before the memory is taken, and refuses what the device lacks.
        Raises NotFoundError, UnavailableError, InvalidArgumentError (INVALID_MODEL),
        ResourceExhaustedError (INSUFFICIENT_MEMORY), DataLossError.
        """


class LeaderReports(Protocol):
    """The leading scheduler, as far as a worker talks to it."""

    async def report(self, state: WorkerState) -> None:
        """Tell the leader this worker's state. Raises UnavailableError."""
