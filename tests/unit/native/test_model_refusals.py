"""A model that does not fit its files is refused by name: file, tensor, expected and found."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import brisk_native
import pytest
import torch
from brisk_native import InvalidHeaderError, InvalidModelError
from brisk_native.model import DefaultDtype, Skeleton, build_skeleton

from tests.broken_models import BROKEN, broken_folder, good_folder, read_raw, write_raw
from tests.unit.native.test_model import span

FILE = "model.safetensors"
# What is refused before the model is built: the folder's layout and the files' headers.
LAYOUT = {"only_pickle", "without_weights"} | {
    kind for kind in BROKEN if "shard" in kind or "index" in kind
}


def build(folder: Path) -> Skeleton:
    return build_skeleton(folder, brisk_native.inspect(folder))


def refusal(folder: Path) -> InvalidModelError:
    with pytest.raises(InvalidModelError) as refused:
        brisk_native.load_model(folder)
    assert str(folder) not in str(refused.value)
    return refused.value


def change_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def rename(folder: Path, before: str, after: str | None) -> None:
    """Rename a tensor, or let it become an old buffer that transformers ignores."""
    entries, data = read_raw(folder / FILE)
    entries[after or "model.layers.0.self_attn.rotary_emb.inv_freq"] = entries.pop(before)
    write_raw(folder / FILE, entries, data)


def test_a_good_folder_has_a_skeleton_without_memory(tmp_path: Path) -> None:
    skeleton = build(good_folder(tmp_path / "m"))
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert skeleton.dtype == torch.float32
    assert not skeleton.is_converted


@pytest.mark.parametrize("kind", sorted(set(BROKEN) - LAYOUT))
def test_every_kind_of_broken_model_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises((InvalidModelError, InvalidHeaderError)):
        brisk_native.load_model(broken_folder(tmp_path / "m", kind))


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "m")
    shape = list(build(folder).model.state_dict()["model.norm.weight"].shape)
    entries, data = read_raw(folder / FILE)
    entries["model.norm.weight"]["shape"] = [1, *shape]
    write_raw(folder / FILE, entries, data)
    error = refusal(folder)
    assert (error.file, error.tensor) == (FILE, "model.norm.weight")
    assert (error.expected, error.found) == (str(shape), str([1, *shape]))
    assert str(error).endswith(f"has shape {[1, *shape]}, expected {shape}")


def test_a_missing_tensor_is_named_with_its_shape(tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "m")
    rename(folder, "model.norm.weight", None)
    error = refusal(folder)
    assert (error.tensor, error.expected, error.found) == ("model.norm.weight", "[32]", None)
    assert "is missing" in error.reason
    assert "(1 such tensors)" in error.reason


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "m")
    entries, data = read_raw(folder / FILE)
    entries["model.extra.weight"] = {
        "dtype": "F32",
        "shape": [1],
        "data_offsets": [len(data), len(data) + 4],
    }
    write_raw(folder / FILE, entries, data + bytes(4))
    assert refusal(folder).tensor == "model.extra.weight"


def test_a_tensor_of_integers_where_numbers_belong_is_refused(tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "m")
    entries, data = read_raw(folder / FILE)
    entries["model.norm.weight"]["dtype"] = "I32"
    write_raw(folder / FILE, entries, data)
    assert "has type I32, expected float32" in refusal(folder).reason


def test_one_parameter_under_two_names_is_refused(tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "m")
    entries, data = read_raw(folder / FILE)
    norm = entries["model.norm.weight"]
    start, end = span(norm)
    size = end - start
    entries["norm.weight"] = {**norm, "data_offsets": [len(data), len(data) + size]}
    write_raw(folder / FILE, entries, data + bytes(size))
    assert "stands for the same parameter" in refusal(folder).reason


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["FooForCausalLM"]}, "'FooForCausalLM' is not known"),
        ({"model_type": "foo", "architectures": []}, "foo"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "no causal"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "cache"),
        ({"hidden_size": "many"}, "config.json"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized"),
    ],
)
def test_a_config_that_means_no_model_of_ours_is_refused(
    tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    folder = good_folder(tmp_path / "m")
    change_config(folder, **fields)
    assert words in str(refusal(folder))


def test_code_in_the_folder_is_never_run(tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "m")
    trap = tmp_path / "trapped"
    code = f"open({str(trap)!r}, 'w')\n"
    (folder / "configuration_evil.py").write_text(code)
    (folder / "modeling_evil.py").write_text(code)
    change_config(
        folder,
        model_type="evil",
        auto_map={
            "AutoConfig": "configuration_evil.EvilConfig",
            "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
        },
    )
    refusal(folder)
    assert not trap.exists()


def test_building_leaves_other_threads_types_alone(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    seen: list[torch.dtype] = []

    def elsewhere() -> None:
        seen.append(torch.ones(1).dtype)

    with DefaultDtype(torch.bfloat16):
        assert torch.ones(1).dtype == torch.bfloat16
        assert torch.full((1,), 0.5).dtype == torch.bfloat16
        assert torch.full((1,), 2).dtype == torch.int64
        assert torch.arange(3).dtype == torch.int64
        assert torch.tensor([1.0]).dtype == torch.bfloat16
        assert torch.ones(1, dtype=torch.float64).dtype == torch.float64
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen == [torch.float32]
    assert torch.ones(1).dtype == torch.float32
