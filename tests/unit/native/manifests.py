"""Manifests, sound and broken, for the tests of whatever reads them."""

from __future__ import annotations

import json
from typing import Final

CHUNK: Final = 4 * 1024 * 1024


def file_entry(**changes: object) -> dict[str, object]:
    return {"name": "a", "size_bytes": CHUNK + 1, "crc32c": ["00000000", "00000001"]} | changes


def document(**changes: object) -> dict[str, object]:
    good: dict[str, object] = {"version": 2, "form": 1, "chunk_bytes": CHUNK}
    return good | {"files": [file_entry()]} | changes


def text(**changes: object) -> bytes:
    return json.dumps(document(**changes)).encode()


def raw(old: str, new: str) -> bytes:
    """Return a good manifest in which `old` is replaced."""
    good = json.dumps(document())
    assert old in good
    return good.replace(old, new).encode()


def with_file(**changes: object) -> bytes:
    return text(files=[file_entry(**changes)])


def without(key: str) -> bytes:
    return json.dumps({name: value for name, value in document().items() if name != key}).encode()


def with_value(value: str) -> bytes:
    """Return a good manifest with a member that only its writer knows."""
    return raw('"form": 1', f'"form": 1, "x": {value}')


# What is wrong, the manifest, and words of the reason.
BROKEN: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "at byte 0: there must be '{'"),
    "a list": (b"[]", "there must be '{'"),
    "not UTF-8": (with_value('"\xff"').decode().encode("latin-1"), "not JSON in UTF-8"),
    "half a surrogate": (with_value('"\\ud800"'), "not JSON in UTF-8"),
    "no end": (text()[:-1], "there must be '}'"),
    "two documents": (text() + b"{}", "there must be nothing more"),
    "a zero at the end": (text() + b"\0", "there must be nothing more"),
    "a comma at the end": (text()[:-1] + b",}", "there must be a string"),
    "a repeated member": (raw('"form": 1', '"version": 2'), "a name that is there twice"),
    "a repeated name by an escape": (
        raw('"form": 1', '"versi\\u006fn": 2'), "a name that is there twice",
    ),
    "a repeated unknown member": (
        raw('"form": 1', '"x": 1, "x": 1'), "a name that is there twice",
    ),
    "a repeated member of a file": (
        raw('"name": "a"', '"name": "a", "name": "b"'), "a name that is there twice",
    ),
    "a repeated member deep inside": (
        with_value('[{"y": {"z": 1, "z": 2}}]'), "a name that is there twice",
    ),
    "65 members": (
        text(**{f"x{n}": 0 for n in range(61)}), "an object of more than 64 members",
    ),
    "a name of 257 bytes": (text(**{"x" * 257: 0}), "a name of more than 256 bytes"),
    "nested deep": (with_value("[" * 8 + "]" * 8), "nested deeper than 8"),
    "nested very deep": (with_value("[" * 100_000), "nested deeper than 8"),
    "objects nested deep": (with_value('{"y":' * 8 + "1" + "}" * 8), "nested deeper than 8"),
    "no version": (without("version"), "lacks version, chunk_bytes or files"),
    "no chunk_bytes": (without("chunk_bytes"), "lacks version, chunk_bytes or files"),
    "no files": (without("files"), "lacks version, chunk_bytes or files"),
    "version 0": (text(version=0), "has version 0, known are 1 to 2"),
    "version 3": (text(version=3), "has version 3, known are 1 to 2"),
    "a negative version": (text(version=-1), "must be an integer of at least 0"),
    "a fractional version": (text(version=2.0), "there must be '}'"),
    "a version in words": (text(version="2"), "must be an integer"),
    "a version of 20 digits": (text(version=10**20), f"of at most {2**63 - 1}"),
    "form 2": (text(form=2), "has form 2, known are 0 to 1"),
    "a form that is null": (text(form=None), "must be an integer"),
    "other chunks": (text(chunk_bytes=1024), f"has chunks of 1024 bytes, not {CHUNK}"),
    "files that are an object": (text(files={}), "there must be '['"),
    "a file that is a list": (text(files=[[]]), "there must be '{'"),
    "an empty file entry": (text(files=[{}]), "has a file without name"),
    "a file without size": (
        text(files=[{"name": "a", "crc32c": []}]), "has a file without name, size_bytes or crc32c",
    ),
    "a file without checksums": (
        text(files=[{"name": "a", "size_bytes": 0}]), "has a file without name",
    ),
    "2049 files": (
        text(files=[file_entry(name=str(n), size_bytes=0, crc32c=[]) for n in range(2049)]),
        "has more than 2048 files",
    ),
    "a file twice": (text(files=[file_entry(), file_entry()]), "lists a twice"),
    "an empty file name": (with_file(name=""), "whose name is none of a file"),
    "a file outside": (with_file(name="../a"), "whose name is none of a file"),
    "a file by a backslash": (with_file(name="b\\a"), "whose name is none of a file"),
    "a file with a NUL": (with_file(name="a\0"), "whose name is none of a file"),
    "the folder as a file": (with_file(name="."), "whose name is none of a file"),
    "the parent as a file": (with_file(name=".."), "whose name is none of a file"),
    "a file name of 256 bytes": (with_file(name="é" * 128), "whose name is none of a file"),
    "a file name that is a number": (with_file(name=1), "there must be a string"),
    "a negative size": (with_file(size_bytes=-1), "must be an integer of at least 0"),
    "a size of 2^63": (with_file(size_bytes=2**63), f"of at most {2**63 - 1}"),
    "a checksum too few": (with_file(crc32c=["00000000"]), "has 1 checksums for a, 4194305 bytes"),
    "a checksum too many": (with_file(crc32c=["00000000"] * 3), "has 3 checksums for a"),
    "a checksum of 7 digits": (
        with_file(crc32c=["0000000", "00000000"]), "not 8 hexadecimal digits",
    ),
    "a checksum in upper case": (
        with_file(crc32c=["0000000A", "00000000"]), "not 8 hexadecimal digits",
    ),
    "a checksum that is a number": (with_file(crc32c=[1, 2]), "there must be a string"),
    "checksums that are a string": (with_file(crc32c="00000000"), "there must be '['"),
    "a value that is none": (with_value("nul"), "there must be a value"),
    "no value": (with_value(""), "there must be a value"),
    "not a number": (with_value("NaN"), "there must be a value"),
    "a number that begins with 0": (with_value("01"), "there must be a value"),
    "a number that begins with a sign": (with_value("+1"), "there must be a value"),
    "a number without digits": (with_value("-"), "there must be a value"),
    "a number that ends with a point": (with_value("1."), "there must be a value"),
    "a number that begins with a point": (with_value(".1"), "there must be a value"),
    "a number with an empty exponent": (with_value("1e+"), "there must be a value"),
}  # fmt: skip

# Values that are stepped over.
UNKNOWN_VALUES: Final = (
    *("0", "-0", "-12.50e+07", "1E5", "true", "false", "null", '""', '"\\u00e9\\ud83d\\ude00"'),
    *("[]", "{}", "[1, [2, {}], null]", '{"y": {"z": [1, "2"]}, "": 0}', "9" * 500),
    "[" * 7 + "]" * 7,
)
