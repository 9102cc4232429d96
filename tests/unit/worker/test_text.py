"""Text is handed on as soon as it is certain and never earlier: no half character, no stop text."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgumentError
from services.common.model import FinishReason, TokenLogprob, TokenLogprobs
from services.worker.sampler import Choice
from services.worker.text import Continuation, Decode, Detokenizer, StopTexts

REPLACEMENT = "\ufffd"


def bytewise(ids: Sequence[int]) -> str:
    """Decode tokens that are single bytes, as byte-level tokenizers do."""
    return bytes(ids).decode(errors="replace")


def words(*vocabulary: str) -> Decode:
    """Return a decoder that, like SentencePiece's, drops the space before the first token."""
    return lambda ids: "".join(vocabulary[token] for token in ids).removeprefix(" ")


def pushed(text: str, prompt: bytes = b"") -> list[str]:
    detokenizer = Detokenizer(bytewise, tuple(prompt))
    return [detokenizer.push(byte) for byte in text.encode()]


def test_a_character_comes_with_its_last_byte() -> None:
    assert pushed("a\u20acb") == ["a", "", "", "\u20ac", "b"]


@given(st.text(max_size=40), st.text(max_size=10))
def test_the_pieces_make_up_the_text_whatever_it_is(text: str, prompt: str) -> None:
    if REPLACEMENT in text or prompt.endswith(REPLACEMENT):
        return  # the same as an unfinished character; see below
    pieces = pushed(text, prompt.encode())
    assert "".join(pieces) == text
    assert all(REPLACEMENT not in piece for piece in pieces)


def test_a_character_begun_in_the_prompt_is_finished_once() -> None:
    euro = "\u20ac".encode()
    detokenizer = Detokenizer(bytewise, (*b"x", *euro[:2]))
    assert [detokenizer.push(byte) for byte in (euro[2], *b"y")] == ["\u20ac", "y"]


def test_bytes_that_are_no_character_do_not_hold_the_text_for_ever() -> None:
    detokenizer = Detokenizer(bytewise, b"")
    pieces = [detokenizer.push(0x80) for _ in range(20)]
    assert "".join(pieces).startswith(REPLACEMENT * 10)
    assert detokenizer.push(ord("a")).endswith("a")
    assert detokenizer.push(ord("b")) == "b"


def test_an_unfinished_character_after_broken_bytes_is_not_torn() -> None:
    detokenizer = Detokenizer(bytewise, b"")
    pieces = [detokenizer.push(byte) for byte in (b"\x80" * 9 + "\U0001f600".encode())]
    assert pieces[-1].endswith("\U0001f600")
    assert "".join(pieces).count("\U0001f600") == 1


def test_spaces_between_words_survive_decoders_that_drop_the_first() -> None:
    detokenizer = Detokenizer(words(" the", " cat", " sat"), (0,))
    assert [detokenizer.push(token) for token in (1, 2, 0)] == [" cat", " sat", " the"]


def test_the_window_stays_short() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return bytewise(ids)

    detokenizer = Detokenizer(decode, tuple(b"p" * 1000))
    for byte in b"x" * 500:
        detokenizer.push(byte)
    assert longest <= 16


def test_text_before_a_stop_text_is_kept_and_the_rest_dropped() -> None:
    assert StopTexts(["STOP"]).push("ab STOP cd") == ("ab ", True)


def test_a_stop_text_across_pieces_is_found_and_never_shown() -> None:
    stops = StopTexts(["\n\nUser:"])
    assert stops.push("yes\n") == ("yes", False)
    assert stops.push("\nUs") == ("", False)
    assert stops.push("er: no") == ("", True)


def test_what_only_looked_like_a_stop_text_is_handed_on() -> None:
    stops = StopTexts(["abcd"])
    assert stops.push("xab") == ("x", False)
    assert stops.push("abc") == ("ab", False)
    assert stops.push("e") == ("abce", False)
    assert stops.push("ab") == ("", False)
    assert stops.flush() == "ab"
    assert stops.flush() == ""


def test_the_earliest_of_several_stop_texts_counts() -> None:
    assert StopTexts(["late", "ear"]).push("x early late") == ("x ", True)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_cutting_a_text_does_not_change_where_it_stops(text: str, stops: list[str]) -> None:
    found = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    filtered = StopTexts(stops)
    shown, end = "", 0
    for letter in text:
        end += 1
        piece, is_stopped = filtered.push(letter)
        shown += piece
        if is_stopped:
            break
    else:
        assert not found
        assert shown + filtered.flush() == text
        return
    assert end == min(found)  # the first to be complete
    assert text.startswith(shown)
    assert text[len(shown) : end] in stops


def continuation(max_tokens: int = 10, **stops: object) -> Continuation:
    return Continuation(
        detokenizer=Detokenizer(bytewise, b""),
        max_tokens=max_tokens,
        **stops,  # type: ignore[arg-type]
    )


def test_max_tokens_ends_with_length_and_the_held_text() -> None:
    follows = continuation(2, stop=["bc"])
    assert follows.accept(Choice(ord("a"))).finish_reason is None
    last = follows.accept(Choice(ord("b")))
    assert (last.text, last.finish_reason) == ("b", FinishReason.LENGTH)


def test_a_stop_token_ends_without_text_of_its_own() -> None:
    follows = continuation(stop=["bc"], stop_token_ids=[ord("!")])
    follows.accept(Choice(ord("b")))
    last = follows.accept(Choice(ord("!")))
    assert (last.token_id, last.text, last.finish_reason) == (ord("!"), "b", FinishReason.STOP)


def test_a_stop_text_ends_with_the_token_that_completes_it() -> None:
    follows = continuation(stop=["bc"])
    assert follows.accept(Choice(ord("a"))).text == "a"
    assert follows.accept(Choice(ord("b"))).text == ""
    last = follows.accept(Choice(ord("c")))
    assert (last.token_id, last.text, last.finish_reason) == (ord("c"), "", FinishReason.STOP)


def test_a_stop_at_the_last_allowed_token_is_a_stop() -> None:
    assert continuation(1, stop_token_ids=[1]).accept(Choice(1)).finish_reason is FinishReason.STOP
    assert continuation(1, stop=["a"]).accept(Choice(ord("a"))).finish_reason is FinishReason.STOP


def test_half_a_character_is_not_shown_at_the_end_either() -> None:
    follows = continuation(2)
    follows.accept(Choice("\u20ac".encode()[0]))
    assert follows.accept(Choice("\u20ac".encode()[1])).text == ""


def test_without_a_tokenizer_tokens_come_and_text_does_not() -> None:
    follows = Continuation(detokenizer=None, max_tokens=2, stop=["a"])
    assert follows.accept(Choice(1)).text == ""
    assert follows.accept(Choice(2)).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("prompt", [b"", b"\xe2", b"\xe2\x82", b"\x80" * 9])
def test_any_prompt_of_tokens_will_do(prompt: bytes) -> None:
    detokenizer = Detokenizer(bytewise, tuple(prompt))
    assert detokenizer.push(ord("a")).endswith("a")


def test_before_min_tokens_no_stop_counts() -> None:
    follows = continuation(8, min_tokens=2, stop=["ab"], stop_token_ids=[ord("!")])
    assert [follows.accept(Choice(ord(letter))).finish_reason for letter in "!a"] == [None, None]
    assert follows.accept(Choice(ord("b"))).text == "b"  # the stop text began too early
    assert follows.accept(Choice(ord("!"))).finish_reason is FinishReason.STOP


def test_an_answer_goes_on_behind_what_was_delivered() -> None:
    euro = "\u20ac".encode()
    told = continuation(8, stop=["END"])
    begun = [told.accept(Choice(byte)) for byte in (*b"xE", euro[0])]
    assert [each.text for each in begun] == ["x", "", ""]
    goes_on = continuation(8, stop=["END"], delivered=(*b"xE", euro[0]))
    for byte in (*euro[1:], *b"EN"):
        assert goes_on.accept(Choice(byte)) == told.accept(Choice(byte))
    last = goes_on.accept(Choice(ord("D")))
    assert last == told.accept(Choice(ord("D")))
    assert last.finish_reason is FinishReason.STOP  # the last of eight, and a stop all the same


@pytest.mark.parametrize("stops", [{"stop": ["b"]}, {"stop_token_ids": [ord("b")]}, {}])
def test_an_answer_that_has_ended_does_not_go_on(stops: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match="ends within"):
        continuation(2, **stops, delivered=b"abc")


def test_logprobs_come_with_the_bytes_of_their_tokens() -> None:
    follows = continuation(8, spell=lambda token: bytes([token]))
    decoded = follows.accept(Choice(0xE2, -0.5, ((0xE2, -0.5), (0x61, -1.25))))
    assert decoded.text == ""
    assert decoded.logprobs == TokenLogprobs(
        chosen=TokenLogprob(token_id=0xE2, logprob=-0.5, piece=b"\xe2"),
        top=(
            TokenLogprob(token_id=0xE2, logprob=-0.5, piece=b"\xe2"),
            TokenLogprob(token_id=0x61, logprob=-1.25, piece=b"a"),
        ),
    )
    assert follows.accept(Choice(0x61)).logprobs is None
