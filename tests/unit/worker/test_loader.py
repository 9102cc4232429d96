"""Weights are used where they were read: nothing is allocated twice, nothing is forgotten.

The reference is transformers' own `from_pretrained` on the same folder.
"""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from services.worker.checkpoint import Checkpoint, read_checkpoint
from services.worker.loader import LoadedModel, assemble
from services.worker.skeleton import build_skeleton
from services.worker.weights import WeightRead
from tests.broken_models import read_raw, write_raw
from tests.models import KINDS

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}


def read(folder: Path) -> Checkpoint:
    return read_checkpoint(folder, sorted(path.name for path in folder.glob("*.safetensors")))


def load(folder: Path) -> tuple[LoadedModel, dict[str, memoryview]]:
    checkpoint = read(folder)
    skeleton = build_skeleton(checkpoint)
    buffers = dict(WeightRead(checkpoint, lambda _: None).run().buffers)
    return assemble(skeleton, checkpoint, buffers), buffers


def save(folder: Path, config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def addresses(view: memoryview) -> range:
    start = torch.frombuffer(view, dtype=torch.uint8).data_ptr()
    return range(start, start + len(view))


def assert_equals_reference(model: PreTrainedModel, folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folder)
    ours, theirs = tensors(model), tensors(reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_lies_in_the_memory_that_the_files_were_read_into(
    kind: str, tiny_model: Callable[[str], Path]
) -> None:
    loaded, buffers = load(tiny_model(kind))
    inside = [addresses(buffer) for buffer in buffers.values()]
    for name, parameter in loaded.model.named_parameters():
        assert any(parameter.data_ptr() in each for each in inside), name
        assert not parameter.requires_grad
    assert loaded.copied_bytes == 0
    assert loaded.weight_bytes == sum(len(buffer) for buffer in buffers.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_equals_the_one_that_transformers_loads(
    kind: str, tiny_model: Callable[[str], Path]
) -> None:
    loaded, _ = load(tiny_model(kind))
    assert_equals_reference(loaded.model, tiny_model(kind))
    assert not loaded.model.training


@pytest.mark.parametrize("kind", ["llama", "qwen2-tied", "gpt2", "opt"])
def test_tied_weights_are_one_tensor(kind: str, tiny_model: Callable[[str], Path]) -> None:
    model = load(tiny_model(kind))[0].model
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "config", [LlamaConfig(**TINY), GPT2Config(n_embd=64, n_head=4, n_layer=2)]
)
def test_half_precision_stays_as_it_is_stored(
    tmp_path: Path, config: PretrainedConfig, dtype: torch.dtype
) -> None:
    folder = save(tmp_path, config, dtype)
    loaded, _ = load(folder)
    assert loaded.copied_bytes == 0
    assert loaded.model.dtype == dtype
    assert_equals_reference(loaded.model, folder)
    assert torch.get_default_dtype() == torch.float32


def span(entry: dict[str, object]) -> tuple[int, int]:
    """Return where a tensor's data begins and ends."""
    match entry["data_offsets"]:
        case [int(start), int(end)]:
            return start, end
    raise AssertionError(entry)


def rename(folder: Path, change: Callable[[str], str]) -> None:
    entries, data = read_raw(folder / "model.safetensors")
    renamed = {
        name if name == "__metadata__" else change(name): entry for name, entry in entries.items()
    }
    write_raw(folder / "model.safetensors", renamed, data)


def test_names_without_the_base_models_prefix_are_understood(tmp_path: Path) -> None:
    folder = save(tmp_path, GPT2Config(n_embd=64, n_head=4, n_layer=2, vocab_size=128))
    rename(folder, lambda name: name.removeprefix("transformer."))
    loaded, _ = load(folder)
    assert loaded.copied_bytes == 0
    assert_equals_reference(loaded.model, folder)


def test_a_misaligned_tensor_is_copied_once_and_the_others_are_not(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaConfig(**TINY))
    path = folder / "model.safetensors"
    entries, data = read_raw(path)
    # Two bytes that transformers ignores (an old rotary buffer), put before the last tensor.
    last = max(
        (name for name in entries if name != "__metadata__"),
        key=lambda name: span(entries[name])[0],
    )
    start, end = span(entries[last])
    entries["model.layers.0.self_attn.rotary_emb.inv_freq"] = {
        "dtype": "F16",
        "shape": [1],
        "data_offsets": [start, start + 2],
    }
    entries[last]["data_offsets"] = [start + 2, end + 2]
    write_raw(path, entries, data[:start] + bytes(2) + data[start:])
    loaded, _ = load(folder)
    assert_equals_reference(loaded.model, folder)
    assert loaded.copied_bytes == end - start
    for name, parameter in loaded.model.named_parameters():
        assert parameter.data_ptr() % parameter.element_size() == 0, name


def test_a_tensor_of_another_type_is_cast_and_counted(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaConfig(**TINY), torch.bfloat16)
    path = folder / "model.safetensors"
    entries, data = read_raw(path)
    end = len(data)
    norm = entries["model.norm.weight"]
    start, stop = span(norm)
    values = torch.frombuffer(bytearray(data[start:stop]), dtype=torch.bfloat16).float()
    entries["model.norm.weight"] = {
        "dtype": "F32",
        "shape": norm["shape"],
        "data_offsets": [end, end + 4 * len(values)],
    }
    entries["model.layers.0.self_attn.rotary_emb.inv_freq"] = norm  # leaves no gap
    write_raw(path, entries, data + values.numpy().tobytes())
    loaded, _ = load(folder)
    assert loaded.copied_bytes == 2 * len(values)
    assert_equals_reference(loaded.model, folder)


def test_weights_that_must_be_merged_are_converted_as_transformers_does(tmp_path: Path) -> None:
    folder = save(tmp_path, MixtralConfig(**TINY, num_local_experts=4))
    names = read(folder).tensors
    assert any("experts.3." in name for name in names)  # stored one by one
    loaded, buffers = load(folder)
    assert_equals_reference(loaded.model, folder)
    inside = [addresses(buffer) for buffer in buffers.values()]
    for name, parameter in loaded.model.named_parameters():  # or the files would stay in memory
        assert not any(parameter.data_ptr() in each for each in inside), name
    assert loaded.copied_bytes == loaded.weight_bytes > 0


def test_the_configs_own_type_does_not_matter_the_stored_one_does(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaConfig(**TINY), torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    loaded, _ = load(folder)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.copied_bytes == 0
