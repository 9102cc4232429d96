"""The policy that Brisk uses: start each model where it serves soonest.

What it compares is the estimated time to an instance that serves, plus what the instances that
make room are likely to cost those who ask for them next.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from services.scheduler import candidates
from services.scheduler.choice import Ask, Candidate, Choice, Way
from services.scheduler.first_fit import DeviceKey
from services.scheduler.state import State

_SHOWN_MAX: Final = 2  # nodes that cannot be best but are compared all the same, to be shown
_STAY_SHARE: Final = 0.8  # elsewhere must take less than this to give up a claim


class Soonest:
    """`state.Policy`: the least cost among the ways that the indexes offer."""

    def choose(self, state: State, ask: Ask) -> Choice:
        """Return the best way to start, and what it was compared with."""
        search = _Search(state, ask)
        search.look(candidates.near(state, ask))
        search.look(candidates.roomy(state, ask))
        if not search.has_room:
            search.look(candidates.longest_idle(state, ask))
        if all(each.way is Way.WAIT for each in search.found.values()):
            search.look((candidates.to_wait_at(state, ask),))
        considered = sorted(search.found.values(), key=candidates.cost)
        chosen = _chosen(considered, ask)
        if chosen is not None and chosen.way is Way.WAIT:
            moved = candidates.migrate(state, ask, state.ledger.devices[chosen.device])
            if moved is not None:
                considered.append(moved)
                if not moved.refused and moved.cost_ms < chosen.cost_ms:
                    chosen = moved
        return Choice(chosen, tuple(considered))


class _Search:
    """The candidates found so far; a node that cannot do better than the best is passed over."""

    def __init__(self, state: State, ask: Ask) -> None:
        self.found: dict[DeviceKey, Candidate] = {}
        self.has_room = False
        self._state = state
        self._ask = ask
        self._best_ms = math.inf
        self._passed = 0

    def look(self, keys: Iterable[DeviceKey]) -> None:
        """Add what these devices offer."""
        state, ask = self._state, self._ask
        for key in keys:
            if key in self.found or key.worker_id in ask.avoided:
                continue
            if candidates.reach(state, ask, key.node_id).least_ms > self._best_ms:
                self._passed += 1
                if self._passed > _SHOWN_MAX:
                    continue
            candidate = candidates.at(state, ask, key)
            if candidate is not None:
                self.found[key] = candidate
                self.has_room = self.has_room or candidate.way is Way.FREE
                self._best_ms = min(self._best_ms, candidate.cost_ms)


def _chosen(considered: list[Candidate], ask: Ask) -> Candidate | None:
    if not considered:
        return None
    best = considered[0]
    for each in considered:
        if each.device == ask.claim and best.way is Way.WAIT:
            # Two predictions of when others end are too vague to change places for.
            return each if best.cost_ms >= _STAY_SHARE * each.cost_ms else best
    return best
