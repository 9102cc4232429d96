"""From tokens to text, one token at a time, and when to stop.

Text is handed on as soon as it is certain and never earlier: half a character and the possible
beginning of a stop text are held back. Pure but for the state of the one sequence it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from services.common.errors import InvalidArgumentError
from services.common.model import FinishReason, TokenLogprob, TokenLogprobs
from services.worker.sampler import Choice

Decode: TypeAlias = Callable[[Sequence[int]], str]
Spell: TypeAlias = Callable[[int], bytes]

_REPLACEMENT: Final = "\ufffd"  # what decoders put for bytes that are no character (yet)
_CONTEXT_TOKENS: Final = 4  # decoders treat the first token of a text differently: keep some before
_CHARACTER_TOKENS_MAX: Final = 4  # a character has at most 4 bytes, a token at least one


class Detokenizer:
    """Turns a growing row of tokens into text.

    They are decoded together with a few tokens before them, from the beginning of a character on:
    SentencePiece's byte fallback gives up on a whole run of bytes with half a character in it.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-(_CONTEXT_TOKENS + 2 * _CHARACTER_TOKENS_MAX) :])
        self._certain = len(self._ids)
        self._align(is_cut=len(self._ids) < len(prompt))
        self._starts = [0]  # where characters begin that are certain

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
        before = self._decode(self._ids[: self._certain])
        if text.startswith(before):
            text = text[len(before) :]
        else:  # broken bytes took back the characters before them
            text = self._decode(self._ids[self._certain : end])
        self._move_on(end)
        return text

    def _move_on(self, certain: int) -> None:
        """Note up to where the text is certain, and forget tokens far before that."""
        self._starts.append(self._certain)
        self._certain = certain
        early = [start for start in self._starts if start <= certain - _CONTEXT_TOKENS]
        if early:
            dropped = early[-1]
            del self._ids[:dropped]
            self._certain -= dropped
            self._starts = [start - dropped for start in self._starts if start >= dropped]

    def _align(self, *, is_cut: bool) -> None:
        """Drop half a character at the beginning, and find the one that the prompt ends within.

        A prompt of tokens may end inside a character (a sequence continued elsewhere does so now
        and then). Whoever decoded it held that character back: it is ours to hand on.
        """
        size = len(self._ids)
        for end in range(size, max(-1, size - _CHARACTER_TOKENS_MAX), -1):
            for start in range(min(_CHARACTER_TOKENS_MAX, end + 1) if is_cut else 1):
                if not self._decode(self._ids[start:end]).endswith(_REPLACEMENT):
                    del self._ids[:start]
                    self._certain = end - start
                    return


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
    logprobs: TokenLogprobs | None = None


class Continuation:
    """Follows one sequence: its text, and whether it goes on."""

    def __init__(
        self,
        *,
        detokenizer: Detokenizer | None,
        max_tokens: int,
        min_tokens: int = 0,
        stop: Collection[str] = (),
        stop_token_ids: Collection[int] = (),
        spell: Spell | None = None,
        delivered: Sequence[int] = (),
    ) -> None:
        """`detokenizer` and `spell` are None where the model has no tokenizer: no text then.

        `delivered` are tokens of the answer that are out already; what is held back of their text
        comes with the next ones. Raises InvalidArgumentError if the answer ended with them.
        """
        self._detokenizer = detokenizer
        self._stop_texts = StopTexts(stop)
        self._stop_token_ids = frozenset(stop_token_ids)
        self._spell = spell
        self._left = max_tokens
        self._held_open = min_tokens
        for token_id in delivered:
            if self._follow(token_id).finish_reason is not None:
                raise InvalidArgumentError("the answer ends within the tokens delivered")

    def accept(self, choice: Choice) -> Decoded:
        """Take the next token. Not to be called after it returned a finish reason."""
        decoded = self._follow(choice.token_id)
        if choice.logprob is None:
            return decoded
        return Decoded(
            decoded.token_id, decoded.text, decoded.finish_reason, self._logprobs(choice)
        )

    def _follow(self, token_id: int) -> Decoded:
        self._left -= 1
        self._held_open -= 1
        may_stop = self._held_open < 0
        if may_stop and token_id in self._stop_token_ids:
            return Decoded(token_id, self._stop_texts.flush(), FinishReason.STOP)
        text = self._detokenizer.push(token_id) if self._detokenizer else ""
        if may_stop:
            text, is_stopped = self._stop_texts.push(text)
            if is_stopped:
                return Decoded(token_id, text, FinishReason.STOP)
        if self._left <= 0:
            return Decoded(token_id, text + self._stop_texts.flush(), FinishReason.LENGTH)
        return Decoded(token_id, text, None)

    def _logprobs(self, choice: Choice) -> TokenLogprobs:
        def one(token_id: int, logprob: float) -> TokenLogprob:
            piece = self._spell(token_id) if self._spell else b""
            return TokenLogprob(token_id=token_id, logprob=logprob, piece=piece)

        return TokenLogprobs(
            chosen=one(choice.token_id, choice.logprob or 0.0),
            top=tuple(one(token_id, logprob) for token_id, logprob in choice.top),
        )
