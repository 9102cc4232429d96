"""The policy that Brisk uses: start each model where it serves soonest.

What it compares is the estimated time to an instance that serves, plus what the instances that
make room are likely to cost those who ask for them next.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from services.scheduler import candidates
from services.scheduler.choice import Ask, Candidate, Choice, Way
from services.scheduler.first_fit import DeviceKey
from services.scheduler.state import State

_STAY_SHARE: Final = 0.8  # elsewhere must take less than this to give up a claim


class Soonest:
    """`state.Policy`: the least cost among the ways that the indexes offer."""

    def choose(self, state: State, ask: Ask) -> Choice:
        """Return the best way to start, and what it was compared with."""
        found: dict[DeviceKey, Candidate] = {}
        _add(found, state, ask, candidates.near(state, ask))
        _add(found, state, ask, candidates.roomy(state, ask))
        if not any(each.way is Way.FREE for each in found.values()):
            _add(found, state, ask, candidates.longest_idle(state, ask))
        if all(each.way is Way.WAIT for each in found.values()):
            _add(found, state, ask, (candidates.to_wait_at(state, ask),))
        considered = sorted(found.values(), key=candidates.cost)
        chosen = _chosen(considered, ask)
        if chosen is not None and chosen.way is Way.WAIT:
            moved = candidates.migrate(state, ask, state.ledger.devices[chosen.device])
            if moved is not None:
                considered.append(moved)
                if not moved.refused and moved.cost_ms < chosen.cost_ms:
                    chosen = moved
        return Choice(chosen, tuple(considered))


def _add(
    found: dict[DeviceKey, Candidate], state: State, ask: Ask, keys: Iterable[DeviceKey]
) -> None:
    for key in keys:
        if key not in found and key.worker_id not in ask.avoided:
            candidate = candidates.at(state, ask, key)
            if candidate is not None:
                found[key] = candidate


def _chosen(considered: list[Candidate], ask: Ask) -> Candidate | None:
    if not considered:
        return None
    best = considered[0]
    for each in considered:
        if each.device == ask.claim and best.way is Way.WAIT:
            # Two predictions of when others end are too vague to change places for.
            return each if best.cost_ms >= _STAY_SHARE * each.cost_ms else best
    return best
