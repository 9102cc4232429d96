"""Models on CUDA devices equal those on the CPU: on the stand-in driver, whose memory torch reads.

A device map splits a model over two devices; whatever fails, nothing is left on any of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brisk_native
import pytest
import torch
from brisk_native import _device_reading, load_model, load_tensors
from brisk_native._device_map import parse_device_map
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig

from tests.fakes import cuda_driver
from tests.models import KINDS, reference_greedy
from tests.unit.native.test_model import TINY, assert_equals_reference, save
from tests.unit.native.test_tensors import check_same, flip, write_manifest

SPLIT: dict[str, str | int | torch.device] = {
    "": 1,
    "model.embed_tokens": "cuda:0",
    "model.layers.0": torch.device("cuda:0"),
}
OUT_OF_MEMORY = 2


def greedy(model: torch.nn.Module, tokens: int) -> list[int]:
    """Return the greedy continuation of a prompt, step by step with a cache."""
    ids, cache, found = torch.tensor([[5, 17, 400]]), None, []
    with torch.inference_mode():
        for _ in range(tokens):
            output = model(ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            ids = output.logits[:, -1:].argmax(-1)
            found.append(int(ids))
    return found


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_a_device_generates_as_on_the_cpu(
    kind: str, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model(kind)
    model = load_model(folder, device="cuda:1")
    assert_equals_reference(model, folder)
    expected = reference_greedy(folder, [5, 17, 400], 12, ignore_eos=True)
    assert greedy(model, 12) == expected


def test_weights_lie_on_the_device_that_is_named(
    standin: cuda_driver.Driver, tiny_model: Callable[[str], Path]
) -> None:
    model = load_model(tiny_model("sharded-llama"), device=1)
    held = standin.audit()
    assert held.allocations == 1
    size = brisk_native.inspect(tiny_model("sharded-llama")).tensor_bytes
    assert size <= held.allocated_bytes < size + 256 * 64
    assert held.copied_bytes == size
    assert all(parameter.data_ptr() % 256 == 0 for parameter in model.parameters())


def test_a_device_map_splits_a_model(
    standin: cuda_driver.Driver, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model("llama-untied")
    model = load_model(folder, device=SPLIT)
    assert standin.audit().allocations == 2
    assert_equals_reference(model, folder)
    assert greedy(model, 8) == reference_greedy(folder, [5, 17, 400], 8, ignore_eos=True)


@pytest.mark.usefixtures("standin")
def test_what_is_stored_otherwise_is_cast_or_merged_on_the_device(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    half = load_model(tiny_model("llama"), device="cuda", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    folder = save(tmp_path, MixtralConfig(**TINY, num_local_experts=4))
    assert_equals_reference(load_model(folder, device="cuda"), folder)


@pytest.mark.usefixtures("standin")
def test_tensors_come_to_a_device_as_to_the_cpu(tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("gpt2")
    told: list[str] = []
    done: list[tuple[int, int]] = []
    found = load_tensors(
        folder,
        device="cuda:0",
        on_layer=lambda name, _: told.append(name),
        progress=lambda *call: done.append(call),
    )
    check_same(found, load_file(folder / "model.safetensors"))
    assert told == ["embed", "layers.0", "layers.1", "head"]
    total = brisk_native.inspect(folder).tensor_bytes
    assert (done[0], done[-1]) == ((0, total), (total, total))


@pytest.mark.usefixtures("standin")
def test_a_model_computes_on_a_device_while_it_comes(tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("llama")
    with (
        brisk_native.start_loading(folder, device="cuda") as loading,
        loading.computing() as model,
    ):
        assert_equals_reference(model, folder)


def test_a_failed_copy_and_a_full_device_are_told_and_leave_nothing(
    standin: cuda_driver.Driver, tiny_model: Callable[[str], Path]
) -> None:
    standin.fail("cuMemAlloc_v2", calls_before=1, code=OUT_OF_MEMORY)
    with pytest.raises(brisk_native.DeviceMemoryError):
        load_model(tiny_model("llama"), device="cuda")
    standin.reset()
    standin.fail("copy", code=700)
    with pytest.raises(brisk_native.DeviceError):
        load_model(tiny_model("llama"), device="cuda")


@pytest.mark.usefixtures("standin")
def test_damage_a_raised_token_and_a_wrong_model_leave_nothing_on_the_device(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "m")
    write_manifest(folder)
    token = brisk_native.CancelToken()
    token.cancel()
    with pytest.raises(brisk_native.ReadCancelledError):
        load_model(folder, device="cuda", cancel=token)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps({**json.loads(config), "num_hidden_layers": 3}))
    (folder / "brisk.json").unlink()  # so that it is no damage
    write_manifest(folder)
    with pytest.raises(brisk_native.InvalidModelError):
        load_model(folder, device="cuda")
    (folder / "config.json").write_text(config)
    (folder / "brisk.json").unlink()
    write_manifest(folder)
    flip(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1)
    with pytest.raises(brisk_native.ChecksumError):
        load_model(folder, device="cuda")


@pytest.mark.usefixtures("standin")
def test_a_file_written_to_meanwhile_is_refused(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "m")

    def touched(*arguments: Any, **options: Any) -> object:
        os.utime(folder / "model.safetensors", ns=(1, 1))
        return brisk_native.read_to_devices(*arguments, **options)

    monkeypatch.setattr(_device_reading, "read_to_devices", touched)
    with pytest.raises(brisk_native.FileChangedError, match="changed while it was read"):
        load_tensors(folder, device="cuda")


@pytest.mark.usefixtures("standin")
def test_a_map_that_leaves_a_parameter_out_is_refused(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="leaves out"):
        load_model(tiny_model("llama-untied"), device={"model.layers": 0, "lm_head": 1})


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test fail that reads weights."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("was read")

    monkeypatch.setattr(_device_reading, "read_to_devices", refuse)


@pytest.mark.usefixtures("standin", "unread")
def test_a_map_cannot_split_a_model_whose_tensors_must_be_merged(tmp_path: Path) -> None:
    folder = save(tmp_path, MixtralConfig(**TINY, num_local_experts=4))
    with pytest.raises(ValueError, match="must be merged or split first"):
        load_model(folder, device={"": 0, "lm_head": 1})


def tied_twice(folder: Path, tiny_model: Callable[[str], Path]) -> Path:
    """Make a model of tied weights that are both stored."""
    shutil.copytree(tiny_model("llama"), folder)
    path = folder / "model.safetensors"
    stored = load_file(path)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, path, metadata={"format": "pt"})
    return folder


@pytest.mark.usefixtures("standin", "unread")
def test_a_map_cannot_part_tied_weights_that_are_both_stored(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    folder = tied_twice(tmp_path / "m", tiny_model)
    with pytest.raises(ValueError, match=r"'lm_head.weight' and .* are tied, on two devices"):
        load_model(folder, device={"": 0, "lm_head": 1})


@pytest.mark.usefixtures("standin")
def test_a_map_may_keep_tied_weights_that_are_both_stored_together(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    folder = tied_twice(tmp_path / "m", tiny_model)
    model = load_model(folder, device={"": 0, "model.layers.1": 1})
    assert_equals_reference(model, folder)


def test_a_pool_takes_no_tensors_of_a_device(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="a pool is host memory"):
        load_tensors(tiny_model("llama"), device="cuda", pool=object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:", "cuda:-1", -1, True, "cpu:1", "meta", {}, {"": "cpu", "lm_head": 0}]
)
def test_other_devices_are_refused(device: object) -> None:
    with pytest.raises(ValueError, match="device"):
        parse_device_map(device)


def test_the_longest_path_of_a_map_counts() -> None:
    found = parse_device_map({"": 0, "model.layers.1": 1, "model.layers.1.mlp": "cuda:2"})
    assert found.of("model.layers.1.mlp.up_proj.weight") == 2
    assert found.of("model.layers.1.self_attn.q_proj.weight") == 1
    assert found.of("model.layers.10.mlp.up_proj.weight") == 0
    assert found.used == (0, 1, 2)
    assert parse_device_map("cpu").is_cpu
