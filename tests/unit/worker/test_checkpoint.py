"""A safetensors header is believed only as far as the file's bytes bear it out."""

import json
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import InvalidArgumentError, Reason
from services.worker.checkpoint import read_checkpoint
from tests.broken_models import write_raw, write_safetensors

FILE = "model.safetensors"


def refusal(folder: Path) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as refused:
        read_checkpoint(folder, [FILE])
    assert refused.value.reason == Reason.INVALID_MODEL
    assert FILE in refused.value.message
    assert str(folder) not in refused.value.message
    return refused.value


def test_tensors_are_found_where_they_are(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, dtype=np.float32)
    write_safetensors(tmp_path / FILE, {"b": b, "a": a})
    checkpoint = read_checkpoint(tmp_path, [FILE])
    content = (tmp_path / FILE).read_bytes()
    stored = checkpoint.tensors["a"]
    assert stored.shape == (2, 3)
    assert np.array_equal(
        np.frombuffer(content[stored.start : stored.end], dtype=np.float32), a.ravel()
    )
    assert checkpoint.tensor_bytes == a.nbytes + b.nbytes
    assert checkpoint.file_bytes == len(content)
    assert content.startswith(checkpoint.files[0].head)


def test_alignment_is_told_per_tensor(tmp_path: Path) -> None:
    entries = {
        "odd": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "off": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    write_raw(tmp_path / FILE, entries, bytes(5))
    tensors = read_checkpoint(tmp_path, [FILE]).tensors
    assert tensors["odd"].is_aligned
    assert not tensors["off"].is_aligned


def test_tensors_may_be_spread_over_files_but_not_be_in_two(tmp_path: Path) -> None:
    one = np.ones(1, dtype=np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"x": one})
    write_safetensors(tmp_path / "b.safetensors", {"y": one})
    checkpoint = read_checkpoint(tmp_path, ["a.safetensors", "b.safetensors"])
    assert {name: t.file for name, t in checkpoint.tensors.items()} == {
        "x": "a.safetensors",
        "y": "b.safetensors",
    }
    write_safetensors(tmp_path / "b.safetensors", {"x": one})
    with pytest.raises(InvalidArgumentError, match=r"is in a\.safetensors already"):
        read_checkpoint(tmp_path, ["a.safetensors", "b.safetensors"])


def test_empty_tensors_are_fine(tmp_path: Path) -> None:
    write_safetensors(tmp_path / FILE, {"none": np.zeros((0, 3), dtype=np.float32)})
    assert read_checkpoint(tmp_path, [FILE]).tensors["none"].size_bytes == 0


@pytest.mark.parametrize("keep", [0, 7, 8, 30, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    write_safetensors(tmp_path / FILE, {"a": np.ones(4, dtype=np.float32)})
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:keep])
    assert "truncated" in refusal(tmp_path).message


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((2**63).to_bytes(8, "little") + b"{}")
    assert "at most 100000000" in refusal(tmp_path).message


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1}']
)
def test_a_header_that_is_no_object_of_tensors_is_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / FILE).write_bytes(len(header).to_bytes(8, "little") + header)
    refusal(tmp_path)


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F12"},
        {"dtype": 32},
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": [2.0]},
        {"shape": [True, 2]},
        {"shape": "2"},
        {"shape": [2**62, 2**62]},
        {"shape": [1] * 17},
        {"data_offsets": [8, 0]},
        {"data_offsets": [-8, 0]},
        {"data_offsets": [0, 8, 8]},
        {"data_offsets": [0, 2**70]},
        {"data_offsets": None},
        {"data_offsets": [4, 12]},
    ],
)
def test_an_entry_that_does_not_fit_the_file_is_refused_by_name(
    tmp_path: Path, change: dict[str, object]
) -> None:
    write_raw(tmp_path / FILE, {"weight": {**GOOD, **change}}, bytes(8))
    assert "'weight'" in refusal(tmp_path).message


def test_overlaps_gaps_and_trailing_bytes_are_refused(tmp_path: Path) -> None:
    other = {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}
    write_raw(tmp_path / FILE, {"a": GOOD, "b": other}, bytes(12))
    assert "overlaps" in refusal(tmp_path).message
    write_raw(tmp_path / FILE, {"a": GOOD, "b": {**other, "data_offsets": [12, 20]}}, bytes(20))
    assert "gap" in refusal(tmp_path).message
    write_raw(tmp_path / FILE, {"a": GOOD}, bytes(9))
    assert "end at" in refusal(tmp_path).message


def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    for name in ("../x.safetensors", "/etc/passwd", "a/b.safetensors"):
        with pytest.raises(InvalidArgumentError, match="must lie in"):
            read_checkpoint(tmp_path, [name])


def test_a_tensors_name_is_shown_escaped_and_short(tmp_path: Path) -> None:
    name = "\x1b[31m" + "x" * 10_000
    header = json.dumps({name: {**GOOD, "dtype": "F12"}}).encode()
    (tmp_path / FILE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    message = refusal(tmp_path).message
    assert "\x1b" not in message
    assert len(message) < 300


def test_a_model_without_weight_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no weight file"):
        read_checkpoint(tmp_path, [])
