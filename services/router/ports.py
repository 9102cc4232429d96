"""What the router needs from schedulers and workers, and the values that they exchange.

`adapters.py` speaks gRPC behind these; unit tests put doubles with real behaviour there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

from services.common.deadline import Deadline
from services.common.model import StartProgress, StartReport, Tokenized
from services.common.placement import Route
from services.router.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteUpdate:
    """A set of changes to the route table, all of one leader's epoch."""

    leader_epoch: int
    is_snapshot: bool  # `upserted` is all there is
    upserted: tuple[Route, ...] = ()
    removed_instance_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """An instance that the scheduler keeps from eviction until the grant is released."""

    grant_id: str
    route: Route
    start: StartReport


AcquireEvent: TypeAlias = StartProgress | Grant


class Scheduler(Protocol):
    """The leading scheduler. Every call raises UnavailableError (NO_LEADER) while none leads."""

    def acquire(
        self, grant_id: str, deployment: str, excluded: frozenset[str], deadline: Deadline
    ) -> AsyncGenerator[AcquireEvent]:
        """Yield progress, then the grant, always, or raise. Closing it gives up the place."""

    async def release(self, grant_id: str, deadline: Deadline) -> None:
        """Give a grant back. Safe to repeat."""

    async def report_demand(self, lines: Mapping[str, int], deadline: Deadline) -> None:
        """Tell how many requests are in line for each deployment."""

    def watch_routes(self) -> AsyncGenerator[RouteUpdate]:
        """Yield all routes once, then each change, until the leadership or the watch ends."""


class Usage(Protocol):
    """Tokens of one request."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""

    @property
    def completion_tokens(self) -> int:
        """Tokens produced."""


class TokenLogprob(Protocol):
    """One token and how likely it was."""

    @property
    def token_id(self) -> int:
        """The token."""

    @property
    def logprob(self) -> float:
        """The natural logarithm of its probability."""

    @property
    def piece(self) -> bytes:
        """Its bytes, which need not be whole characters."""


class TokenLogprobs(Protocol):
    """How likely a token was that was chosen, and the most likely ones."""

    @property
    def chosen(self) -> TokenLogprob:
        """The token that was chosen."""

    @property
    def top(self) -> Sequence[TokenLogprob]:
        """The most likely tokens, most likely first."""


class TokenChunk(Protocol):
    """The part of a worker's chunk that the router looks at; all of it goes on as it came."""

    @property
    def first_index(self) -> int:
        """Position of the first token, counted from the first one produced."""

    @property
    def token_ids(self) -> Sequence[int]:
        """One or more tokens."""

    @property
    def text(self) -> str:
        """Text that became certain with these tokens."""

    @property
    def finish_reason(self) -> int:
        """0 while more follow; the wire's number."""

    @property
    def usage(self) -> Usage:
        """The request's tokens; counted on the last chunk only."""

    @property
    def logprobs(self) -> Sequence[TokenLogprobs]:
        """How likely each of the tokens was, if that was asked for."""


class TokenIds(Protocol):
    """A list of tokens."""

    @property
    def ids(self) -> Sequence[int]:
        """The tokens."""


class WorkerMessage(Protocol):
    """One message of a worker's stream, as it was parsed from the wire."""

    @property
    def chunk(self) -> TokenChunk:
        """The next tokens."""

    @property
    def prompt_tokens(self) -> TokenIds:
        """The prompt's tokens on the first message; empty on the others."""


class ModelState(StrEnum):
    """Whether a model can answer at once."""

    READY = "ready"  # an instance serves
    LOADING = "loading"  # one is on its way
    ZERO = "zero"  # the next request starts one


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """A deployed model as its users see it."""

    name: str
    created_at_s: int  # wall clock, seconds since 1970
    state: ModelState
    instances_ready: int
    instances_loading: int
    context_tokens_max: int  # 0 if nothing limits it


class Catalog(Protocol):
    """The deployed models, as the leading scheduler knows them.

    Calls raise UnavailableError (NO_LEADER) while none leads.
    """

    async def models(self, deadline: Deadline) -> tuple[ModelCard, ...]:
        """Return all models, those at zero included, sorted by name."""

    async def model(self, name: str, deadline: Deadline) -> ModelCard:
        """Return one model. Raises NotFoundError (MODEL_NOT_FOUND) naming near matches."""


class Workers(Protocol):
    """The workers behind the routes."""

    def generate(self, route: Route, job: Job) -> AsyncGenerator[WorkerMessage]:
        """Yield what the worker streams; closing it frees the sequence at once.

        Raises what the worker answered. A lost connection is UnavailableError.
        """

    async def tokenize(self, route: Route, job: Job) -> Tokenized:
        """Return the tokens of the job's prompt. Raises what the worker answered."""

    def prepare(self, route: Route) -> None:
        """Connect ahead of the first request. Never fails."""
