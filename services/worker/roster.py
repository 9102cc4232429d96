"""The sequences of one model on its device's thread: who waits, who runs, what a step shows.

Sequences join and leave at every step. A step shows the model one token of each sequence that is
being continued and, as far as its time allows, the next part of the prompts of others. When there
is no room for another token the youngest sequence makes way: it keeps its tokens, waits in front of
all that came later, and is shown its tokens again when there is room. Knows nothing of torch.
"""

from __future__ import annotations

import traceback
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, TypeAlias

import structlog

from services.common.clock import monotonic_s
from services.common.errors import BriskError, InternalError, Reason, ResourceExhaustedError
from services.common.log import get_logger
from services.worker import metrics
from services.worker.ports import Decoder, Job, Share, Strand
from services.worker.sampler import Logits
from services.worker.text import Decoded

log = get_logger(__name__)

STEP_TOKENS_MAX: Final = 2048
STEP_TOKENS_MIN: Final = 16
STEP_TOKENS_FIRST: Final = 128  # while it is not known how fast the model is
_STEP_S: Final = 0.25  # what a step should take: whoever cancels, joins or reads waits for it
_WEIGHT: Final = 0.3  # of the newest step in the running mean

_Outcome: TypeAlias = Logits | BriskError | None
_by_age: Final = attrgetter("number")


class Pace:
    """How many tokens a step may show a model, learned from how long its steps take."""

    def __init__(self) -> None:
        self._tokens_per_s = 0.0  # 0: not known

    @property
    def tokens(self) -> int:
        """Return how many tokens the next step should show at most."""
        if not self._tokens_per_s:
            return STEP_TOKENS_FIRST
        return min(max(int(self._tokens_per_s * _STEP_S), STEP_TOKENS_MIN), STEP_TOKENS_MAX)

    def note(self, tokens: int, seconds: float) -> None:
        """Learn from a step. Few tokens take as long as one, so they teach nothing."""
        if tokens < STEP_TOKENS_MIN:
            return
        newest = tokens / max(seconds, 1e-6)
        before = self._tokens_per_s or newest
        self._tokens_per_s = before + _WEIGHT * (newest - before)


class Member:
    """A sequence: the tokens known of it, and its place in the model if it has one."""

    __slots__ = ("job", "number", "strand", "tokens")

    def __init__(self, job: Job, number: int) -> None:
        self.job = job
        self.number = number  # rises with each that comes
        self.tokens = list(job.prompt)
        self.strand: Strand | None = None

    @property
    def pending(self) -> int:
        """Return how many of its tokens the model has not seen."""
        return len(self.tokens) - (self.strand.seen if self.strand is not None else 0)

    def take(self, logits: Logits) -> Decoded:
        """Choose the next token."""
        choice = self.job.sampler.choose(logits, len(self.tokens))
        self.tokens.append(choice.token_id)
        return self.job.continuation.accept(choice)

    def leave(self, *, is_sound: bool) -> None:
        """Free its place."""
        if self.strand is not None:
            self.strand.close(is_sound=is_sound)
            self.strand = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What a step shows of a sequence."""

    member: Member
    tokens: int

    def share(self) -> Share:
        """Return it as a decoder wants it."""
        strand = self.member.strand
        if strand is None:
            raise RuntimeError(f"{self.member.job.ticket} has no place")
        shown = self.member.tokens[strand.seen : strand.seen + self.tokens]
        is_last = strand.seen + self.tokens == len(self.member.tokens)
        return Share(strand=strand, token_ids=shown, wants_logits=is_last)


class Roster:
    """All sequences of one model. Owned by its device's thread."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder: Decoder | None = decoder
        self._waiting: list[Member] = []  # the oldest first
        self._running: dict[str, Member] = {}
        self._pace = Pace()

    def begin(self, job: Job, number: int) -> None:
        """Take a sequence; `number` is higher than all before."""
        self._waiting.append(Member(job, number))

    def end(self, ticket: str, error: BriskError | None) -> bool:
        """End a sequence; return whether it was one of ours."""
        for member in (*self._running.values(), *self._waiting):
            if member.job.ticket == ticket:
                self._finish(member, error)
                return True
        return False

    def close(self, error: BriskError) -> None:
        """End all sequences and let the model go, even if somebody still refers to the roster."""
        for member in (*self._running.values(), *self._waiting):
            self._finish(member, error)
        self._decoder = None

    def plan(self) -> list[list[Turn]]:
        """Return whose turn it is and how much of them is shown, step by step; nothing if nobody's.

        A sequence whose reader is behind has no turn.
        """
        decoder = self._decoder
        if decoder is None or not (self._running or self._waiting):
            return []
        self._admit(decoder)
        ready = [member for member in self._by_age() if member.job.sink.has_room()]
        left = self._pace.tokens - sum(member.pending == 1 for member in ready)
        left = max(left, STEP_TOKENS_MIN)
        turns: list[Turn] = []
        for member in ready:
            tokens = member.pending
            if tokens > 1:
                tokens = min(tokens, left)
                left -= tokens
            if tokens and self._make_room(decoder, member, tokens):
                turns.append(Turn(member, tokens))
        size = decoder.shares_max
        return [turns[start : start + size] for start in range(0, len(turns), size)]

    def run(self, turns: Sequence[Turn]) -> None:
        """Take one step with those of `turns` that have not ended since they were planned."""
        decoder = self._decoder
        turns = [turn for turn in turns if turn.member.strand is not None]
        if decoder is None or not turns:
            return
        began_s = monotonic_s()
        outcomes = _show(decoder, turns)
        self._pace.note(sum(turn.tokens for turn in turns), monotonic_s() - began_s)
        for turn, outcome in zip(turns, outcomes, strict=True):
            self._settle(turn.member, outcome)

    def _by_age(self) -> list[Member]:
        return sorted(self._running.values(), key=_by_age)

    def _admit(self, decoder: Decoder) -> None:
        """Give those who wait a place, in order, until there is no room for the next one."""
        for member in tuple(self._waiting):
            if not member.job.sink.has_room():
                continue  # it has made way before, and its reader is behind
            try:
                member.strand = decoder.open(member.tokens, member.job.tokens_max)
            except Exception as error:  # noqa: BLE001 - a model's code may raise anything
                self._finish(member, _failed(member.job, error))
                continue
            if member.strand is None:
                return
            self._waiting.remove(member)
            self._running[member.job.ticket] = member

    def _make_room(self, decoder: Decoder, member: Member, tokens: int) -> bool:
        """Return whether `member` has room for so many more tokens; younger ones make way."""
        while (strand := member.strand) is not None:
            if decoder.extend(strand, strand.seen + tokens):
                return True
            youngest = max(self._running.values(), key=_by_age)
            if youngest is member and len(self._running) == 1:
                self._finish(member, _too_large())
            else:
                self._make_way(youngest)
        return False

    def _make_way(self, member: Member) -> None:
        del self._running[member.job.ticket]
        member.leave(is_sound=True)
        insort(self._waiting, member, key=_by_age)
        metrics.PREEMPTIONS.inc()

    def _settle(self, member: Member, outcome: _Outcome) -> None:
        decoded: Decoded | None = None
        failure = outcome if isinstance(outcome, BriskError) else None
        if failure is None and member.pending == 0:
            try:
                decoded = member.take(_given(outcome))
            except Exception as error:  # noqa: BLE001 - odd logits must harm their own sequence only
                failure = _failed(member.job, error)
        if failure is not None:
            self._finish(member, failure, is_sound=False)
        elif decoded is not None and decoded.finish_reason is not None:
            self._finish(member, None, decoded)
        elif decoded is not None:
            member.job.sink.put(decoded)

    def _finish(
        self,
        member: Member,
        error: BriskError | None,
        last: Decoded | None = None,
        *,
        is_sound: bool = True,
    ) -> None:
        """Free what a sequence holds, then say so together with its last token."""
        if self._running.pop(member.job.ticket, None) is None:
            self._waiting.remove(member)
        member.leave(is_sound=is_sound)
        if self._decoder is not None and not self._running:
            self._decoder.audit()
        member.job.sink.end(error, last)


def _show(decoder: Decoder, turns: Sequence[Turn]) -> list[_Outcome]:
    """Return what came of each turn. If they fail together, each is tried alone."""
    try:
        return list(decoder.step([turn.share() for turn in turns]))
    except Exception as error:  # noqa: BLE001 - a model's code may raise anything
        if len(turns) == 1:
            return [_failed(turns[0].member.job, error)]
        log.warning("step failed, each sequence is tried alone", sequences=len(turns))
        traceback.clear_frames(error.__traceback__)
    return [_show(decoder, [turn])[0] for turn in turns]


def _given(outcome: _Outcome) -> Logits:
    if outcome is None or isinstance(outcome, BriskError):
        raise RuntimeError("the decoder gave no logits")
    return outcome


def _too_large() -> BriskError:
    return ResourceExhaustedError(
        "the sequence's key/value cache does not fit the instance",
        reason=Reason.INSUFFICIENT_MEMORY,
    )


def _failed(job: Job, error: Exception) -> BriskError:
    """Log what a model's code raised; the caller learns no more than that it did."""
    with structlog.contextvars.bound_contextvars(request_id=job.request_id):
        # As text: a log handler that keeps the error itself would keep the cache with it.
        trace = "".join(traceback.format_exception(error))
        log.error("sequence failed", instance=job.instance_id, exception=trace)
    traceback.clear_frames(error.__traceback__)
    if isinstance(error, BriskError):
        return error
    return InternalError("the model failed on this sequence", reason=Reason.ENGINE_FAILED)
