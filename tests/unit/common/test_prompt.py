"""A prompt that exists is within limits whatever its form."""

import pytest

from services.common.errors import InvalidArgumentError
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
