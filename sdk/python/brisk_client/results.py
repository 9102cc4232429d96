"""What calls return: plain frozen values, free of protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"


class Tier(StrEnum):
    """Where weights come from, fastest first."""

    UNKNOWN = "unknown"
    DEVICE = "device"
    DRAM = "dram"
    SSD = "ssd"
    PEER = "peer"
    REMOTE = "remote"


class Phase(StrEnum):
    """A step on the way from a request to its first token, in this order."""

    UNKNOWN = "unknown"
    QUEUE = "queue"
    PLACEMENT = "placement"
    FETCH = "fetch"
    LOAD = "load"
    INIT = "init"
    FIRST_TOKEN = "first_token"  # noqa: S105  (a phase's name, not a secret)


class InstanceState(StrEnum):
    """What an instance can do now."""

    UNKNOWN = "unknown"
    LOADING = "loading"
    READY = "ready"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One token and how likely it was: the natural logarithm of its probability."""

    token_id: int
    logprob: float
    piece: bytes  # its text, which need not be whole characters


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """How likely a chosen token was, and the most likely ones, most likely first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens decoded since the previous chunk; the last one carries the finish reason."""

    index: int  # position of token_ids[0], counted from the first token produced
    token_ids: tuple[int, ...]
    text: str  # may be empty: half a character is held back until it is whole
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    choice: int = 0  # which answer it belongs to
    logprobs: tuple[TokenLogprobs, ...] = ()  # one for each token if they were asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the start of a model has come."""

    phase: Phase
    bytes_done: int = 0
    bytes_total: int = 0
    source: Tier = Tier.UNKNOWN
    detail: str = ""

    @property
    def fraction(self) -> float | None:
        """Return the part of the phase that is done, 0..1, or None where it moves no bytes."""
        return min(self.bytes_done / self.bytes_total, 1.0) if self.bytes_total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseDuration:
    """The time that one phase took."""

    phase: Phase
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReport:
    """How a request got to its first token."""

    cold: bool
    source: Tier
    phases: tuple[PhaseDuration, ...]

    @property
    def total_s(self) -> float:
        """Return the time from the request to its first token."""
        return sum(phase.duration_s for phase in self.phases)

    def duration_s(self, phase: Phase) -> float | None:
        """Return how long `phase` took, or None if there was no such phase."""
        found = [entry.duration_s for entry in self.phases if entry.phase is phase]
        return sum(found) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    start: StartReport | None
    request_id: str
    choice: int = 0  # which of several answers it is
    logprobs: tuple[TokenLogprobs, ...] = ()  # one for each token if they were asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """What a model makes of a prompt."""

    token_ids: tuple[int, ...]
    pieces: tuple[bytes, ...]  # the bytes of each token, which need not be whole characters
    context_tokens_max: int  # of a sequence, prompt included


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation: `role` is "system", "user", "assistant" or the template's own."""

    role: str
    content: str
    name: str = ""  # who speaks, where several have one role
    tool_call_id: str = ""  # which call a message of role "tool" answers
    tool_calls: tuple[Mapping[str, object], ...] = ()  # what an assistant called


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A checkpoint as the store keeps it."""

    name: str
    revision: str
    architecture: str
    dtype: str
    weight_bytes: int
    parameters: int
    context_tokens_max: int  # 0 if its config states none
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model that requests can name, with its specification and present state."""

    name: str
    model: ModelInfo
    keep_alive_s: float  # math.inf: an idle instance is never unloaded
    slots: int
    context_tokens_max: int
    created_at: datetime
    instances_ready: int
    instances_loading: int
    device_bytes: int
    learned_keep_alive: bool = False
    min_replicas: int = 0
    max_replicas: int = 1
    target_concurrency: int = 0  # sequences for which one instance is meant
    max_queue: int | None = None  # None: no limit of its own
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device of a worker with its memory budget."""

    device_id: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A model resident on a device."""

    instance_id: str
    deployment: str
    model_name: str
    revision: str
    worker_id: str
    device_id: str
    memory_bytes: int
    slots: int
    state: InstanceState
    running: int
    waiting: int
    idle_s: float | None  # None while it has sequences
    keep_alive_left_s: float | None  # None if busy or kept for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentDetail:
    """A deployment and its instances."""

    deployment: Deployment
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker process and what it holds."""

    worker_id: str
    node_id: str
    address: str
    devices: tuple[Device, ...]
    instances: tuple[Instance, ...]
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIo:
    """What the scheduler has learnt and predicts of a node."""

    loads: int  # under way
    wait_s: float  # of a load that is ordered now
    ssd_bytes_per_s: int
    dram_bytes_per_s: int
    models_on_ssd: int | None  # None: its store manager has not told
    models_in_dram: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A host: one store manager and its workers."""

    node_id: str
    storemgr_address: str | None  # None: not registered
    workers: tuple[Worker, ...]
    io: NodeIo | None = None  # None: the scheduler does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """All nodes and who leads."""

    nodes: tuple[Node, ...]
    leader_id: str
    leader_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """How far an import has come."""

    bytes_done: int
    bytes_total: int
    file: str
    bytes_per_s: int = 0  # fetched at present, all nodes together; 0 if unknown
    origin: str = ""  # where the bytes come from: "s3", "http", "hub"; empty for a folder

    @property
    def fraction(self) -> float | None:
        """Return the part that is done, 0..1, or None before the size is known."""
        return min(self.bytes_done / self.bytes_total, 1.0) if self.bytes_total else None

    @property
    def left_s(self) -> float | None:
        """Return how long the rest takes at the present speed, or None if that is unknown."""
        left = self.bytes_total - self.bytes_done
        return max(left, 0) / self.bytes_per_s if self.bytes_per_s else None
