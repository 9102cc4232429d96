"""One request on its way: what it wants, where it stands, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.model import Tier


@dataclass(frozen=True, slots=True)
class Arrival:
    """One line of a workload."""

    at_s: float
    deployment: str
    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True, eq=False)
class Request:
    """Changed by the router, and by the engine that decodes it."""

    key: str
    arrival: Arrival
    left: int  # tokens still to be produced
    done: int = 0  # tokens that its client has
    first_token_s: float | None = None
    ended_s: float | None = None
    failure: str = ""  # the reason, if it got no first token
    source: Tier = Tier.DEVICE  # where the weights came from that it waited for
    is_acquiring: bool = False
    is_granted: bool = False
    excluded: frozenset[str] = frozenset()
    acquire_key: str = ""
    acquires: int = 0
    instance_id: str | None = None  # whose slot it has
    moves: int = 0  # migrations and losses that it went through
    restarts: int = 0  # of these, the times it began again
    paused_at_s: float | None = None  # since when its client hears nothing, after the first token
    pause_s_max: float = 0.0
    pauses_s: list[float] = field(default_factory=list)

    def pause(self, now_s: float) -> None:
        """Note that it is not decoded any more."""
        if self.first_token_s is not None and self.paused_at_s is None:
            self.paused_at_s = now_s

    def resume(self, now_s: float) -> None:
        """Note that its client hears of it again."""
        if self.paused_at_s is not None:
            self.pauses_s.append(now_s - self.paused_at_s)
            self.paused_at_s = None
