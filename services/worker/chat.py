"""Conversations as chat templates want them: turns and tools as plain Python values."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from jinja2 import Environment
from pydantic_core import from_json

from services.common.errors import InvalidArgumentError, Reason
from services.common.names import shorten
from services.common.prompt import ChatMessage, Conversation

_TOOLS: Final = "tools"


def turns_of(conversation: Conversation) -> list[dict[str, Any]]:
    """Return the turns; what a turn does not have, it has no key for."""
    return [_turn(message) for message in conversation.messages]


def tools_of(conversation: Conversation) -> list[Any] | None:
    """Return what the model may call, or None if there is nothing."""
    return [from_json(tool) for tool in conversation.tools] or None


def refuse_unless_shown(template: str) -> None:
    """Raise InvalidArgumentError (NO_TOOLS) if a template does not look at tools."""
    names = (value for _, kind, value in Environment().lex(template) if kind == "name")  # noqa: S701 - nothing is rendered
    if _TOOLS not in names:
        raise InvalidArgumentError(
            "the model's chat template takes no tools", reason=Reason.NO_TOOLS
        )


def refuse_control_tokens(value: object, control_tokens: Collection[str]) -> None:
    """Raise InvalidArgumentError if a key has a control token in it.

    In values they are encoded as plain text, but keys are not looked at there: whoever writes one
    into a key could write another turn into the conversation.
    """
    for key in _keys(value):
        if any(token in key for token in control_tokens):
            raise InvalidArgumentError(
                f"names in tools must have no control tokens. Given: {shorten(key)}"
            )


def _turn(message: ChatMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        turn["name"] = message.name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [from_json(call) for call in message.tool_calls]
    return turn


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield str(key)
            yield from _keys(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _keys(entry)
