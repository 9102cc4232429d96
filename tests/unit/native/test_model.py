"""load_model's promise: the model that transformers gives, its weights where they were read.

Nothing is allocated twice, nothing is forgotten. The reference is transformers' own
`from_pretrained` on the same folder.
"""

import gc
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import brisk_native
import pytest
import torch
from brisk_native import LoadReport, ReadResult, _reading, load_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from tests.broken_models import read_raw, write_raw
from tests.models import KINDS
from tests.unit.native.test_tensors import check_same, flip, write_manifest

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}


def load(folder: Path) -> tuple[PreTrainedModel, LoadReport]:
    with brisk_native.start_loading(folder) as loading:
        return loading.result(), loading.report


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """Return, growing, the addresses of the memory that files are read into."""
    seen: list[range] = []
    real = brisk_native.read_files

    def read_files(*args: Any, **kwargs: Any) -> tuple[list[Any], ReadResult]:
        buffers, result = real(*args, **kwargs)
        seen.extend(addresses(memoryview(buffer)) for buffer in buffers)
        return buffers, result

    monkeypatch.setattr(_reading, "read_files", read_files)
    return seen


def a_pool(kind: str = "private") -> brisk_native.Pool:
    if brisk_native.IMPLEMENTATION != "native":
        pytest.skip("pools need the compiled loader")
    return brisk_native.Pool(16 << 20, kind=kind)


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
    kind: str, tiny_model: Callable[[str], Path], buffers: list[range]
) -> None:
    model, report = load(tiny_model(kind))
    for name, parameter in model.named_parameters():
        assert any(parameter.data_ptr() in each for each in buffers), name
        assert not parameter.requires_grad
    assert report.copied_bytes == 0
    assert report.held_bytes == report.bytes_read == sum(map(len, buffers))
    assert report.files == len(buffers)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_equals_the_one_that_transformers_loads(
    kind: str, tiny_model: Callable[[str], Path]
) -> None:
    model = load_model(tiny_model(kind))
    assert_equals_reference(model, tiny_model(kind))
    assert not model.training


@pytest.mark.parametrize("kind", ["llama", "qwen2-tied", "gpt2", "opt"])
def test_tied_weights_are_one_tensor(kind: str, tiny_model: Callable[[str], Path]) -> None:
    model = load_model(tiny_model(kind))
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
    model, report = load(folder)
    assert report.copied_bytes == 0
    assert model.dtype == dtype
    assert_equals_reference(model, folder)
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
    model, report = load(folder)
    assert report.copied_bytes == 0
    assert_equals_reference(model, folder)


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
    model, report = load(folder)
    assert_equals_reference(model, folder)
    assert report.copied_bytes == end - start
    assert report.held_bytes == report.bytes_read + report.copied_bytes
    for name, parameter in model.named_parameters():
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
    model, report = load(folder)
    assert report.copied_bytes == 2 * len(values)
    assert_equals_reference(model, folder)


def test_weights_that_must_be_merged_are_converted_as_transformers_does(
    tmp_path: Path, buffers: list[range]
) -> None:
    folder = save(tmp_path, MixtralConfig(**TINY, num_local_experts=4))
    names = brisk_native.inspect(folder).tensors
    assert any("experts.3." in name for name in names)  # stored one by one
    model, report = load(folder)
    assert_equals_reference(model, folder)
    for name, parameter in model.named_parameters():  # or the files would stay in memory
        assert not any(parameter.data_ptr() in each for each in buffers), name
    assert report.copied_bytes == report.held_bytes > 0


def test_the_configs_own_type_does_not_matter_the_stored_one_does(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaConfig(**TINY), torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    model, report = load(folder)
    assert model.dtype == torch.bfloat16
    assert report.copied_bytes == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_another_type_may_be_asked_for(
    tiny_model: Callable[[str], Path], dtype: torch.dtype | str
) -> None:
    folder = tiny_model("llama")
    model = load_model(folder, dtype=dtype)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    ours, theirs = tensors(model), tensors(reference)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ValueError, match="floating-point type"):
        load_model(folder, dtype="int8")


def test_a_tie_that_the_stored_values_contradict_is_no_tie(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaConfig(**TINY, tie_word_embeddings=False))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model = load_model(folder)
    assert_equals_reference(model, folder)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert head.weight is not model.get_input_embeddings().weight


def test_a_tie_that_is_stored_twice_is_one_tensor(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaConfig(**TINY, tie_word_embeddings=False))
    path = folder / "model.safetensors"
    stored = load_file(path)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model = load_model(folder)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert head.weight is model.get_input_embeddings().weight
    assert_equals_reference(model, folder)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sharded-llama"])
def test_layers_are_told_in_the_order_of_execution(
    kind: str, tiny_model: Callable[[str], Path]
) -> None:
    told: list[tuple[str, dict[str, torch.Tensor]]] = []
    folder = tiny_model(kind)
    load_model(folder, on_layer=lambda name, tensors: told.append((name, tensors)))
    groups = brisk_native.execution_order(brisk_native.inspect(folder).tensors)
    assert [name for name, _ in told] == [group.name for group in groups]
    assert [tuple(tensors) for _, tensors in told] == [group.tensors for group in groups]
    expected = brisk_native.load_tensors(folder)
    for _, found in told:
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), name


def test_progress_and_layers_are_told_on_the_calling_thread_and_may_end_the_load(
    tiny_model: Callable[[str], Path],
) -> None:
    threads: set[int] = set()
    done: list[tuple[int, int]] = []

    def progress(now: int, total: int) -> None:
        threads.add(threading.get_ident())
        done.append((now, total))

    def on_layer(name: str, _: dict[str, torch.Tensor]) -> None:
        threads.add(threading.get_ident())
        if name == "layers.1":
            raise KeyError(name)

    folder = tiny_model("sharded-llama")
    with pytest.raises(KeyError, match=r"layers\.1"):
        load_model(folder, on_layer=on_layer, progress=progress)
    assert threads == {threading.get_ident()}
    total = brisk_native.inspect(folder).file_bytes
    done.clear()
    load_model(folder, progress=progress)
    assert (done[0], done[-1]) == ((0, total), (total, total))
    assert done == sorted(done)


def test_a_cancelled_load_ends_as_such(tiny_model: Callable[[str], Path]) -> None:
    token = brisk_native.CancelToken()
    token.cancel()
    with pytest.raises(brisk_native.ReadCancelledError):
        load_model(tiny_model("llama"), cancel=token)


def test_a_flipped_bit_is_a_checksum_error_unless_nothing_shall_be_verified(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "m")
    write_manifest(folder)
    load_model(folder)
    flip(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1)
    with pytest.raises(brisk_native.ChecksumError):
        load_model(folder)
    load_model(folder, verify=False)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("model.safetensors", b'"F32"', b'"F33"'),  # the header is refused, but it is damage
        ("model.safetensors", b"model.norm", b"model.nork"),  # so is a model without its norm
        ("config.json", b'"rope_theta": 10000', b'"rope_theta": 10004'),  # nothing else would tell
    ],
)
def test_damage_is_a_checksum_error_wherever_it_lies(
    tmp_path: Path, tiny_model: Callable[[str], Path], name: str, old: bytes, new: bytes
) -> None:
    brisk_native.convert(tiny_model("llama"), tmp_path / "m")
    content = (tmp_path / "m" / name).read_bytes()
    assert old in content
    (tmp_path / "m" / name).write_bytes(content.replace(old, new, 1))
    with pytest.raises(brisk_native.ChecksumError) as caught:
        load_model(tmp_path / "m")
    assert caught.value.path.endswith(name)


def test_the_package_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, brisk_native; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_weights_go_to_the_pool_that_is_given_and_back_with_the_model(
    tiny_model: Callable[[str], Path],
) -> None:
    folder = tiny_model("sharded-llama")
    weights = brisk_native.inspect(folder)
    with a_pool() as pool:
        free_bytes = pool.free_bytes
        model: PreTrainedModel | None = load_model(folder, pool=pool)
        assert model is not None
        assert free_bytes - pool.free_bytes >= weights.file_bytes
        assert_equals_reference(model, folder)
        model = None
        gc.collect()
        assert pool.free_bytes == free_bytes


def test_a_pool_without_room_is_refused_before_anything_is_read(
    tiny_model: Callable[[str], Path],
) -> None:
    with a_pool() as pool:
        held = brisk_native.read_files([tiny_model("gpt2") / "model.safetensors"] * 8, pool=pool)
        with pytest.raises(brisk_native.PoolFullError):
            load_model(tiny_model("llama"), pool=pool)
        assert held


def test_what_lies_in_a_pool_is_had_at_once_by_whoever_has_the_pool(
    tiny_model: Callable[[str], Path],
) -> None:
    path = tiny_model("llama") / "model.safetensors"
    with a_pool(kind="small") as pool:
        (buffer,), _ = brisk_native.read_files([path], pool=pool)
        expected = load_file(path)
        check_same(brisk_native.tensors_in(buffer), expected)
        assert buffer.pool_offset is not None
        attached = brisk_native.Pool.attach(str(pool.path))
        found = brisk_native.tensors_in(attached.view(buffer.pool_offset, len(buffer)), path)
        check_same(found, expected)
        begin = min(tensor.data_ptr() for tensor in found.values())
        assert max(t.data_ptr() for t in found.values()) - begin < len(buffer)


def test_bytes_that_are_no_safetensors_are_refused_by_name() -> None:
    with pytest.raises(brisk_native.InvalidHeaderError, match="somewhere"):
        brisk_native.tensors_in(bytearray(b"nothing at all"), "somewhere")


def test_the_stored_form_loads_as_the_folder_it_was_made_of(
    tmp_path: Path, tiny_model: Callable[[str], Path], buffers: list[range]
) -> None:
    for kind in ("sharded-llama", "gpt2", "opt"):
        brisk_native.convert(tiny_model(kind), tmp_path / kind)
        buffers.clear()
        model, report = load(tmp_path / kind)
        assert (report.files, report.copied_bytes, report.verified) == (1, 0, True)
        for name, parameter in model.named_parameters():
            assert parameter.data_ptr() in buffers[0], name
            assert parameter.data_ptr() % 256 == 0, name
        assert_equals_reference(model, tiny_model(kind))
