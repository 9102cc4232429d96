"""Choose the next tokens of one sequence, each from a row of logits.

What is chosen is a function of the sampling parameters, the prompt and the tokens so far; the only
random number of a token is drawn from (seed, position) with the counter-based generator Philox,
never from a generator's state. So a sequence that is continued elsewhere, or decoded among other
neighbours, goes on as it would have gone on undisturbed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InternalError, InvalidArgumentError, Reason
from services.common.sampling import Sampling
from services.worker.adjustments import Adjustment, adjustments_of

Logits: TypeAlias = NDArray[np.float32]
_Weights: TypeAlias = NDArray[np.float64]
_NUCLEUS_FIRST: Final = 1024


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, and how likely it and others were if that was asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # the most likely tokens, most likely first


class Sampler:
    """Belongs to one sequence, and to the thread that decodes it."""

    def __init__(self, sampling: Sampling, adjustments: Sequence[Adjustment]) -> None:
        self._sampling = sampling
        self._adjustments = adjustments

    @classmethod
    def of(
        cls,
        sampling: Sampling,
        prompt: Sequence[int],
        *,
        delivered: Sequence[int] = (),
        stop_token_ids: Collection[int] = (),
        vocabulary: int | None = None,
        guide: Adjustment | None = None,
    ) -> Sampler:
        """Return the sampler of a sequence whose answer begins with the tokens `delivered`.

        `stop_token_ids` are all tokens that end it; `guide` keeps it to its constraint, and has
        seen nothing of it yet. `sampling.seed` must be set unless greedy.
        Raises InvalidArgumentError if a bias is for a token outside `vocabulary`.
        """
        for each in sampling.logit_bias:
            if vocabulary is not None and each.token_id >= vocabulary:
                raise InvalidArgumentError(
                    f"each token id of logit_bias must be below {vocabulary}. "
                    f"Given: {each.token_id}",
                    reason=Reason.INVALID_SAMPLING,
                    metadata={"parameter": "logit_bias"},
                )
        sampler = cls(sampling, adjustments_of(sampling, prompt, stop_token_ids, guide))
        for token_id in delivered:
            sampler.note(token_id)
        return sampler

    def choose(self, logits: Logits, position: int) -> Choice:
        """Return the token that follows `position` tokens; `logits` stay as they are.

        Call it once for each position: what it returns is part of the sequence from then on.
        Raises InternalError (ENGINE_FAILED) if the logits are not numbers.
        """
        refuse_unless_finite(logits)
        token_id = choose(self._adjusted(logits), self._sampling, position)
        self.note(token_id)
        wanted = self._sampling.top_logprobs
        if wanted is None:
            return Choice(token_id)
        return _with_logprobs(logits, token_id, wanted)

    def note(self, token_id: int) -> None:
        """Take a token of the answer into account that was chosen elsewhere."""
        for each in self._adjustments:
            each.note(token_id)

    def _adjusted(self, logits: Logits) -> Logits:
        if not any(each.is_active for each in self._adjustments):
            return logits
        adjusted = logits.copy()
        for each in self._adjustments:
            each.adjust(adjusted)
        return adjusted


def choose(logits: Logits, sampling: Sampling, position: int) -> int:
    """Return the token that follows `position` tokens. `sampling.seed` must be set unless greedy.

    Raises InternalError (ENGINE_FAILED) if the logits are not numbers. Logits of minus infinity
    are fine: such a token is never chosen.
    """
    best = refuse_unless_finite(logits)
    if sampling.is_greedy or sampling.top_k == 1:
        return best
    if sampling.seed is None:
        raise ValueError("a sampled sequence needs a seed")
    kept = _most_likely(logits, sampling.top_k)
    weights = _weights(logits if kept is None else logits[kept], sampling.temperature)
    if sampling.min_p > 0.0:
        weights[weights < sampling.min_p] = 0.0  # the largest weight is 1
    if sampling.top_p < 1.0:
        _drop_tail(weights, sampling.top_p)
    drawn = _draw(weights, _uniform(sampling.seed, position))
    return drawn if kept is None else int(kept[drawn])


def refuse_unless_finite(logits: Logits) -> int:
    """Return the most likely token. Raises InternalError (ENGINE_FAILED) if there is none."""
    best = int(logits.argmax())  # the first NaN, if there is one
    if not np.isfinite(logits[best]):
        raise InternalError("the model's logits are not finite", reason=Reason.ENGINE_FAILED)
    return best


def _with_logprobs(logits: Logits, token_id: int, count: int) -> Choice:
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    top: NDArray[np.intp] = np.empty(0, dtype=np.intp)
    if count:
        kept = _most_likely(logits, count)
        top = np.arange(len(logits)) if kept is None else kept
        top = top[np.argsort(-logits[top], kind="stable")]
    return Choice(
        token_id,
        float(logprobs[token_id]),
        tuple((int(each), float(logprobs[each])) for each in top if np.isfinite(logprobs[each])),
    )


def _most_likely(logits: Logits | _Weights, top_k: int) -> NDArray[np.intp] | None:
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
    wanted = top_p * float(weights.sum())
    # Mostly few tokens have it all, and sorting those takes a tenth of sorting all.
    few = _most_likely(weights, _NUCLEUS_FIRST)
    if few is None or float(weights[few].sum()) < wanted:
        few = np.arange(len(weights))
    order = few[np.argsort(-weights[few], kind="stable")]
    reached = np.cumsum(weights[order])
    kept = order[: int(np.searchsorted(reached, wanted)) + 1]
    nucleus = weights[kept]
    weights[:] = 0.0
    weights[kept] = nucleus


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
