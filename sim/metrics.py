"""What came of a run, in numbers; all but the decision times repeat to the byte."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.common.model import Tier
from sim.request import Request
from sim.setup import Model
from sim.store import Store
from sim.world import World

COLD: Final = (Tier.DRAM, Tier.SSD, Tier.PEER, Tier.REMOTE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run, or several of different seeds taken together."""

    requests: int
    failed: int  # got no first token: refused, or given up by their clients
    ttft_s: tuple[float, ...]  # sorted; a failed request counts with the time that it waited
    by_tier: Mapping[Tier, int]  # requests that waited for weights from there
    in_time: int  # first token within their model's objective
    bytes_moved: Mapping[Tier, int]
    loads: int
    migrations: int
    preemptions: int
    pauses_s: tuple[float, ...]  # sorted: silences after a first token
    happenings: int
    digest: str  # of all requests' outcomes

    @property
    def mean_s(self) -> float:
        """Return the mean time to the first token."""
        return sum(self.ttft_s) / len(self.ttft_s) if self.ttft_s else 0.0

    def quantile_s(self, share: float) -> float:
        """Return the least time to the first token that a share of the requests did not exceed."""
        return quantile(self.ttft_s, share)

    @property
    def attainment(self) -> float:
        """Return the share of requests that met their objective."""
        return self.in_time / self.requests if self.requests else 0.0

    def cold_share(self, tier: Tier) -> float:
        """Return the share of requests that waited for weights from a tier."""
        return self.by_tier.get(tier, 0) / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How fast this machine decided and simulated."""

    decisions: int
    decided_s: float
    acquire_us: tuple[float, float, float]  # p50, p95, p99
    happenings: int
    took_s: float

    @property
    def happenings_per_s(self) -> float:
        """Return the simulator's own speed: happenings, over the time not spent deciding."""
        return self.happenings / max(1e-9, self.took_s - self.decided_s)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of all do not exceed; 0 if there is none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def outcome(world: World, models: Mapping[str, Model], since_s: float) -> Outcome:
    """Return what came of the requests that arrived from `since_s` on."""
    counted = [each for each in world.requests if each.arrival.at_s >= since_s]
    ttft = [ttft_s(each, world.agenda.now_s) for each in counted]
    by_tier: dict[Tier, int] = {}
    in_time = 0
    for request, took_s in zip(counted, ttft, strict=True):
        by_tier[request.source] = by_tier.get(request.source, 0) + 1
        slo_s = models[request.arrival.deployment].slo_s
        in_time += not request.failure and took_s <= slo_s
    moved = bytes_moved(world.stores)
    return Outcome(
        requests=len(counted),
        failed=sum(1 for each in counted if each.failure),
        ttft_s=tuple(sorted(ttft)),
        by_tier=by_tier,
        in_time=in_time,
        bytes_moved=moved,
        loads=world.loads.finished,
        migrations=world.migrations,
        preemptions=world.preemptions,
        pauses_s=tuple(sorted(pause for each in counted for pause in each.pauses_s)),
        happenings=world.agenda.done,
        digest=digest(world.requests),
    )


def timing(world: World, took_s: float) -> Timing:
    """Return how fast the run went."""
    decisions = world.decisions
    return Timing(
        decisions=decisions.count,
        decided_s=decisions.total_s,
        acquire_us=(
            decisions.acquire_us(0.5),
            decisions.acquire_us(0.95),
            decisions.acquire_us(0.99),
        ),
        happenings=world.agenda.done,
        took_s=took_s,
    )


def bytes_moved(stores: Sequence[Store]) -> dict[Tier, int]:
    """Return the bytes that went over the links: out of each tier, towards a device."""
    network = sum(each.inward.carried_bytes for each in stores)
    peers = sum(each.outward.carried_bytes for each in stores)
    return {
        Tier.DRAM: sum(link.carried_bytes for each in stores for link in each.devices),
        Tier.SSD: sum(each.disk.carried_bytes for each in stores),
        Tier.PEER: peers,
        Tier.REMOTE: network - peers,
    }


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Return several runs' outcomes as one: all their requests, pooled."""
    return Outcome(
        requests=sum(each.requests for each in outcomes),
        failed=sum(each.failed for each in outcomes),
        ttft_s=tuple(sorted(value for each in outcomes for value in each.ttft_s)),
        by_tier=_sum(each.by_tier for each in outcomes),
        in_time=sum(each.in_time for each in outcomes),
        bytes_moved=_sum(each.bytes_moved for each in outcomes),
        loads=sum(each.loads for each in outcomes),
        migrations=sum(each.migrations for each in outcomes),
        preemptions=sum(each.preemptions for each in outcomes),
        pauses_s=tuple(sorted(value for each in outcomes for value in each.pauses_s)),
        happenings=sum(each.happenings for each in outcomes),
        digest=hashlib.sha256("".join(each.digest for each in outcomes).encode()).hexdigest(),
    )


def ttft_s(request: Request, now_s: float) -> float:
    """Return the time to a request's first token; of a failed one, for how long it waited."""
    end_s = request.first_token_s
    if end_s is None:
        end_s = now_s if request.ended_s is None else request.ended_s
    return end_s - request.arrival.at_s


def digest(requests: Iterable[Request]) -> str:
    """Return a fingerprint of everything that happened to a run's requests."""
    told = hashlib.sha256()
    for each in requests:
        told.update(line(each).encode())
    return told.hexdigest()


def line(request: Request) -> str:
    """Return a request's outcome as a line of CSV."""
    first = "" if request.first_token_s is None else repr(request.first_token_s)
    ended = "" if request.ended_s is None else repr(request.ended_s)
    arrival = request.arrival
    return (
        f"{request.key},{arrival.at_s!r},{arrival.deployment},{arrival.prompt_tokens},"
        f"{arrival.output_tokens},{first},{ended},{request.source.value},{request.failure},"
        f"{request.moves},{request.restarts}\n"
    )


def _sum(counts: Iterable[Mapping[Tier, int]]) -> dict[Tier, int]:
    total: dict[Tier, int] = {}
    for each in counts:
        for tier, count in each.items():
            total[tier] = total.get(tier, 0) + count
    return total
