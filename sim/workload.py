"""Who asks for what, and when: arrivals drawn from a seed.

gamma       one stream with Gamma intervals of a given CV; models drawn by Zipf's law
functions   a stream for each model, like functions in a serverless trace: rates spread over
            orders of magnitude, Gamma intervals of a given CV within each
diurnal     a rate that swings like a day, compressed into the run
flash       a steady stream, and a crowd that comes for one unpopular model
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from random import Random
from typing import Final

from sim.request import Arrival
from sim.shapes import CONTEXT_TOKENS

FUNCTION_SPREAD: Final = 2.0  # standard deviation of the logarithm of a model's rate
DAY_SWING: Final = 0.8
CROWD_FACTOR: Final = 1.0  # the crowd's rate, as a share of all other requests'
CROWD_SHARE: Final = 0.1  # of the run that the crowd stays


class Kind(StrEnum):
    """How requests arrive."""

    GAMMA = "gamma"
    FUNCTIONS = "functions"
    DIURNAL = "diurnal"
    FLASH = "flash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The lengths of prompts and answers: lognormal, by mean and coefficient of variation."""

    name: str
    prompt_tokens: float
    prompt_cv: float
    output_tokens: float
    output_cv: float


# Shaped after the data sets that the ServerlessLLM paper uses: ShareGPT's answers are longer, so
# that a request takes between three and four times as long as one of GSM8K.
GSM8K: Final = Lengths(
    name="gsm8k", prompt_tokens=70, prompt_cv=0.4, output_tokens=130, output_cv=0.45
)
SHAREGPT: Final = Lengths(
    name="sharegpt", prompt_tokens=230, prompt_cv=1.2, output_tokens=420, output_cv=0.9
)
LENGTHS: Final = {each.name: each for each in (GSM8K, SHAREGPT)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What to draw."""

    kind: Kind
    rate: float  # requests a second, on average
    cv: float  # of the intervals
    duration_s: float
    lengths: Lengths
    zipf: float = 1.0  # exponent of the models' popularity


def arrivals(workload: Workload, models: Sequence[str], seed: int) -> Iterator[Arrival]:
    """Yield a workload's arrivals in order; the same for the same arguments, in any process."""
    times = Random(f"times {seed}")
    sizes = Random(f"sizes {seed}")
    named = _functions if workload.kind is Kind.FUNCTIONS else _stream
    for at_s, name in named(workload, models, times, seed):
        if at_s >= workload.duration_s:
            return
        lengths = workload.lengths
        prompt = _length(sizes, lengths.prompt_tokens, lengths.prompt_cv, CONTEXT_TOKENS // 2)
        output = _length(sizes, lengths.output_tokens, lengths.output_cv, CONTEXT_TOKENS - prompt)
        yield Arrival(at_s, name, prompt, output)


def _length(random: Random, mean: float, cv: float, most: int) -> int:
    sigma = math.sqrt(math.log1p(cv * cv))
    drawn = random.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)
    return max(1, min(most, round(drawn)))


def gaps(random: Random, rate: float, cv: float) -> Iterator[float]:
    """Yield Gamma intervals of a mean of 1 / rate."""
    shape = 1.0 / (cv * cv)
    scale = cv * cv / rate
    while True:
        yield random.gammavariate(shape, scale)


def popularity(models: Sequence[str], seed: int) -> list[str]:
    """Return models in the order of how often they are asked for, where Zipf's law says so."""
    popular = list(models)
    Random(f"popularity {seed}").shuffle(popular)
    return popular


def _stream(
    workload: Workload, models: Sequence[str], random: Random, seed: int
) -> Iterator[tuple[float, str]]:
    popular = popularity(models, seed)
    weights = list(accumulate((rank + 1) ** -workload.zipf for rank in range(len(popular))))
    crowd = _crowd(workload)
    at_s = 0.0
    # Drawn as if the rate were constant; a clock that runs faster by day gives the day's rate.
    for gap_s in gaps(random, workload.rate, workload.cv):
        at_s += gap_s
        name = popular[bisect_left(weights, random.random() * weights[-1])]
        if workload.kind is Kind.DIURNAL:
            yield _by_day(at_s, workload.duration_s), name
            continue
        for its_s in crowd.before(at_s):
            yield its_s, popular[-1]
        yield at_s, name


def _by_day(at_s: float, day_s: float) -> float:
    """Return when a clock that runs at 1 + 0.8·sin over a day shows `at_s`."""
    low, high = at_s - day_s, at_s + day_s
    for _ in range(60):
        middle = (low + high) / 2
        turn = 2 * math.pi * middle / day_s
        shown = middle + DAY_SWING * day_s / (2 * math.pi) * (1 - math.cos(turn))
        low, high = (middle, high) if shown < at_s else (low, middle)
    return high


@dataclass(slots=True)
class _Crowd:
    """Evenly spaced requests of a crowd."""

    next_s: float
    gap_s: float
    ends_s: float

    def before(self, at_s: float) -> Iterator[float]:
        while self.next_s < min(at_s, self.ends_s):
            yield self.next_s
            self.next_s += self.gap_s


def _crowd(workload: Workload) -> _Crowd:
    if workload.kind is not Kind.FLASH:
        return _Crowd(math.inf, 1.0, 0.0)
    begins_s = workload.duration_s / 2
    return _Crowd(
        next_s=begins_s,
        gap_s=1.0 / (CROWD_FACTOR * workload.rate),
        ends_s=begins_s + CROWD_SHARE * workload.duration_s,
    )


def _functions(
    workload: Workload, models: Sequence[str], random: Random, _: int
) -> Iterator[tuple[float, str]]:
    shares = [random.lognormvariate(0.0, FUNCTION_SPREAD) for _ in models]
    total = sum(shares)
    streams = []
    for name, share in zip(models, shares, strict=True):
        rate = workload.rate * share / total
        streams.append(_own(name, rate, workload, Random(f"{name} {random.random()}")))
    return heapq.merge(*streams)


def _own(name: str, rate: float, workload: Workload, random: Random) -> Iterator[tuple[float, str]]:
    """Yield one model's arrivals, begun long before the run so that not all begin with a burst."""
    at_s = -random.uniform(1.0, 2.0) * workload.cv * workload.cv / rate
    for gap_s in gaps(random, rate, workload.cv):
        at_s += gap_s
        if at_s >= workload.duration_s:
            return
        if at_s >= 0.0:
            yield at_s, name
