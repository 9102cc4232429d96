"""Config, index and headers are each sound, and none contradicts another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import InvalidArgumentError
from services.storemgr import checkpoint
from services.storemgr.checkpoint import inspect
from services.storemgr.folder import INDEX, survey
from tests.broken_models import WEIGHTS, good_folder, write_safetensors

FIRST, SECOND = "one.safetensors", "two.safetensors"
TENSOR = np.zeros(4, dtype=np.float32)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return good_folder(tmp_path / "good")


def shard(folder: Path, first: list[str], second: list[str], places: dict[str, str]) -> None:
    (folder / WEIGHTS).unlink()
    write_safetensors(folder / FIRST, dict.fromkeys(first, TENSOR))
    write_safetensors(folder / SECOND, dict.fromkeys(second, TENSOR))
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def refusal_of(folder: Path) -> str:
    with pytest.raises(InvalidArgumentError) as refusal:
        inspect(survey(folder))
    assert refusal.value.reason == "INVALID_MODEL"
    return refusal.value.message


def test_the_facts_are_those_of_config_and_headers(good: Path) -> None:
    facts = inspect(survey(good))
    assert facts.architecture == "LlamaForCausalLM"
    assert facts.dtype == "F32"
    assert facts.weight_bytes == 4 * facts.parameters == 324224
    assert facts.tensors == 21
    assert facts.context_tokens_max == 256
    assert facts.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4


def test_shards_add_up(good: Path) -> None:
    shard(good, ["a"], ["b", "c"], {"a": FIRST, "b": SECOND, "c": SECOND})
    assert inspect(survey(good)).weight_bytes == 48


def test_tensors_that_the_index_leaves_out_are_no_fault(good: Path) -> None:
    shard(good, ["a"], ["b", "c"], {"a": FIRST, "b": SECOND})
    assert inspect(survey(good)).tensors == 3


def test_an_index_that_promises_a_tensor_in_the_wrong_file_is_refused(good: Path) -> None:
    shard(good, ["a"], ["b"], {"a": SECOND, "b": FIRST})
    assert refusal_of(good) == (
        "model.safetensors.index.json puts tensor 'a' into 'two.safetensors', which lacks it"
    )


def test_a_tensor_in_two_files_is_refused(good: Path) -> None:
    shard(good, ["a"], ["a"], {"a": FIRST, "b": SECOND})
    assert refusal_of(good) == "two.safetensors repeats tensor 'a' of 'one.safetensors'"


def test_a_model_without_tensors_is_refused(good: Path) -> None:
    write_safetensors(good / WEIGHTS, {})
    assert refusal_of(good) == "the folder has no tensors"


def test_the_tensors_of_all_files_are_bounded(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "TENSORS_MAX", 20)
    assert refusal_of(good) == "the folder has more than 20 tensors"


def test_a_file_that_vanished_after_the_survey_is_named(good: Path) -> None:
    files = survey(good)
    (good / WEIGHTS).unlink()
    with pytest.raises(InvalidArgumentError, match=r"model\.safetensors vanished"):
        inspect(files)
