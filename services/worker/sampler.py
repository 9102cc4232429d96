"""Choose the next token from a row of logits: pure functions of (logits, sampling, position).

The only random number of a token is drawn from (seed, position) with the counter-based generator
Philox, never from a generator's state. So a sequence that is continued elsewhere, or decoded among
other neighbours, draws what it would have drawn undisturbed.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InternalError, Reason
from services.common.sampling import Sampling

Logits: TypeAlias = NDArray[np.float32]
_Weights: TypeAlias = NDArray[np.float64]


def choose(logits: Logits, sampling: Sampling, position: int) -> int:
    """Return the token that follows `position` tokens. `sampling.seed` must be set unless greedy.

    Raises InternalError (ENGINE_FAILED) if the logits are not numbers. Logits of minus infinity
    are fine: such a token is never chosen.
    """
    best = int(logits.argmax())  # the first NaN, if there is one
    if not np.isfinite(logits[best]):
        raise InternalError("the model's logits are not finite", reason=Reason.ENGINE_FAILED)
    if sampling.is_greedy or sampling.top_k == 1:
        return best
    if sampling.seed is None:
        raise ValueError("a sampled sequence needs a seed")
    kept = _most_likely(logits, sampling.top_k)
    weights = _weights(logits if kept is None else logits[kept], sampling.temperature)
    if sampling.top_p < 1.0:
        _drop_tail(weights, sampling.top_p)
    drawn = _draw(weights, _uniform(sampling.seed, position))
    return drawn if kept is None else int(kept[drawn])


def _most_likely(logits: Logits, top_k: int) -> NDArray[np.intp] | None:
    """Return the indexes of the `top_k` largest in ascending order, or None to keep all.

    Equal logits at the edge are kept from the lowest index on, so that the choice is definite.
    """
    if not 0 < top_k < len(logits):
        return None
    edge = np.partition(logits, -top_k)[-top_k]
    above = np.flatnonzero(logits > edge)
    ties = np.flatnonzero(logits == edge)[: top_k - len(above)]
    return np.sort(np.concatenate((above, ties)))


def _weights(logits: Logits, temperature: float) -> _Weights:
    """Return numbers in proportion to the probabilities, the largest being 1."""
    shifted = logits.astype(np.float64) - float(logits.max())
    with np.errstate(over="ignore"):  # a tiny temperature drives the others to minus infinity
        weights: _Weights = np.exp(shifted / temperature)
    return weights


def _drop_tail(weights: _Weights, top_p: float) -> None:
    """Set to 0 what is not in the smallest set of most likely tokens that sums to `top_p`."""
    order = np.argsort(-weights, kind="stable")
    reached = np.cumsum(weights[order])
    kept = int(np.searchsorted(reached, top_p * reached[-1])) + 1
    weights[order[kept:]] = 0.0


def _draw(weights: _Weights, uniform: float) -> int:
    """Return index i with probability weights[i] / sum, given a multiple of 2**-53 in [0, 1)."""
    reached = np.cumsum(weights)
    # The product is below the sum, however it is rounded: (1 - 2**-53) * sum is at least half a
    # unit in the last place away from it. So the index found exists and has a weight.
    return int(np.searchsorted(reached, uniform * reached[-1], side="right"))


def _uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that belongs to (seed, position)."""
    key = np.array([seed, position], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key)).random())
