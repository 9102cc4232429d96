"""What to continue: text, token ids or a conversation, validated once.

What depends on the model (vocabulary, context length, template) is checked by its worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from pydantic_core import from_json

from services.common.errors import InvalidArgumentError, Reason
from services.common.names import shorten

TEXT_BYTES_MAX: Final = 1024 * 1024
TOKENS_MAX: Final = 262_144
MESSAGES_MAX: Final = 1024
ROLE_CHARS_MAX: Final = 64
TOOLS_MAX: Final = 128
_TOKEN_ID_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Plain text. Raises InvalidArgumentError (PROMPT_TOO_LONG) above 1 MiB of UTF-8."""

    text: str

    def __post_init__(self) -> None:
        _check_text_size(_utf8_bytes(self.text))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensPrompt:
    """Token ids as they are. Raises InvalidArgumentError when empty, too long or out of range."""

    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ids:
            raise InvalidArgumentError("prompt must have at least 1 token. Given: 0")
        if len(self.ids) > TOKENS_MAX:
            raise InvalidArgumentError(
                f"prompt must have at most {TOKENS_MAX} tokens. Given: {len(self.ids)}",
                reason=Reason.PROMPT_TOO_LONG,
            )
        for extreme in (min(self.ids), max(self.ids)):
            if not 0 <= extreme <= _TOKEN_ID_MAX:
                raise InvalidArgumentError(
                    f"each token id must be between 0 and {_TOKEN_ID_MAX}. Given: {extreme}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn. Raises InvalidArgumentError when a part of it is too long or is not JSON."""

    role: str
    content: str
    name: str = ""  # who speaks, where several have one role
    tool_call_id: str = ""  # which call it answers
    tool_calls: tuple[str, ...] = ()  # what an assistant called, each a JSON object

    def __post_init__(self) -> None:
        if not 1 <= len(self.role) <= ROLE_CHARS_MAX:
            raise InvalidArgumentError(
                f"role must have 1 to {ROLE_CHARS_MAX} characters. Given: {shorten(self.role)}",
                metadata={"parameter": "role"},
            )
        for what, given in (("name", self.name), ("tool_call_id", self.tool_call_id)):
            if len(given) > ROLE_CHARS_MAX:
                rule = f"{what} must have at most {ROLE_CHARS_MAX} characters"
                raise InvalidArgumentError(
                    f"{rule}. Given: {shorten(given)}",
                    metadata={"parameter": what},
                )
        _check_objects("tool_calls", self.tool_calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A list of turns. Raises InvalidArgumentError when empty, too many or too long together."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[str, ...] = ()  # what the model may call, each a JSON object

    def __post_init__(self) -> None:
        if not 1 <= len(self.messages) <= MESSAGES_MAX:
            raise InvalidArgumentError(
                f"conversation must have 1 to {MESSAGES_MAX} messages. Given: {len(self.messages)}"
            )
        _check_objects("tools", self.tools)
        texts = [message.content for message in self.messages]
        texts += [call for message in self.messages for call in message.tool_calls]
        _check_text_size(sum(map(_utf8_bytes, (*texts, *self.tools))))


Prompt: TypeAlias = TextPrompt | TokensPrompt | Conversation


def _check_objects(what: str, texts: tuple[str, ...]) -> None:
    if len(texts) > TOOLS_MAX:
        raise InvalidArgumentError(
            f"{what} must have at most {TOOLS_MAX} entries. Given: {len(texts)}",
            metadata={"parameter": what},
        )
    for text in texts:
        try:
            is_object = isinstance(from_json(text, cache_strings=False), dict)
        except ValueError:
            is_object = False
        if not is_object:
            raise InvalidArgumentError(
                f"each of {what} must be a JSON object. Given: {shorten(text)}",
                metadata={"parameter": what},
            )


def _utf8_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("text must be valid Unicode: it has a lone surrogate") from error


def _check_text_size(size_bytes: int) -> None:
    if size_bytes > TEXT_BYTES_MAX:
        raise InvalidArgumentError(
            f"prompt must have at most {TEXT_BYTES_MAX} bytes of text. Given: {size_bytes}",
            reason=Reason.PROMPT_TOO_LONG,
        )
