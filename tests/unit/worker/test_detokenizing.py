"""With real tokenizers of both families too, no piece of text ever has half a character in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from services.worker.text import Detokenizer
from tests.unit.worker.backends import byte_fallback, byte_level

REPLACEMENT = "\ufffd"
LETTERS = "ab c\u00e9\u20ac\u65e5\u672c\U0001f600\U0001f468\u200d"
TEXTS = st.text(st.sampled_from(LETTERS), max_size=24)
BACKENDS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}
family = pytest.mark.parametrize("name", BACKENDS)


def decoder(backend: Backend) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(backend.decode(list(ids), skip_special_tokens=True))


def ids_of(backend: Backend, text: str) -> list[int]:
    return list(backend.encode(text, add_special_tokens=False).ids)


def pieces(backend: Backend, prompt: Sequence[int], answer: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(decoder(backend), prompt)
    return [detokenizer.push(token) for token in answer]


@family
@settings(max_examples=150, deadline=None)
@given(prompt=TEXTS, answer=TEXTS)
def test_the_pieces_are_whole_and_make_up_the_text(name: str, prompt: str, answer: str) -> None:
    backend = BACKENDS[name]
    ids = ids_of(backend, "a" + prompt + answer)
    before = ids_of(backend, "a" + prompt)
    if ids[: len(before)] != before:
        return  # a token across the border
    told = pieces(backend, before, ids[len(before) :])
    assert "".join(told) == answer
    assert all(REPLACEMENT not in piece for piece in told)


@family
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, cut=st.integers(0, 40))
def test_an_answer_taken_up_anywhere_goes_on_with_whole_characters(
    name: str, text: str, cut: int
) -> None:
    backend = BACKENDS[name]
    first = len(ids_of(backend, "c"))
    ids = ids_of(backend, "c" + text)
    cut = min(max(cut, first), len(ids))
    begun = pieces(backend, ids[:first], ids[first:cut])
    told = pieces(backend, ids[:cut], ids[cut:])
    assert "".join(begun) + "".join(told) == text
    assert all(REPLACEMENT not in piece for piece in told)


@family
def test_a_long_row_of_long_characters_is_told_character_by_character(name: str) -> None:
    backend = BACKENDS[name]
    text = "\u65e5\u672c\U0001f600" * 20
    ids = ids_of(backend, text)
    told = [piece for piece in pieces(backend, ids_of(backend, "a"), ids) if piece]
    assert "".join(told).lstrip() == text
    assert all(len(piece.lstrip()) <= 1 for piece in told)


@family
@settings(max_examples=60, deadline=None)
@given(tokens=st.lists(st.integers(1, 250), max_size=30))
def test_whatever_tokens_come_the_text_keeps_coming(name: str, tokens: list[int]) -> None:
    backend = BACKENDS[name]
    detokenizer = Detokenizer(decoder(backend), ids_of(backend, "a"))
    for token in tokens:
        detokenizer.push(token)
    letter = ids_of(backend, "b")[-1]
    assert (detokenizer.push(letter) + detokenizer.push(letter)).endswith("bb")
