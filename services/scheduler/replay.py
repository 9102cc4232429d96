"""Decide again what a log says was decided: the same events must give the same actions.

A reign logs how it began and then each event with what was decided, at debug level. Fed with these
lines, the core of the same version comes to the same decisions; the first that differs tells what
a change of the code does to a real day's events.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from services.scheduler.codec import decode, decode_event, encode_actions
from services.scheduler.core import decide, new_state
from services.scheduler.estimates import Priors
from services.scheduler.state import Limits, State

BEGUN = "reign begun"
DECIDED = "decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A decision that came out differently."""

    number: int  # of the decision in its reign, from 0
    event: dict[str, Any]
    logged: list[Any]
    decided: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of a log."""

    reigns: int
    decisions: int
    difference: Difference | None  # the first one; nothing is decided after it


def replay(lines: Iterable[str]) -> Replayed:
    """Decide everything in a scheduler's JSON log again.

    Lines of other kinds, those of other loggers and those before the first reign are passed over.
    Raises ValueError, KeyError or TypeError if a decision's line is not what was logged.
    """
    state: State | None = None
    reigns = decisions = number = 0
    for line in lines:
        fields = _parsed(line)
        if fields.get("message") == BEGUN:
            state, reigns, number = _begun(fields), reigns + 1, 0
        elif fields.get("message") == DECIDED and "input" in fields and state is not None:
            event = decode_event(fields["input"])
            state, done = decide(state, event)
            told = encode_actions(done)
            if told != fields["output"]:
                difference = Difference(
                    number=number, event=fields["input"], logged=fields["output"], decided=told
                )
                return Replayed(reigns=reigns, decisions=decisions, difference=difference)
            decisions, number = decisions + 1, number + 1
    return Replayed(reigns=reigns, decisions=decisions, difference=None)


def _parsed(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    fields = json.loads(line)
    return fields if isinstance(fields, dict) else {}


def _begun(fields: dict[str, Any]) -> State:
    return new_state(
        epoch=fields["epoch"],
        term=fields["term"],
        now_s=fields["now_s"],
        limits=decode(Limits, fields["limits"]),
        priors=decode(Priors, fields["priors"]),
    )
