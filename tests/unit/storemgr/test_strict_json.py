"""JSON from outside: nothing but the standard gets through, and nothing large is built first."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storemgr.refusal import MalformedError
from services.storemgr.strict_json import JsonRules, parse_object

RULES = JsonRules(size_bytes_max=1000, containers_max=20, values_max=50)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5))
def test_what_the_standard_allows_comes_back_unchanged(value: dict[str, object]) -> None:
    rules = JsonRules(size_bytes_max=1 << 20, containers_max=10_000, values_max=10_000)
    assert parse_object(json.dumps(value).encode(), rules) == value


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "is not JSON"),
        (b"[]", "must hold an object, not a list"),
        (b"true", "not a boolean"),
        (b"1", "not a number"),
        (b'{"a": 1', "is not JSON at character"),
        (b'{"a": 1} x', "is not JSON"),
        (b'{"a": 1}\0', "is not JSON"),
        (b'{"a": 1, "a": 1}', "has the key 'a' twice"),
        (b'{"b": {"a": 1, "a": 2}}', "has the key 'a' twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": Infinity}', "Infinity"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": 0.' + b"0" * 70 + b"}", "out of range"),
        (b'{"a": -0}', "-0"),
        (b'{"a": 123456789012345678901}', "more than 20 digits"),
        (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        ('{"a": "x"}'.encode("utf-16"), "is not UTF-8"),
        (b'{"\\ud800": 1}', "half a surrogate pair"),
        (b'{"a": ["\\udfff"]}', "half a surrogate pair"),
        (b'{"a": "\x01"}', "is not JSON"),
        (b'{"a": "' + b"x" * 1000 + b'"}', "at most 1000 bytes"),
        (b'{"a": [' + b"[]," * 30 + b"1]}", "more than 20 objects and lists"),
        (b'{"a": [' + b"1," * 60 + b"1]}", "more than 50 values"),
    ],
)
def test_everything_else_is_refused_with_its_reason(raw: bytes, problem: str) -> None:
    with pytest.raises(MalformedError, match=problem):
        parse_object(raw, RULES)


def test_a_whole_surrogate_pair_is_fine() -> None:
    assert parse_object(b'{"a": "\\ud83d\\ude00"}', RULES) == {"a": "\U0001f600"}


def test_infinities_pass_where_the_rules_let_them() -> None:
    rules = JsonRules(size_bytes_max=100, containers_max=5, values_max=5, infinities=True)
    assert parse_object(b'{"a": [0.0, Infinity]}', rules) == {"a": [0.0, float("inf")]}


def test_nesting_beyond_the_stack_is_a_refusal() -> None:
    rules = JsonRules(size_bytes_max=1 << 20, containers_max=1 << 20, values_max=1 << 20)
    raw = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(MalformedError, match="nested too deep"):
        parse_object(raw, rules)
