"""From tokens to text, one token at a time, and when to stop.

Text is handed on as soon as it is certain and never earlier: half a character and the possible
beginning of a stop text are held back. Pure but for the state of the one sequence it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from services.common.model import FinishReason

Decode: TypeAlias = Callable[[Sequence[int]], str]

_REPLACEMENT: Final = "\ufffd"  # what decoders put for bytes that are no character (yet)
_CONTEXT_TOKENS: Final = 4  # decoders treat the first token of a text differently: keep some before
_CHARACTER_TOKENS_MAX: Final = 4  # a character has at most 4 bytes, a token at least one


class Detokenizer:
    """Turns a growing row of tokens into text."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-(_CONTEXT_TOKENS + _CHARACTER_TOKENS_MAX) :])
        self._certain = len(self._ids)
        # A prompt of tokens may end inside a character (a sequence continued elsewhere does so
        # now and then). Whoever decoded it held that character back: it is ours to hand on.
        for end in range(len(self._ids), len(self._ids) - _CHARACTER_TOKENS_MAX, -1):
            if end >= 0 and not decode(self._ids[:end]).endswith(_REPLACEMENT):
                self._certain = end
                break

    def push(self, token_id: int) -> str:
        """Add a token and return the text that became certain."""
        self._ids.append(token_id)
        end = len(self._ids)
        text = self._decode(self._ids)
        if text.endswith(_REPLACEMENT):
            if end - self._certain <= _CHARACTER_TOKENS_MAX:
                return ""
            # Too long for one character: all but the last bytes are broken for good.
            end -= _CHARACTER_TOKENS_MAX - 1
            text = self._decode(self._ids[:end])
        text = text[len(self._decode(self._ids[: self._certain])) :]
        dropped = max(0, self._certain - _CONTEXT_TOKENS)
        del self._ids[:dropped]
        self._certain = end - dropped
        return text


class StopTexts:
    """Ends a text before the first of some stop texts."""

    def __init__(self, stops: Collection[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; return what is certain, and whether a stop text has come."""
        text = self._held + text
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self._held = ""
            return text[:found], True
        certain = len(text) - self._longest_beginning(text)
        self._held = text[certain:]
        return text[:certain], False

    def flush(self) -> str:
        """Return what was held back: no stop text will come any more."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """Return how many of the last characters could be the beginning of a stop text."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )


@dataclass(frozen=True, slots=True)
class Decoded:
    """A token, the text that became certain with it, and why the sequence ends with it if so."""

    token_id: int
    text: str
    finish_reason: FinishReason | None


class Continuation:
    """Follows one sequence: its text, and whether it goes on."""

    def __init__(
        self,
        *,
        detokenizer: Detokenizer | None,
        max_tokens: int,
        stop: Collection[str] = (),
        stop_token_ids: Collection[int] = (),
    ) -> None:
        self._detokenizer = detokenizer  # None: the model has no tokenizer, the text stays empty
        self._stop_texts = StopTexts(stop)
        self._stop_token_ids = frozenset(stop_token_ids)
        self._left = max_tokens

    def accept(self, token_id: int) -> Decoded:
        """Take the next token. Not to be called after it returned a finish reason."""
        self._left -= 1
        if token_id in self._stop_token_ids:
            return Decoded(token_id, self._stop_texts.flush(), FinishReason.STOP)
        pushed = self._detokenizer.push(token_id) if self._detokenizer else ""
        text, is_stopped = self._stop_texts.push(pushed)
        if is_stopped:
            return Decoded(token_id, text, FinishReason.STOP)
        if self._left <= 0:
            return Decoded(token_id, text + self._stop_texts.flush(), FinishReason.LENGTH)
        return Decoded(token_id, text, None)
