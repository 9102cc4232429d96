"""How each endpoint words its answers: the choices of OpenAI's objects, and their logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from services.router.ports import TokenLogprob, TokenLogprobs

_BYTES: Final = "bytes:"


class Shape(Protocol):
    """How an endpoint words its answers."""

    prefix: str  # of ids
    whole_kind: str
    chunk_kind: str

    def opening(self, index: int) -> dict[str, object] | None:
        """Return the choice of the chunk before the first text, if there is one."""

    def chunk(
        self, index: int, text: str, finish: str | None, logprobs: object
    ) -> dict[str, object]:
        """Return the choice of a chunk."""

    def whole(self, index: int, text: str, finish: str, logprobs: object) -> dict[str, object]:
        """Return the choice of a whole answer."""

    def logprobs(self, tokens: Sequence[TokenLogprobs], offset: int) -> dict[str, object] | None:
        """Return how likely some tokens were, None without any; `offset` characters precede."""


class ChatShape:
    """`/v1/chat/completions`."""

    prefix = "chatcmpl-"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, object] | None:
        """Return the choice that says who speaks."""
        return _choice(index, None, None, delta={"role": "assistant", "content": ""})

    def chunk(
        self, index: int, text: str, finish: str | None, logprobs: object
    ) -> dict[str, object]:
        """Return the choice of a chunk."""
        return _choice(index, finish, logprobs, delta={"content": text} if text else {})

    def whole(self, index: int, text: str, finish: str, logprobs: object) -> dict[str, object]:
        """Return the choice of a whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return _choice(index, finish, logprobs, message=message)

    def logprobs(
        self,
        tokens: Sequence[TokenLogprobs],
        offset: int,  # noqa: ARG002 - a completion's
    ) -> dict[str, object] | None:
        """Return a list of tokens, each with its bytes."""
        if not tokens:
            return None
        content = [
            {**_with_bytes(each.chosen), "top_logprobs": [_with_bytes(one) for one in each.top]}
            for each in tokens
        ]
        return {"content": content, "refusal": None}


class CompletionShape:
    """`/v1/completions`."""

    prefix = "cmpl-"
    whole_kind = chunk_kind = "text_completion"

    def opening(self, index: int) -> dict[str, object] | None:  # noqa: ARG002 - a chat's
        """Return None: a completion begins with its text."""
        return None

    def chunk(
        self, index: int, text: str, finish: str | None, logprobs: object
    ) -> dict[str, object]:
        """Return the choice of a chunk."""
        return _choice(index, finish, logprobs, text=text)

    def whole(self, index: int, text: str, finish: str, logprobs: object) -> dict[str, object]:
        """Return the choice of a whole answer."""
        return _choice(index, finish, logprobs, text=text)

    def logprobs(self, tokens: Sequence[TokenLogprobs], offset: int) -> dict[str, object] | None:
        """Return lists side by side, one entry for each token."""
        if not tokens:
            return None
        names = [spelled(each.chosen.piece) for each in tokens]
        offsets = [offset]
        for name in names[:-1]:
            offsets.append(offsets[-1] + len(name))
        return {
            "tokens": names,
            "token_logprobs": [each.chosen.logprob for each in tokens],
            "top_logprobs": [
                {spelled(one.piece): one.logprob for one in each.top} for each in tokens
            ],
            "text_offset": offsets,
        }


def spelled(piece: bytes) -> str:
    """Return a token's text, or its bytes in hexadecimal if it is no whole characters."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return _BYTES + "".join(f"\\x{byte:02x}" for byte in piece)


def _with_bytes(token: TokenLogprob) -> dict[str, object]:
    return {"token": spelled(token.piece), "logprob": token.logprob, "bytes": list(token.piece)}


def _choice(index: int, finish: str | None, logprobs: object, **members: Any) -> dict[str, object]:
    return {"index": index, **members, "logprobs": logprobs, "finish_reason": finish}
