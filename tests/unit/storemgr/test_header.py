"""A safetensors header is believed only if every byte of the file belongs to exactly one tensor.

What the safetensors library refuses, we refuse; what it writes, we read back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from services.storemgr import header
from services.storemgr.header import DTYPE_BITS, Header, Tensor, header_bytes, parse_header
from services.storemgr.refusal import MalformedError

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def file_of(text: str | bytes, data_bytes: int) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + bytes(data_bytes)


def parse_file(content: bytes) -> Header:
    length = header_bytes(content[:8], len(content))
    return parse_header(content[8 : 8 + length], len(content))


def entry(dtype: str, shape: object, begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_sound_header_is_read_in_the_order_of_the_bytes() -> None:
    backwards = dict(reversed(GOOD.items()))
    parsed = parse_file(file_of(json.dumps(backwards), 32))
    assert [tensor.name for tensor in parsed.tensors] == ["a", "b"]
    first = parsed.tensors[0]
    assert first == Tensor(name="a", dtype="F32", shape=(2, 3), begin=0, end=24)
    assert (first.size_bytes, first.elements) == (24, 6)
    assert parsed.data_offset == 8 + len(json.dumps(backwards))


ONE = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
BROKEN: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "truncated"),
    "seven bytes": (b"\1\0\0\0\0\0\0", "truncated"),
    "length 2^64-1": (b"\xff" * 8 + b"{}", "limit is 100000000"),
    "length above the limit": ((100_000_001).to_bytes(8, "little") + b"{}", "limit is"),
    "length beyond the file": ((100).to_bytes(8, "little") + b"{}", "truncated"),
    "length 0": (bytes(8), "not JSON"),
    "a list": (file_of("[]", 0), "must hold an object"),
    "not UTF-8": (file_of(b'{"\xff":1}', 0), "not UTF-8"),
    "a byte order mark": (file_of(b"\xef\xbb\xbf{}", 0), "not JSON"),
    "zero padding": (file_of(b"{}\0\0", 0), "not JSON"),
    "two documents": (file_of("{}{}", 0), "not JSON"),
    "a control character": (file_of(b'{"a\x01":1}', 0), "not JSON"),
    "half a surrogate": (file_of(ONE.replace('"a"', '"\\ud800"'), 4), "surrogate"),
    "nested deep": (file_of('{"a":' + "[" * 5000 + "]" * 5000 + "}", 0), "nested too deep"),
    "a repeated name": (file_of("{" + ONE[1:-1] + "," + ONE[1:], 4), "'a' twice"),
    "a repeated field": (file_of(ONE.replace('"shape"', '"dtype":"F32","shape"'), 4), "twice"),
    "repeated metadata": (file_of('{"__metadata__":{},"__metadata__":{}}', 0), "twice"),
    "metadata that is a list": (file_of('{"__metadata__":[]}', 0), "metadata"),
    "metadata that is null": (file_of('{"__metadata__":null}', 0), "metadata"),
    "metadata with a number": (file_of('{"__metadata__":{"a":1}}', 0), "metadata"),
    "a tensor that is a list": (file_of('{"a":["F32",[1],[0,4]]}', 4), "otherwise than"),
    "a field too few": (file_of('{"a":{"dtype":"F32","shape":[1]}}', 4), "otherwise than"),
    "a field too many": (file_of(ONE.replace('"shape"', '"x":1,"shape"'), 4), "otherwise than"),
    "a nameless tensor": (file_of(ONE.replace('"a"', '""'), 4), "tensor name of 0 bytes"),
    "a name of 513 bytes": (file_of(ONE.replace('"a"', f'"{"n" * 513}"'), 4), "513 bytes"),
    "an unknown type": (file_of(ONE.replace("F32", "F31"), 4), "the unknown type 'F31'"),
    "a type that is a number": (
        file_of(ONE.replace('"F32"', "32"), 4),
        "the unknown type a number",
    ),
    "a shape that is a number": (file_of(ONE.replace("[1]", "1"), 4), "shape"),
    "a negative dimension": (file_of(ONE.replace("[1]", "[-1]"), 4), "-1 in its shape"),
    "minus nothing": (file_of(ONE.replace("[0,4]", "[-0,4]"), 4), "-0"),
    "a fractional dimension": (file_of(ONE.replace("[1]", "[1.0]"), 4), "in its shape"),
    "a dimension that is true": (file_of(ONE.replace("[1]", "[true]"), 4), "a boolean"),
    "a dimension of 2^63": (file_of(ONE.replace("[1]", f"[{2**63}]"), 4), "in its shape"),
    "17 dimensions": (file_of(ONE.replace("[1]", f"[{'1,' * 16}1]"), 4), "17 dimensions"),
    "a product beyond 64 bits": (
        file_of(ONE.replace("[1]", f"[{2**32},{2**32},0]"), 0),
        "too large",
    ),
    "one offset": (file_of(ONE.replace("[0,4]", "[0]"), 4), "1 offsets"),
    "three offsets": (file_of(ONE.replace("[0,4]", "[0,4,4]"), 4), "3 offsets"),
    "offsets that are no list": (file_of(ONE.replace("[0,4]", '"0"'), 4), "offsets"),
    "offsets backwards": (file_of(ONE.replace("[0,4]", "[4,0]"), 4), "lies at 4 to 0"),
    "a shape unlike its bytes": (file_of(ONE.replace("[1]", "[2]"), 4), "takes 8 bytes"),
    "half a byte": (file_of(json.dumps({"a": entry("F4", [3], 0, 2)}), 2), "within a byte"),
    "a hole at the beginning": (file_of(ONE.replace("[0,4]", "[4,8]"), 8), "a hole"),
    "a hole in the middle": (
        file_of(json.dumps({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 3, 5)}), 5),
        "a hole before tensor 'b'",
    ),
    "an overlap": (
        file_of(json.dumps({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}), 3),
        "an overlap before tensor 'b'",
    ),
    "two tensors in one place": (
        file_of(json.dumps({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 0, 2)}), 2),
        "an overlap",
    ),
    "bytes behind the tensors": (file_of(ONE, 5), "1 bytes that belong to no tensor"),
    "bytes without tensors": (file_of("{}", 1), "belong to no tensor"),
    "too few bytes": (file_of(ONE, 3), "truncated: its tensors take 4 bytes, 3 are there"),
    "offsets beyond the file": (
        file_of(json.dumps({"a": entry("U8", [2**40], 0, 2**40)}), 4),
        "truncated",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_with_its_reason(kind: str) -> None:
    content, problem = BROKEN[kind]
    with pytest.raises(MalformedError) as refusal:
        parse_file(content)
    assert problem in str(refusal.value)


# The library takes these; we are stricter on purpose.
STRICTER = {
    "a repeated name",
    "metadata that is null",
    "a tensor that is a list",
    "a field too many",
    "a nameless tensor",
    "a name of 513 bytes",
    "17 dimensions",
}


@pytest.mark.parametrize("kind", sorted(set(BROKEN) - STRICTER))
def test_the_corpus_is_broken_in_the_library_s_eyes_too(kind: str) -> None:
    assert library_refuses(BROKEN[kind][0])


def library_refuses(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)  # type: ignore[no-untyped-call]  # has no types
    except safetensors.SafetensorError:
        return True
    return False


def mutations(content: bytes, seed: int) -> Iterator[bytes]:
    """Yield files that differ from a good one in a few places."""
    random = np.random.default_rng(seed)
    tokens = [
        b"0",
        b"1",
        b"9",
        b"-",
        b'"',
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b".",
        b"e",
        b"\xff",
        b"F16",
    ]
    for _ in range(300):
        mutant = bytearray(content)
        for _ in range(random.integers(1, 4)):
            place = int(random.integers(0, len(mutant)))
            match random.integers(0, 4):
                case 0:
                    mutant[place] = int(random.integers(0, 256))
                case 1:
                    del mutant[place : place + int(random.integers(1, 9))]
                case 2:
                    mutant[place:place] = tokens[int(random.integers(0, len(tokens)))]
                case _:
                    mutant[place : place + 1] = tokens[int(random.integers(0, len(tokens)))]
        yield bytes(mutant)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_library_refuses_we_refuse(seed: int) -> None:
    content = file_of(json.dumps(GOOD | {"__metadata__": {"format": "pt"}}), 32)
    if seed % 2:  # keep the length right, so that mutants die of something else
        raw_mutants = mutations(content[8:-32], seed)
        mutants: Iterator[bytes] = (file_of(raw, 32) for raw in raw_mutants)
    else:
        mutants = mutations(content, seed)
    for mutant in mutants:
        try:
            parse_file(mutant)
        except MalformedError:
            continue
        assert not library_refuses(mutant), mutant


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(DTYPE_BITS)), st.lists(st.integers(0, 40), max_size=4)),
        max_size=6,
    )
)
@settings(deadline=None)
def test_both_accept_every_file_whose_tensors_fit(parts: list[tuple[str, list[int]]]) -> None:
    entries: dict[str, object] = {}
    end = 0
    for number, (dtype, shape) in enumerate(parts):
        bits = DTYPE_BITS[dtype] * math.prod(shape)
        if bits % 8:
            continue
        begin, end = end, end + bits // 8
        entries[f"t{number}"] = entry(dtype, shape, begin, end)
    content = file_of(json.dumps(entries), end)
    assert not library_refuses(content)
    parsed = parse_file(content)
    assert {tensor.name: list(tensor.shape) for tensor in parsed.tensors} == {
        name: fields["shape"] for name, fields in entries.items() if isinstance(fields, dict)
    }


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.lists(st.integers(0, 5), max_size=3),
        max_size=5,
    )
)
@settings(deadline=None)
def test_what_the_library_writes_we_read(shapes: dict[str, list[int]]) -> None:
    arrays = {name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}
    parsed = parse_file(save(arrays, metadata={"format": "np"}))
    assert {tensor.name: list(tensor.shape) for tensor in parsed.tensors} == shapes
    assert all(tensor.dtype == "F16" for tensor in parsed.tensors)


def test_the_number_of_tensors_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "TENSORS_MAX", 1)
    with pytest.raises(MalformedError, match="has 2 tensors, the limit is 1"):
        parse_file(file_of(json.dumps(GOOD), 32))


def test_a_header_of_nothing_but_brackets_is_refused_before_it_is_parsed() -> None:
    bomb = b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"
    with pytest.raises(MalformedError, match="more than 400000 objects and lists"):
        parse_file(file_of(bomb, 0))
