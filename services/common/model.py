"""Models, what they answer and how they start: the domain side of `brisk/common/v1/model.proto`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from services.common.names import ModelName


class Tier(StrEnum):
    """A place that weights can come from, fastest first."""

    UNSPECIFIED = "unspecified"
    DEVICE = "device"
    DRAM = "dram"
    SSD = "ssd"
    PEER = "peer"
    REMOTE = "remote"


class StartPhase(StrEnum):
    """A step on the way from a request to its first token, in order."""

    UNSPECIFIED = "unspecified"
    QUEUE = "queue"
    PLACEMENT = "placement"
    FETCH = "fetch"
    LOAD = "load"
    INIT = "init"
    FIRST_TOKEN = "first_token"  # noqa: S105 - no password


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A checkpoint at a revision."""

    name: ModelName
    revision: str = ""  # empty where a request leaves it open


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a store manager learnt about a checkpoint when it imported it."""

    ref: ModelRef
    architecture: str
    dtype: str
    weight_bytes: int
    parameters: int
    context_tokens_max: int  # 0 if its config states none
    kv_bytes_per_token: int  # 0 if it cannot be derived


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One token and how likely it was, by the model's own logits."""

    token_id: int
    logprob: float
    piece: bytes = b""  # need not be whole characters; empty without a tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """How likely a chosen token was, and the most likely ones, most likely first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChunk:
    """The tokens decoded since the previous chunk; the last one carries why it ended."""

    first_index: int
    token_ids: tuple[int, ...]
    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()  # one for each token, or none


@dataclass(frozen=True, slots=True, kw_only=True)
class StartProgress:
    """How far an instance's start has come."""

    phase: StartPhase
    bytes_done: int = 0
    bytes_total: int = 0
    source: Tier = Tier.UNSPECIFIED
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseDuration:
    """The time that one phase took."""

    phase: StartPhase
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReport:
    """How a request got to its first token."""

    cold: bool
    source: Tier
    phases: tuple[PhaseDuration, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """What a model makes of a prompt."""

    token_ids: tuple[int, ...]
    pieces: tuple[bytes, ...]  # one for each token; empty without a tokenizer
    context_tokens_max: int
