"""Why each start went where it went, and how it turned out: the newest ones, for who asks.

A placement is a start from its first request to its end: its choices, its loads and the requests
that it served. It is found by its own id, by an instance that came of it, or by a request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from services.common.model import StartReport
from services.scheduler import actions
from services.scheduler.actions import Action
from services.scheduler.choice import Candidate, Choice

PLACEMENTS_MAX: Final = 4096
NAMES_MAX: Final = 32_768  # requests and instances by which they are found
CHOICES_MAX: Final = 16  # of one placement; the first and the newest stay


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One choice, and when."""

    at_s: float
    choice: Choice


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One load and how it went."""

    instance_id: str
    expected: Candidate
    ordered_s: float
    ended_s: float
    report: StartReport | None  # None: it failed
    reason: str = ""  # why, if so


@dataclass(slots=True, kw_only=True)
class Placement:
    """All that is kept of one start."""

    placement_id: str
    deployment: str
    began_s: float
    choices: list[Chosen] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    served: dict[str, StartReport] = field(default_factory=dict)  # requests granted


class Explanations:
    """The newest placements."""

    def __init__(self) -> None:
        self._placements: OrderedDict[str, Placement] = OrderedDict()
        self._names: OrderedDict[str, str] = OrderedDict()  # placement by request or instance

    def note(self, now_s: float, done: Iterable[Action]) -> None:
        """Take in what a decision told."""
        for action in done:
            match action:
                case actions.Explain():
                    self._explain(now_s, action)
                case actions.StartLoad():
                    self._name(action.instance_id, action.placement_id)
                case actions.Outcome():
                    self._end(now_s, action)
                case actions.Grant():
                    self._grant(action)
                case _:
                    pass

    def find(self, name: str) -> Placement | None:
        """Return the placement of an id: its own, an instance's or a request's."""
        return self._placements.get(self._names.get(name, name))

    def _explain(self, now_s: float, told: actions.Explain) -> None:
        placement = self._placements.get(told.placement_id)
        if placement is None:
            placement = self._placements[told.placement_id] = Placement(
                placement_id=told.placement_id, deployment=told.deployment, began_s=now_s
            )
            if len(self._placements) > PLACEMENTS_MAX:
                self._placements.popitem(last=False)
        placement.choices.append(Chosen(at_s=now_s, choice=told.choice))
        if len(placement.choices) > CHOICES_MAX:
            del placement.choices[1]
        for request_id in told.request_ids:
            self._name(_asked(request_id), told.placement_id)

    def _end(self, now_s: float, told: actions.Outcome) -> None:
        if (placement := self._placements.get(told.placement_id)) is None:
            return
        placement.attempts.append(
            Attempt(
                instance_id=told.instance_id,
                expected=told.expected,
                ordered_s=told.ordered_s,
                ended_s=now_s,
                report=told.report,
                reason="" if told.error is None else told.error.reason,
            )
        )
        del placement.attempts[:-CHOICES_MAX]

    def _grant(self, told: actions.Grant) -> None:
        """Note a request's own phases; a warm one is found by the start of its instance."""
        placement_id = self._names.get(told.route.instance_id)
        placement = None if placement_id is None else self._placements.get(placement_id)
        if placement is None or placement_id is None:
            return
        request_id = _asked(told.request_id)
        self._name(request_id, placement_id)
        placement.served[request_id] = told.start
        if len(placement.served) > CHOICES_MAX:
            del placement.served[next(iter(placement.served))]

    def _name(self, name: str, placement_id: str) -> None:
        self._names[name] = placement_id
        self._names.move_to_end(name)
        if len(self._names) > NAMES_MAX:
            self._names.popitem(last=False)


def _asked(grant_id: str) -> str:
    """Return the request's id as its caller knows it; for a grant, routers add 16 digits."""
    request_id, _, suffix = grant_id.rpartition(".")
    is_grant = request_id and len(suffix) == _SUFFIX and all(each in _HEX for each in suffix)
    return request_id if is_grant else grant_id


_SUFFIX: Final = 16
_HEX: Final = frozenset("0123456789abcdef")
