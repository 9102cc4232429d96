"""Safetensors files, sound and broken, for the tests of whatever reads headers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}
ONE = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


def file_of(text: str | bytes, data_bytes: int) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + bytes(data_bytes)


def entry(dtype: str, shape: object, begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _one(old: str, new: str, data_bytes: int = 4) -> bytes:
    return file_of(ONE.replace(old, new), data_bytes)


def _two(first: tuple[int, int], second: tuple[int, int], data_bytes: int) -> bytes:
    entries = {
        "a": entry("U8", [first[1] - first[0]], *first),
        "b": entry("U8", [second[1] - second[0]], *second),
    }
    return file_of(json.dumps(entries), data_bytes)


# What is wrong, the file, the tensor that is blamed, and words of the reason.
BROKEN: dict[str, tuple[bytes, str | None, str]] = {
    "no bytes": (b"", None, "truncated: 0 bytes"),
    "seven bytes": (b"\1\0\0\0\0\0\0", None, "truncated: 7 bytes"),
    "length 2^64-1": (b"\xff" * 8 + b"{}", None, f"{2**64 - 1} bytes, the limit is 8388608"),
    "length above the limit": (b"\1\0\x80\0\0\0\0\0{}", None, "8388609 bytes, the limit is"),
    "length beyond the file": (b"\x64\0\0\0\0\0\0\0{}", None, "header of 100 bytes in a file of"),
    "length 0": (bytes(8), None, "there must be '{'"),
    "a list": (file_of("[]", 0), None, "at byte 0: there must be '{'"),
    "not UTF-8": (file_of(b'{"\xff":1}', 0), None, "not JSON in UTF-8"),
    "a byte order mark": (file_of(b"\xef\xbb\xbf{}", 0), None, "there must be '{'"),
    "zero padding": (file_of(b"{}\0\0", 0), None, "there must be nothing more"),
    "two documents": (file_of("{}{}", 0), None, "there must be nothing more"),
    "a comma at the end": (file_of(ONE[:-1] + ",}", 4), None, "there must be a string"),
    "no end": (file_of(ONE[:-1], 4), None, "there must be '}'"),
    "a control character": (file_of(b'{"a\x01":1}', 0), None, "not JSON in UTF-8"),
    "half a surrogate": (_one('"a"', '"\\ud800"'), None, "not JSON in UTF-8"),
    "nested deep": (file_of('{"a":' + "[" * 5000 + "]" * 5000 + "}", 0), "a", "must be '{'"),
    "nested deep in a shape": (_one("[1]", "[" * 5000 + "]" * 5000), "a", "must be an integer"),
    "a repeated name": (file_of("{" + ONE[1:-1] + "," + ONE[1:], 4), "a", "is there twice"),
    "a name repeated by an escape": (
        file_of("{" + ONE[1:-1] + "," + ONE[1:].replace('"a"', '"\\u0061"'), 4),
        "a",
        "is there twice",
    ),
    "a repeated field": (_one('"shape"', '"dtype":"F32","shape"'), "a", "has a field twice"),
    "repeated metadata": (
        file_of('{"__metadata__":{},"__metadata__":{}}', 0), None, "has its metadata twice",
    ),
    "a repeated key of metadata": (
        file_of('{"__metadata__":{"a":"","a":""}}', 0), None, "has a key of its metadata twice",
    ),
    "metadata that is a list": (file_of('{"__metadata__":[]}', 0), None, "there must be '{'"),
    "metadata that is null": (file_of('{"__metadata__":null}', 0), None, "there must be '{'"),
    "metadata with a number": (file_of('{"__metadata__":{"a":1}}', 0), None, "must be a string"),
    "10001 entries of metadata": (
        file_of(json.dumps({"__metadata__": {str(n): "" for n in range(10_001)}}), 0),
        None,
        "has more than 10000 entries of metadata",
    ),
    "a tensor that is a list": (file_of('{"a":["F32",[1],[0,4]]}', 4), "a", "there must be '{'"),
    "no field": (file_of('{"a":{}}', 0), "a", "there must be a string"),
    "a field too few": (file_of('{"a":{"dtype":"F32","shape":[1]}}', 4), "a", "lacks dtype"),
    "a field too many": (_one('"shape"', '"x":1,"shape"'), "a", "has a field beside dtype"),
    "a nameless tensor": (_one('"a"', '""'), None, "tensor name of 0 bytes"),
    "a name of 513 bytes": (_one('"a"', f'"{"n" * 513}"'), None, "tensor name of 513 bytes"),
    "an unknown type": (_one("F32", "F31"), "a", "has an unknown type"),
    "a type in lower case": (_one("F32", "f32"), "a", "has an unknown type"),
    "a type that is a number": (_one('"F32"', "32"), "a", "there must be a string"),
    "a shape that is a number": (_one("[1]", "1"), "a", "there must be '['"),
    "a negative dimension": (_one("[1]", "[-1]"), "a", "must be an integer of at least 0"),
    "minus nothing": (_one("[0,4]", "[-0,4]"), "a", "must be an integer of at least 0"),
    "a fractional dimension": (_one("[1]", "[1.0]"), "a", "there must be ']'"),
    "a dimension with an exponent": (_one("[1]", "[1e0]"), "a", "there must be ']'"),
    "a dimension that begins with 0": (_one("[1]", "[01]"), "a", "there must be ']'"),
    "a dimension that is true": (_one("[1]", "[true]"), "a", "must be an integer"),
    "a dimension of 2^63": (_one("[1]", f"[{2**63}]"), "a", f"of at most {2**63 - 1}"),
    "a dimension of 400 digits": (_one("[1]", f"[1{'0' * 399}]"), "a", "of at most"),
    "17 dimensions": (_one("[1]", f"[{'1,' * 16}1]"), "a", "more than 16 dimensions"),
    "a product beyond 64 bits": (_one("[1]", f"[{2**32},{2**32},0]", 0), "a", "too large"),
    "one offset": (_one("[0,4]", "[0]"), "a", "there must be ','"),
    "three offsets": (_one("[0,4]", "[0,4,4]"), "a", "there must be ']'"),
    "offsets that are no list": (_one("[0,4]", '"0"'), "a", "there must be '['"),
    "offsets backwards": (_one("[0,4]", "[4,0]"), "a", "lies at 4 to 0"),
    "a shape unlike its bytes": (_one("[1]", "[2]"), "a", "takes 8 bytes by type and shape"),
    "half a byte": (
        file_of(json.dumps({"a": entry("F4", [3], 0, 2)}), 2), "a", "ends within a byte",
    ),
    "a hole at the beginning": (_one("[0,4]", "[4,8]", 8), "a", "leaves a hole: begins at 4"),
    "a hole in the middle": (_two((0, 2), (3, 5), 5), "b", "leaves a hole: begins at 3"),
    "an overlap": (_two((0, 2), (1, 3), 3), "b", "overlaps the one before: begins at 1"),
    "two tensors in one place": (_two((0, 2), (0, 2), 2), "b", "overlaps the one before"),
    "bytes behind the tensors": (file_of(ONE, 5), None, "1 bytes that belong to no tensor"),
    "bytes without tensors": (file_of("{}", 1), None, "belong to no tensor"),
    "too few bytes": (file_of(ONE, 3), None, "its tensors take 4 bytes, 3 are there"),
    "offsets beyond the file": (
        file_of(json.dumps({"a": entry("U8", [2**40], 0, 2**40)}), 4), None, "truncated: its",
    ),
}  # fmt: skip

PADDED = (
    '{"__metadata__":{"brisk_form":"1"},'
    '"__brisk_padding__.0":{"dtype":"U8","shape":[255],"data_offsets":[0,255]}}'
)
BROKEN |= {
    "padding of 256 bytes": (
        file_of(PADDED.replace("255", "256"), 256), "__brisk_padding__.0", "fewer than 256 bytes",
    ),
    "padding of another type": (
        file_of(PADDED.replace("U8", "I8"), 255), "__brisk_padding__.0", "must be U8",
    ),
    "padding of two dimensions": (
        file_of(PADDED.replace("[255]", "[1,255]"), 255), "__brisk_padding__.0", "one dimension",
    ),
}  # fmt: skip

# The safetensors library takes these; we are stricter on purpose (docs/adr/0004).
STRICTER = {
    "a repeated name",
    "a name repeated by an escape",
    "a repeated key of metadata",
    "10001 entries of metadata",
    "metadata that is null",
    "a tensor that is a list",
    "a field too many",
    "a nameless tensor",
    "a name of 513 bytes",
    "17 dimensions",
    "padding of 256 bytes",
    "padding of another type",
    "padding of two dimensions",
}

_TOKENS = [b"0", b"1", b"9", b"-", b'"', b"[", b"]", b"{", b"}", b",", b".", b"e", b" ", b"\\",
           b"\\u00e9", b"\\ud83d", b"\xc3\xa9", b"\xff", b"F16", b"F4"]  # fmt: skip


def mutations(content: bytes, seed: int, count: int = 300) -> Iterator[bytes]:
    """Yield files that differ from a good one in a few places."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        mutant = bytearray(content)
        for _ in range(random.integers(1, 4)):
            place = int(random.integers(0, len(mutant)))
            token = _TOKENS[int(random.integers(0, len(_TOKENS)))]
            match random.integers(0, 4):
                case 0:
                    mutant[place] = int(random.integers(0, 256))
                case 1:
                    del mutant[place : place + int(random.integers(1, 9))]
                case 2:
                    mutant[place:place] = token
                case _:
                    mutant[place : place + 1] = token
        yield bytes(mutant)
