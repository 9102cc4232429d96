"""How long things take, learned from how long they took.

A load takes `overhead + bytes / bandwidth`, both per node and tier, times what the model itself
adds or saves, plus its initialization. Every figure is kept as a logarithm and moved towards each
outcome by a step that shrinks to a floor, so that it settles soon and still follows a change. How
far one outcome may move it is limited by how much its outcomes vary: one bad measurement does
little harm, a lasting change wins. A node that has told nothing yet is taken for an average one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, TypeVar

from services.common.model import ModelRef, Tier
from services.scheduler.paths import Path

_RATE: Final = 0.15  # smallest step towards an outcome
_SPREAD_RATE: Final = 0.1
_SPREAD_FIRST: Final = 1.0
_SPREAD_LEAST: Final = 0.02
_LIMIT_SPREADS: Final = 3.0  # an outcome further off counts as this far
_TRUSTED: Final = 3  # outcomes before that limit applies
_ERROR_MAX: Final = 8.0  # of a logarithm: a factor of 3,000
_OVERLAP_SHARE: Final = 0.25  # what an outcome counts whose load was not alone on its node
_LEAST_S: Final = 1e-6
_SPEED_STEP: Final = math.log(1.05)

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Priors:
    """What is believed before anything was measured."""

    dram_bytes_per_s: float = 8e9
    ssd_bytes_per_s: float = 1.5e9
    peer_bytes_per_s: float = 1e9
    remote_bytes_per_s: float = 2e8
    overhead_s: float = 0.02  # of a load besides its bytes and its initialization
    init_s: float = 0.1
    unload_s: float = 0.05
    busy_s: float = 5.0  # how long an instance that has sequences goes on having some
    resume_s: float = 0.1  # to continue a sequence elsewhere, besides its tokens
    resume_s_per_token: float = 1e-3

    def bytes_per_s(self, tier: Tier) -> float:
        """Return the bandwidth at which weights come from `tier`."""
        match tier:
            case Tier.DEVICE | Tier.DRAM:
                return self.dram_bytes_per_s
            case Tier.PEER:
                return self.peer_bytes_per_s
            case Tier.REMOTE:
                return self.remote_bytes_per_s
            case _:
                return self.ssd_bytes_per_s


@dataclass(slots=True)
class Figure:
    """A positive quantity, as the logarithm that outcomes have moved so far."""

    log: float
    count: int = 0
    spread: float = _SPREAD_FIRST

    def learn(self, error: float, share: float = 1.0) -> None:
        """Move by `share` of what the logarithm was off by."""
        limit = _LIMIT_SPREADS * self.spread if self.count >= _TRUSTED else _ERROR_MAX
        error = max(-limit, min(limit, error))
        self.log += share * max(1.0 / (self.count + 1), _RATE) * error
        rate = max(1.0 / (self.count + 1), _SPREAD_RATE)
        self.spread = max(_SPREAD_LEAST, self.spread + rate * (abs(error) - self.spread))
        self.count += 1


@dataclass(slots=True)
class Estimates:
    """All that was learned about times."""

    priors: Priors = field(default_factory=Priors)
    _averages: dict[Tier, Path] = field(default_factory=dict)
    _paths: dict[tuple[str, Tier], Path] = field(default_factory=dict)  # by node
    _factors: dict[tuple[ModelRef, Tier], Figure] = field(default_factory=dict)
    _inits: dict[ModelRef, Figure] = field(default_factory=dict)
    _busy: dict[str, Figure] = field(default_factory=dict)  # by deployment
    _init: Figure = field(init=False)
    _unload: Figure = field(init=False)

    def __post_init__(self) -> None:
        self._init = Figure(_log(self.priors.init_s))
        self._unload = Figure(_log(self.priors.unload_s))

    # --- what will be ---

    def transfer_s(self, node_id: str, tier: Tier, ref: ModelRef, size_bytes: int) -> float:
        """Return how long `size_bytes` of a model take from a tier to a device of a node."""
        path = self._paths.get((node_id, tier)) or self._average(tier)
        seconds = path.seconds(size_bytes)
        factor = self._factors.get((ref, tier))
        return seconds if factor is None else seconds * math.exp(factor.log)

    def init_s(self, ref: ModelRef) -> float:
        """Return how long a model is assembled around its weights."""
        return math.exp((self._inits.get(ref) or self._init).log)

    def unload_s(self) -> float:
        """Return how long it takes until an idle instance's memory is free."""
        return math.exp(self._unload.log)

    def busy_s(self, deployment: str) -> float:
        """Return for how long an instance has sequences once it has one."""
        figure = self._busy.get(deployment)
        return self.priors.busy_s if figure is None else math.exp(figure.log)

    def left_s(self, deployment: str, busy_for_s: float) -> float:
        """Return how much longer an instance has sequences that has had some for `busy_for_s`.

        One that has gone on for longer than usual is likely to go on for as long again.
        """
        expected_s = self.busy_s(deployment)
        return max(expected_s - busy_for_s, 0.5 * busy_for_s, 0.1 * expected_s)

    def resume_s(self, tokens: int) -> float:
        """Return how long a sequence of so many tokens takes to go on elsewhere."""
        return self.priors.resume_s + self.priors.resume_s_per_token * tokens

    def bytes_per_s(self, node_id: str, tier: Tier) -> float:
        """Return the bandwidth at which a node is believed to give bytes of a tier."""
        path = self._paths.get((node_id, tier)) or self._average(tier)
        return path.bytes_per_s

    def slowness(self, node_id: str, tier: Tier) -> int:
        """Return by how many steps of 5 % a node gives bytes of a tier more slowly than others."""
        path = self._paths.get((node_id, tier))
        if path is None:
            return 0
        average = self._averages[tier]
        return round(math.log(path.pace_s / average.pace_s) / _SPEED_STEP)

    # --- what was ---

    def learn_load(
        self,
        node_id: str,
        tier: Tier,
        ref: ModelRef,
        size_bytes: int,
        *,
        transfer_s: float | None,
        init_s: float | None,
        is_alone: bool = True,
    ) -> None:
        """Learn from a load: its transfer without the wait before it, and its initialization."""
        share = 1.0 if is_alone else _OVERLAP_SHARE
        if transfer_s is not None:
            self._learn_transfer((node_id, tier), ref, size_bytes, transfer_s, share)
        if init_s is not None:
            figure = _figure(self._inits, ref, self._init.log)
            figure.learn(_log(init_s) - figure.log, share)
            self._init.learn(_log(init_s) - self._init.log, share)

    def learn_unload(self, took_s: float) -> None:
        """Learn from an unload of an idle instance."""
        self._unload.learn(_log(took_s) - self._unload.log)

    def learn_busy(self, deployment: str, busy_for_s: float) -> None:
        """Learn from an instance that has turned idle."""
        figure = _figure(self._busy, deployment, _log(self.priors.busy_s))
        figure.learn(_log(busy_for_s) - figure.log)

    def forget_node(self, node_id: str) -> None:
        """Forget a node that is gone."""
        for tier in Tier:
            self._paths.pop((node_id, tier), None)

    def forget_model(self, deployment: str, ref: ModelRef) -> None:
        """Forget a deployment that is gone; whoever serves its model too learns that anew."""
        self._busy.pop(deployment, None)
        self._inits.pop(ref, None)
        for tier in Tier:
            self._factors.pop((ref, tier), None)

    def _learn_transfer(
        self, key: tuple[str, Tier], ref: ModelRef, size_bytes: int, took_s: float, share: float
    ) -> None:
        tier = key[1]
        average = self._average(tier)
        path = self._paths.get(key)
        if path is None:
            path = average.another()
            self._paths[key] = path
        factor = _figure(self._factors, (ref, tier), 0.0)
        path.learn(size_bytes, took_s, share)
        average.learn(size_bytes, took_s, share)
        rest = _log(took_s) - math.log(path.seconds(size_bytes)) - factor.log
        factor.learn(rest, share)

    def _average(self, tier: Tier) -> Path:
        average = self._averages.get(tier)
        if average is None:
            average = self._averages[tier] = Path(
                self.priors.overhead_s, 1e9 / self.priors.bytes_per_s(tier)
            )
        return average


def _figure(figures: dict[_Key, Figure], key: _Key, first: float) -> Figure:
    found = figures.get(key)
    if found is None:
        found = figures[key] = Figure(first)
    return found


def _log(seconds: float) -> float:
    return math.log(max(seconds, _LEAST_S))
