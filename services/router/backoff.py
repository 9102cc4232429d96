"""Pauses between tries that grow to a limit, spread so that routers don't ask in step."""

from __future__ import annotations

import random
from typing import Final

_SPREAD: Final = 0.2
_random = random.Random()  # noqa: S311 - spreads load, guards nothing


class Backoff:
    """Doubles from `first_s` to `longest_s`, each pause spread by 20 % either way."""

    def __init__(self, *, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def reset(self) -> None:
        """Begin with the first pause again: the last try went well."""
        self._next_s = self._first_s

    def pause_s(self) -> float:
        """Return the next pause."""
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._longest_s)
        return pause_s * _random.uniform(1 - _SPREAD, 1 + _SPREAD)
