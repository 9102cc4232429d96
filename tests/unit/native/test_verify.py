"""verify's promise: it checks all that a manifest says of what it was given, and says what is gone.

More on damage that it finds is in test_tensors.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import brisk_native
import pytest
import torch
from brisk_native import ChecksumError, InvalidCheckpointError
from safetensors.torch import save_file
from transformers import LlamaConfig

from tests.unit.native.test_model import TINY, save
from tests.unit.native.test_tensors import flip, make_model, write_manifest

WEIGHTS = "model.safetensors"


def test_a_single_file_is_checked_by_the_manifest_beside_it(tmp_path: Path) -> None:
    make_model(tmp_path)
    found = brisk_native.verify(tmp_path / WEIGHTS)
    assert found.files_checked == 1  # config.json, which the manifest lists too, was not asked for
    assert found.bytes_checked == (tmp_path / WEIGHTS).stat().st_size
    flip(tmp_path / "config.json", 0)
    assert brisk_native.verify(tmp_path / WEIGHTS).files_checked == 1
    flip(tmp_path / WEIGHTS, (tmp_path / WEIGHTS).stat().st_size - 1)
    with pytest.raises(ChecksumError, match=WEIGHTS):
        brisk_native.verify(tmp_path / WEIGHTS)


def test_a_single_file_that_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidCheckpointError, match=r"does not list other\.safetensors"):
        brisk_native.verify(tmp_path / "other.safetensors")
    (tmp_path / "brisk.json").unlink()
    assert brisk_native.verify(tmp_path / "other.safetensors").files_checked == 0


def test_a_file_that_the_manifest_lists_and_nobody_has_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaConfig(**TINY))
    write_manifest(folder)
    (folder / "generation_config.json").unlink()
    words = r"brisk\.json: lists generation_config\.json, which is not there: bring the file back"
    for call in (brisk_native.verify, brisk_native.load_model):
        with pytest.raises(InvalidCheckpointError, match=words):
            call(folder)


def test_a_folder_without_a_manifest_is_loaded_unless_one_is_required(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaConfig(**TINY))
    with brisk_native.start_loading(folder) as loading:
        assert not loading.report.verified
    with pytest.raises(InvalidCheckpointError, match=r"brisk\.json: is missing"):
        brisk_native.start_loading(folder, require_manifest=True)
    write_manifest(folder)
    with brisk_native.start_loading(folder, require_manifest=True, verify=False) as loading:
        assert loading.report.verified  # who requires it wants it used
    manifest = json.loads((folder / "brisk.json").read_text())
    manifest["files"] = []
    (folder / "brisk.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidCheckpointError, match="does not list"):
        brisk_native.start_loading(folder, require_manifest=True)


def test_a_missing_manifest_is_told_before_a_damaged_header(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaConfig(**TINY))
    flip(folder / WEIGHTS, 9)
    with pytest.raises(InvalidCheckpointError, match="is missing"):
        brisk_native.start_loading(folder, require_manifest=True)
    with pytest.raises(FileNotFoundError):
        brisk_native.start_loading(folder / "nowhere", require_manifest=True)
