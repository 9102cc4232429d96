"""What the loader refuses gets the worker's types and reasons, and loses paths on the way."""

import json
from collections.abc import Callable
from pathlib import Path

import brisk_native
import pytest

from services.common.errors import (
    BriskError,
    DataLossError,
    InvalidArgumentError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.worker.checkpoint import GivenUpError, refusals
from tests.broken_models import good_folder, read_raw, write_raw

FILE = "model.safetensors"


def refusal(call: Callable[[], object]) -> BriskError:
    with pytest.raises(BriskError) as refused, refusals():
        call()
    return refused.value


def test_a_header_that_lies_is_an_invalid_model_naming_file_and_tensor(tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "m")
    entries, data = read_raw(folder / FILE)
    name = "\x1b[31m" + "x" * 300
    entries[name] = {**entries.pop("model.norm.weight"), "dtype": "F12"}
    write_raw(folder / FILE, entries, data)
    error = refusal(lambda: brisk_native.inspect(folder, files=[FILE]))
    assert isinstance(error, InvalidArgumentError)
    assert error.reason == Reason.INVALID_MODEL
    assert error.metadata["file"] == FILE
    assert "has an unknown type" in error.message
    assert "\x1b" not in error.message
    assert str(tmp_path) not in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize("names", [[], ["../x.safetensors"], ["/etc/passwd"], ["a/b.safetensors"]])
def test_weight_files_that_are_not_in_the_folder_are_an_invalid_model(
    tmp_path: Path, names: list[str]
) -> None:
    error = refusal(lambda: brisk_native.inspect(tmp_path, files=names))
    assert error.reason == Reason.INVALID_MODEL
    assert str(tmp_path) not in error.message


def test_a_damaged_manifest_is_data_loss(tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "m")
    (folder / "brisk.json").write_text(json.dumps({"version": 1}))
    error = refusal(lambda: brisk_native.load_tensors(folder))
    assert isinstance(error, DataLossError)
    assert error.message.startswith("brisk.json ")


PATH = "/secret/place/model.safetensors"


@pytest.mark.parametrize(
    ("error", "kind", "reason", "words"),
    [
        (brisk_native.ChecksumError(PATH, 3, 12 << 20, "bad"), DataLossError,
         Reason.CHECKSUM_MISMATCH, "model.safetensors: chunk 3 at offset 12582912: bad"),
        (brisk_native.ShortReadError(PATH), DataLossError, Reason.DATA_LOSS, "shrank"),
        (brisk_native.FileChangedError(PATH, None, "changed while it was read"), DataLossError,
         Reason.DATA_LOSS, "model.safetensors: the file changed while it was read"),
        (brisk_native.InvalidModelError("config.json", None, "odd"), InvalidArgumentError,
         Reason.INVALID_MODEL, "config.json: odd"),
        (brisk_native.UnsupportedTypeError("x", "F4"), InvalidArgumentError,
         Reason.INVALID_MODEL, "'x': torch has no type for F4"),
        (MemoryError(), ResourceExhaustedError, Reason.INSUFFICIENT_MEMORY, "no memory"),
        (OSError(5, "Input/output error", PATH), UnavailableError,
         Reason.STORE_UNREACHABLE, "Input/output error"),
    ],
)  # fmt: skip
def test_each_error_has_its_type_and_reason(
    error: Exception, kind: type[BriskError], reason: Reason, words: str
) -> None:
    def fail() -> None:
        raise error

    found = refusal(fail)
    assert type(found) is kind
    assert found.reason == reason
    assert words in found.message
    assert "/secret" not in found.message


def test_a_cancelled_load_is_given_up() -> None:
    with pytest.raises(GivenUpError), refusals():
        raise brisk_native.ReadCancelledError(0)
