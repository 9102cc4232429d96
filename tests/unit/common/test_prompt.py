"""A prompt that exists is within limits whatever its form."""

from collections.abc import Callable
from typing import Any

import pytest

from services.common.errors import InvalidArgumentError, Reason
from services.common.prompt import (
    MESSAGES_MAX,
    TEXT_BYTES_MAX,
    TOKENS_MAX,
    ChatMessage,
    Conversation,
    TextPrompt,
    TokensPrompt,
)

TURN = ChatMessage(role="user", content="hello")


def test_text_is_limited_in_bytes_not_characters() -> None:
    assert TextPrompt(text="é" * (TEXT_BYTES_MAX // 2)).text
    with pytest.raises(InvalidArgumentError, match=r"1048576 bytes.*Given: 1048578") as caught:
        TextPrompt(text="é" * (TEXT_BYTES_MAX // 2 + 1))
    assert caught.value.reason == "PROMPT_TOO_LONG"


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="lone surrogate"):
        TextPrompt(text="a\ud800")


def test_tokens_are_limited_in_number() -> None:
    assert TokensPrompt(ids=(1,) * TOKENS_MAX).ids
    with pytest.raises(InvalidArgumentError, match="Given: 262145") as caught:
        TokensPrompt(ids=(1,) * (TOKENS_MAX + 1))
    assert caught.value.reason == "PROMPT_TOO_LONG"
    with pytest.raises(InvalidArgumentError, match="at least 1 token"):
        TokensPrompt(ids=())


@pytest.mark.parametrize("wrong", [-1, 2**32])
def test_tokens_are_unsigned_32_bit_numbers(wrong: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"Given: {wrong}"):
        TokensPrompt(ids=(5, wrong, 7))


@pytest.mark.parametrize("count", [0, MESSAGES_MAX + 1])
def test_a_conversation_has_one_to_1024_messages(count: int) -> None:
    assert Conversation(messages=(TURN,) * MESSAGES_MAX).messages
    with pytest.raises(InvalidArgumentError, match=f"1 to 1024 messages. Given: {count}"):
        Conversation(messages=(TURN,) * count)


def test_a_conversation_is_limited_in_bytes_all_messages_together() -> None:
    half = ChatMessage(role="user", content="x" * (TEXT_BYTES_MAX // 2))
    assert Conversation(messages=(half, half)).messages
    with pytest.raises(InvalidArgumentError, match="Given: 1048581") as caught:
        Conversation(messages=(half, half, TURN))
    assert caught.value.reason == "PROMPT_TOO_LONG"


@pytest.mark.parametrize("role", ["", "r" * 65])
def test_a_role_has_1_to_64_characters(role: str) -> None:
    with pytest.raises(InvalidArgumentError, match="role must have 1 to 64 characters"):
        ChatMessage(role=role, content="")


@pytest.mark.parametrize(
    ("build", "says", "parameter"),
    [
        (lambda: message(name="x" * 65), "name must have at most 64 characters", "name"),
        (lambda: message(tool_call_id="x" * 65), "tool_call_id must have at most", "tool_call_id"),
        (lambda: message(tool_calls=("[]",)), "each of tool_calls must be a JSON", "tool_calls"),
        (
            lambda: message(tool_calls=("{}",) * 129),
            "at most 128 entries. Given: 129",
            "tool_calls",
        ),
        (lambda: Conversation(messages=(message(),), tools=("{",)), "each of tools must", "tools"),
        (
            lambda: Conversation(messages=(message(),), tools=("[" * 9999,)),
            "each of tools",
            "tools",
        ),
    ],
)
def test_tools_and_what_belongs_to_them_are_checked(
    build: Callable[[], object], says: str, parameter: str
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        build()
    assert says in refused.value.message
    assert refused.value.metadata["parameter"] == parameter


def test_tools_count_for_the_size_of_a_conversation() -> None:
    half = '{"a":"' + "x" * (TEXT_BYTES_MAX // 2) + '"}'
    Conversation(messages=(message(),), tools=(half,))
    with pytest.raises(InvalidArgumentError) as refused:
        Conversation(messages=(message(tool_calls=(half,)),), tools=(half,))
    assert refused.value.reason == Reason.PROMPT_TOO_LONG


def message(**fields: Any) -> ChatMessage:
    return ChatMessage(role="user", content="", **fields)
