"""An index names plain files of its own folder, and every tensor once."""

from __future__ import annotations

import json

import pytest

from services.storemgr.refusal import MalformedError
from services.storemgr.weight_index import SHARDS_MAX, parse_index


def index(**files: object) -> bytes:
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": files}).encode()


def test_an_index_says_where_each_tensor_is() -> None:
    parsed = parse_index(index(a="x-1.safetensors", b="x-2.safetensors", c="x-1.safetensors"))
    assert parsed.file_of["c"] == "x-1.safetensors"
    assert parsed.shards == {"x-1.safetensors", "x-2.safetensors"}


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        ".x.safetensors",
        "x.bin",
        "x.safetensors.bin",
        "x\0.safetensors",
        "x\n.safetensors",
        "ü.safetensors",
        "",
        "x" * 300 + ".safetensors",
        7,
        None,
    ],
)
def test_a_name_that_is_no_plain_weight_file_is_refused(name: object) -> None:
    with pytest.raises(MalformedError, match="puts tensor 'a' into"):
        parse_index(index(a=name))


@pytest.mark.parametrize("raw", [b"{}", b'{"weight_map": {}}', b'{"weight_map": []}'])
def test_an_index_without_a_map_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedError, match="no weight_map"):
        parse_index(raw)


def test_a_tensor_in_two_places_is_refused() -> None:
    raw = b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'
    with pytest.raises(MalformedError, match="'a' twice"):
        parse_index(raw)


def test_the_number_of_files_is_bounded() -> None:
    files = {f"t{number}": f"x-{number}.safetensors" for number in range(SHARDS_MAX + 1)}
    with pytest.raises(MalformedError, match=f"names {SHARDS_MAX + 1} files"):
        parse_index(index(**files))
