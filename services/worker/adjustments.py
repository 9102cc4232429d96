"""What changes a row of logits before a token is chosen from it: bias, penalties, no early end.

Each adjustment follows one sequence. Its state is a function of the prompt and the tokens of the
answer, so feeding it the same tokens elsewhere makes it the same again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.common.sampling import Sampling

Row: TypeAlias = NDArray[np.float32]


class Adjustment(Protocol):
    """Changes logits in place, and learns which tokens the answer has."""

    @property
    def is_active(self) -> bool:
        """Whether `adjust` would change anything now."""

    def adjust(self, logits: Row) -> None:
        """Change a row of logits."""

    def note(self, token_id: int) -> None:
        """Learn the next token of the answer."""


def adjustments_of(
    sampling: Sampling,
    prompt: Sequence[int],
    stop_token_ids: Collection[int],
    guide: Adjustment | None = None,
) -> tuple[Adjustment, ...]:
    """Return what `sampling` asks for, in the order in which it is done."""
    made: list[Adjustment] = []
    if sampling.repetition_penalty != 1.0:
        made.append(RepetitionPenalty(sampling.repetition_penalty, prompt))
    if sampling.presence_penalty or sampling.frequency_penalty:
        made.append(AnswerPenalty(sampling.presence_penalty, sampling.frequency_penalty))
    if sampling.logit_bias:
        made.append(Bias({each.token_id: each.bias for each in sampling.logit_bias}))
    if guide is not None:
        made.append(guide)
    if sampling.min_tokens and stop_token_ids:
        made.append(HoldOpen(sampling.min_tokens, stop_token_ids))
    return tuple(made)


class RepetitionPenalty:
    """Divides positive and multiplies negative logits of all tokens that there have been."""

    is_active = True

    def __init__(self, factor: float, prompt: Iterable[int]) -> None:
        self._factor = np.float32(factor)
        self._seen = set(prompt)
        self._ids = _indexes(self._seen)

    def adjust(self, logits: Row) -> None:
        """Change a row of logits."""
        if len(self._ids) != len(self._seen):
            self._ids = _indexes(self._seen)
        ids = self._ids[self._ids < len(logits)]  # an embedding may be longer than the head
        chosen = logits[ids]
        logits[ids] = np.where(chosen > 0, chosen / self._factor, chosen * self._factor)

    def note(self, token_id: int) -> None:
        """Learn the next token of the answer."""
        self._seen.add(token_id)


class AnswerPenalty:
    """Takes something off the logits of tokens that the answer has, once and for each time."""

    def __init__(self, presence: float, frequency: float) -> None:
        self._presence = presence
        self._frequency = frequency
        self._penalties: dict[int, float] = {}

    @property
    def is_active(self) -> bool:
        """Whether the answer has a token."""
        return bool(self._penalties)

    def adjust(self, logits: Row) -> None:
        """Change a row of logits."""
        _add(logits, self._penalties, -1.0)

    def note(self, token_id: int) -> None:
        """Learn the next token of the answer."""
        before = self._penalties.get(token_id, self._presence)
        self._penalties[token_id] = before + self._frequency


class Bias:
    """Adds the caller's own numbers."""

    is_active = True

    def __init__(self, biases: dict[int, float]) -> None:
        self._biases = biases

    def adjust(self, logits: Row) -> None:
        """Change a row of logits."""
        _add(logits, self._biases, 1.0)

    def note(self, token_id: int) -> None:
        """Learn nothing: a bias stays."""


class HoldOpen:
    """Keeps tokens that would end the sequence from being chosen too early."""

    def __init__(self, min_tokens: int, stop_token_ids: Collection[int]) -> None:
        self._left = min_tokens
        self._stops = _indexes(stop_token_ids)

    @property
    def is_active(self) -> bool:
        """Whether it is too early to end."""
        return self._left > 0

    def adjust(self, logits: Row) -> None:
        """Rule the stop tokens out, unless nothing else can be chosen."""
        if not self.is_active:
            return
        stops = self._stops[self._stops < len(logits)]
        kept = logits[stops]
        logits[stops] = -np.inf
        if not np.isfinite(logits.max()):
            logits[stops] = kept

    def note(self, token_id: int) -> None:  # noqa: ARG002 - any token counts
        """Count the next token of the answer."""
        self._left -= 1


def _indexes(ids: Iterable[int]) -> NDArray[np.intp]:
    return np.fromiter(ids, dtype=np.intp)


def _add(logits: Row, numbers: dict[int, float], factor: float) -> None:
    ids = _indexes(numbers)
    values = np.fromiter(numbers.values(), dtype=np.float32) * np.float32(factor)
    if len(ids) and ids.max() >= len(logits):
        is_there = ids < len(logits)
        ids, values = ids[is_there], values[is_there]
    logits[ids] += values
