"""Keep a sequence to a JSON schema, a regular expression or a grammar, by llguidance.

A constraint is tried out in a process of its own, compiled once for a model's tokens, and copied
for each sequence. Every step has a fixed budget of work, the same on every worker.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from services.common.constraint import Constraint
from services.common.errors import InternalError, InvalidArgumentError, Reason
from services.worker.adjustments import Row
from services.worker.grammars import compiled

COMPILED_MAX: Final = 8  # kept for the next sequence; the least recently used one goes first
TRIAL_S_MAX: Final = 8.0  # its processor time is limited, too, but a busy machine gives little
_MESSAGE_CHARS_MAX: Final = 300


class Guide:
    """An Adjustment that lets a sequence have no token but those that lead to a valid answer."""

    is_active = True

    def __init__(self, constraint: Constraint, matcher: LLMatcher, ends: Sequence[int]) -> None:
        self._constraint = constraint
        self._matcher = matcher
        self._ends = list(ends)  # the first one is the one that the matcher knows

    def adjust(self, logits: Row) -> None:
        """Rule out all tokens that lead to no valid answer.

        Raises InvalidArgumentError (INVALID_CONSTRAINT) if finding them took too much work.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._refuse_if_failed()
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little").view(np.bool_)
        if allowed[self._ends[0]]:
            allowed[self._ends] = True
        logits[~allowed] = -np.inf
        if not np.isfinite(logits.max()):
            raise InternalError(
                "the model can choose no token that the constraint allows",
                reason=Reason.ENGINE_FAILED,
            )

    def note(self, token_id: int) -> None:
        """Learn the next token of the answer. Raises InvalidArgumentError if it leads nowhere."""
        if token_id not in self._ends:
            self._matcher.consume_token(token_id)
            self._refuse_if_failed()

    def _refuse_if_failed(self) -> None:
        if self._matcher.is_error():
            raise _failed(self._constraint, self._matcher.get_error())


class Constrainer:
    """Compiles constraints for one model's tokens. Safe to use from several threads."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, ends: Collection[int]
    ) -> None:
        """Read the vocabulary, which takes a moment. `ends` are the end tokens, at least one."""
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise InvalidArgumentError(
                "the model's tokenizer cannot be constrained", reason=Reason.INVALID_CONSTRAINT
            )
        self._ends = sorted(ends)
        self._tokenizer = from_tokenizer(
            tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=self._ends[0]
        )
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def guide(self, constraint: Constraint) -> Guide:
        """Return the guide of a sequence that begins. Blocks for seconds at the worst.

        Raises InvalidArgumentError (INVALID_CONSTRAINT).
        """
        with self._lock:
            matcher = self._compiled.pop(constraint, None)
        if matcher is None:
            matcher = self._compile(constraint)
        with self._lock:
            self._compiled[constraint] = matcher  # as the newest
            if len(self._compiled) > COMPILED_MAX:
                self._compiled.popitem(last=False)
            return Guide(constraint, matcher.deep_copy(), self._ends)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        _try_out(constraint)
        try:
            matcher = compiled(self._tokenizer, str(constraint.kind), constraint.text)
        except ValueError as error:
            raise _failed(constraint, str(error)) from error
        if matcher.is_error():
            raise _failed(constraint, matcher.get_error())
        return matcher


def _try_out(constraint: Constraint) -> None:
    """Have a process of its own compile it first; see `trial`."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "services.worker.trial"],
            input=json.dumps([constraint.kind, constraint.text]).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TRIAL_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _failed(constraint, "compiling it takes too long") from error
    if done.returncode:
        raise _failed(constraint, "compiling it takes too much time, memory or depth")
    if problem := done.stdout.decode(errors="replace"):
        raise _failed(constraint, problem)


def _failed(constraint: Constraint, problem: str) -> InvalidArgumentError:
    words = ascii(" ".join(problem.split())[:_MESSAGE_CHARS_MAX])[1:-1]
    return constraint.refused(f"{constraint.kind} cannot be used: {words}")
