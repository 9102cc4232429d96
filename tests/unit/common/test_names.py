"""Nothing but a small alphabet gets through as a name, and refusals never echo what came."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgumentError
from services.common.names import (
    MODEL_NAME_CHARS_MAX,
    near_matches,
    new_id,
    new_request_id,
    parse_id,
    parse_model_name,
    parse_request_id,
    shorten,
)

ALPHABET = set(string.ascii_letters + string.digits + "._-/")

GOOD = ["m", "opt-1.3b", "facebook/opt-1.3b", "A_b.c-d", "0/9", "a" * 96, "a" * 47 + "/" + "b" * 48]
BAD = [
    "",
    "/",
    "a/",
    "/a",
    "a//b",
    "a/b/c",
    "..",
    "a..b",
    "../etc/passwd",
    "a/../b",
    "a/..",
    ".hidden",
    "a/.b",
    "-a",
    "_a",
    "a--b",
    "a/b--c",
    "a b",
    "a\n",
    "\na",
    "a\x00",
    "a\\b",
    "a:b",
    "a%2e",
    "modèle",
    "\u0430",  # Cyrillic a
    "\uff41",  # full-width a
    "\u0661",  # Arabic digit one
    "a\u202eb",  # right-to-left override
    "a\u200bb",  # zero-width space
    "\U0001f600",
    "\ud800",
    "a" * 97,
    "a" * 10_240,
]


@pytest.mark.parametrize("name", GOOD)
def test_ordinary_names_are_taken_as_they_are(name: str) -> None:
    assert parse_model_name(name) == name


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_other_names_are_refused_with_a_rule_and_a_short_printable_echo(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^model name must .*\. Given: ") as caught:
        parse_model_name(name)
    assert caught.value.reason == "INVALID_NAME"
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


def test_a_long_name_is_refused_with_limit_and_length() -> None:
    with pytest.raises(InvalidArgumentError, match=r"at most 96 characters.*\(10240 characters\)"):
        parse_model_name("x" * 10_240)


@given(st.text(max_size=200) | st.text("a.-/", max_size=7))
def test_what_gets_through_is_safe_as_a_path_and_as_a_key(name: str) -> None:
    try:
        parsed = parse_model_name(name)
    except InvalidArgumentError:
        return
    assert set(parsed) <= ALPHABET
    assert 0 < len(parsed) <= MODEL_NAME_CHARS_MAX
    assert not parsed.startswith(("/", ".", "-"))
    assert ".." not in parsed
    folder = parsed.replace("/", "--")  # as the store names it: no two names share one
    assert parsed == ("/".join(folder.rsplit("--", 1)))


@given(st.text())
def test_a_shortened_value_is_short_printable_and_quoted(value: str) -> None:
    shown = shorten(value)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) < 100
    assert shown[0] in "'\""


@pytest.mark.parametrize("given_id", ["a", "A-1_2.3", "x" * 64])
def test_ids_of_plain_characters_are_taken(given_id: str) -> None:
    assert parse_request_id(given_id) == parse_id(given_id, what="id") == given_id


@pytest.mark.parametrize("given_id", ["", "a b", "a/b", "x" * 65, "a\r\nx-other: 1", "é"])
def test_other_ids_are_refused(given_id: str) -> None:
    with pytest.raises(InvalidArgumentError, match="request id must have 1 to 64") as caught:
        parse_request_id(given_id)
    assert caught.value.reason == "INVALID_ARGUMENT"


def test_new_ids_are_valid_and_never_the_same() -> None:
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(parse_request_id(made) for made in ids)
    assert parse_id(new_id("worker"), what="worker id").startswith("worker-")


def test_a_slip_finds_the_name_that_was_meant_nearest_first() -> None:
    known = ["opt-1.3b", "opt-125m", "Llama-3", "qwen2"]
    assert near_matches("opt-1.3", known)[0] == "opt-1.3b"
    assert near_matches("llama3", known) == ("Llama-3",)
    assert near_matches("zzz", known) == ()
    assert len(near_matches("a", [f"a{i}" for i in range(9)], at_most=2)) == 2
