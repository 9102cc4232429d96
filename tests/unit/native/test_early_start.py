"""start_loading's promise: a model's first layers compute while its last ones are not read yet.

Reads that stop at a gate prove it: what lies behind the gate is not in memory, and the test would
wait for ever if computing needed it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import brisk_native
import pytest
import torch
from brisk_native import CHUNK_BYTES, CancelToken, ReadSettings, _fallback, _reading
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tests.unit.native.test_model import TINY, assert_equals_reference, save
from tests.unit.native.test_tensors import flip, write_manifest

WAIT_S = 60
# Layers of several chunks each.
LARGE = LlamaConfig(
    hidden_size=512,
    intermediate_size=1024,
    num_hidden_layers=3,
    num_attention_heads=8,
    vocab_size=1024,
    tie_word_embeddings=False,
)
IDS = torch.arange(3, 20)[None]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a model whose layers have several chunks."""
    return save(tmp_path_factory.mktemp("large"), LARGE)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, large: Path) -> Path:
    """Make the same in several files, each with tensors of several layers."""
    folder = tmp_path_factory.mktemp("shards")
    model = AutoModelForCausalLM.from_pretrained(large)
    model.save_pretrained(folder, max_shard_size="9MB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


class Gate:
    """Reads files on one thread, chunk by chunk, and stops when a group is there."""

    def __init__(self, after: int) -> None:
        """`after`: number of the group in whose milestone the reads stop."""
        self._after = after
        self.is_reached = threading.Event()
        self.is_open = threading.Event()
        self.buffers: Sequence[_fallback.FileBuffer] = ()

    def read_files(
        self,
        paths: Sequence[Path],
        *,
        milestones: Sequence[int],
        on_milestone: Callable[[int], None],
        on_buffers: Callable[[list[_fallback.FileBuffer]], None],
        cancel: CancelToken,
        **others: Any,
    ) -> object:
        def told(chunks: int) -> None:
            on_milestone(chunks)
            if chunks == milestones[self._after]:
                self.is_reached.set()
                while not cancel.cancelled and not self.is_open.wait(0.01):
                    pass

        def shown(buffers: list[_fallback.FileBuffer]) -> None:
            self.buffers = buffers
            on_buffers(buffers)

        return _fallback.read_files(
            paths,
            milestones=milestones,
            on_milestone=told,
            on_buffers=shown,
            cancel=cancel,  # type: ignore[arg-type]  # a token is a token
            **{**others, "settings": ReadSettings()},
        )

    def is_unread(self, folder: Path, name: str) -> bool:
        """Return whether no byte of a tensor is in memory."""
        weights = brisk_native.inspect(folder)
        file, tensor = weights.tensors[name]
        buffer = self.buffers[[each.name for each in weights.files].index(file.name)]
        # Its ends may share a chunk with what is there.
        first = -(-tensor.offset // CHUNK_BYTES) * CHUNK_BYTES
        last = (tensor.offset + tensor.size_bytes) // CHUNK_BYTES * CHUNK_BYTES
        part = buffer[first:last] or buffer[tensor.offset : tensor.offset + tensor.size_bytes]
        return not any(part)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Stop reads when the embedding and the first layer are there."""
    gate = Gate(1)
    monkeypatch.setattr(_reading, "read_files", gate.read_files)
    yield gate
    gate.is_open.set()


@pytest.mark.parametrize("kind", ["large", "shards"])
def test_the_first_layer_computes_while_the_last_is_not_read(
    kind: str, request: pytest.FixtureRequest, gate: Gate
) -> None:
    folder: Path = request.getfixturevalue(kind)
    seen: list[bool] = []
    with brisk_native.start_loading(folder) as loading, loading.computing() as model:
        last = model.get_submodule("model.layers.2.mlp.down_proj")

        def computed(*_: object) -> None:
            seen.append(gate.is_unread(folder, "model.layers.2.mlp.down_proj.weight"))
            seen.append(next(last.parameters()).is_meta)
            seen.append(loading.done())
            gate.is_open.set()

        model.get_submodule("model.layers.0").register_forward_hook(computed)
        with torch.inference_mode():
            logits = model(IDS).logits
    assert seen == [True, True, False]
    assert torch.equal(logits, AutoModelForCausalLM.from_pretrained(folder)(IDS).logits)


def test_a_caller_may_compute_the_first_layer_by_itself(large: Path, gate: Gate) -> None:
    reference = AutoModelForCausalLM.from_pretrained(large)
    with brisk_native.start_loading(large) as loading, torch.inference_mode():
        loading.wait_for("layers.0", WAIT_S)
        model = loading.model
        hidden = model.get_submodule("model.embed_tokens")(IDS)
        positions = torch.arange(IDS.shape[1])[None]
        rotary = model.get_submodule("model.rotary_emb")(hidden, positions)
        found = model.get_submodule("model.layers.0")(hidden, position_embeddings=rotary)
        assert gate.is_unread(large, "model.layers.2.mlp.down_proj.weight")
        assert not loading.done()
        expected = reference(IDS, output_hidden_states=True).hidden_states[1]
        first = found if isinstance(found, torch.Tensor) else found[0]
        torch.testing.assert_close(first, expected)
        gate.is_open.set()
        assert loading.result() is model
        assert_equals_reference(model, large)


def test_groups_are_waited_for_by_name_and_no_longer_than_asked(large: Path, gate: Gate) -> None:
    with brisk_native.start_loading(large) as loading:
        assert loading.groups == ("embed", "layers.0", "layers.1", "layers.2", "head")
        loading.wait_for("embed", WAIT_S)
        loading.wait_for("layers.0", WAIT_S)
        with pytest.raises(TimeoutError, match=r"layers\.1"):
            loading.wait_for("layers.1", 0)
        with pytest.raises(TimeoutError):
            loading.result(0)
        with pytest.raises(ValueError, match=r"no group 'layers\.9' among embed, layers\.0"):
            loading.wait_for("layers.9")
        gate.is_open.set()
        loading.wait_for("head", WAIT_S)
        assert loading.report.bytes_read == loading.weights.file_bytes


def test_cancelling_ends_whoever_waits(large: Path, gate: Gate) -> None:
    with brisk_native.start_loading(large) as loading, loading.computing() as model:
        gate.is_reached.wait(WAIT_S)
        threading.Thread(target=loading.cancel).start()
        with pytest.raises(brisk_native.ReadCancelledError):
            model(IDS)
        for wait in (loading.result, lambda: loading.wait_for("head")):
            with pytest.raises(brisk_native.ReadCancelledError):
                wait()
        assert loading.done()


def test_leaving_the_block_ends_the_load(large: Path, gate: Gate) -> None:
    with brisk_native.start_loading(large) as loading:
        gate.is_reached.wait(WAIT_S)
    assert loading.done()
    with pytest.raises(brisk_native.ReadCancelledError):
        loading.result()


def test_what_ends_a_load_reaches_whoever_computes(tmp_path: Path, large: Path) -> None:
    folder = shutil.copytree(large, tmp_path / "m")
    write_manifest(folder)
    _, tensor = brisk_native.inspect(folder).tensors["model.layers.2.mlp.down_proj.weight"]
    flip(folder / "model.safetensors", tensor.offset + 5)
    with brisk_native.start_loading(folder) as loading:
        with pytest.raises(brisk_native.ChecksumError) as caught:
            loading.result()
        assert caught.value.chunk == (tensor.offset + 5) // CHUNK_BYTES
        with pytest.raises(brisk_native.ChecksumError):
            loading.wait_for("head")


def test_a_model_that_does_not_fit_is_refused_before_the_reads_end(
    tmp_path: Path, large: Path, gate: Gate
) -> None:
    folder = shutil.copytree(large, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    gate.is_open.set()
    with brisk_native.start_loading(folder) as loading:
        with pytest.raises(brisk_native.InvalidModelError, match="is missing"):
            loading.wait_for("embed")
        with pytest.raises(brisk_native.InvalidModelError, match="is missing"):
            _ = loading.model


def test_wrong_headers_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(brisk_native.InvalidHeaderError):
        brisk_native.start_loading(tmp_path)


def test_hooks_are_gone_after_the_block(large: Path) -> None:
    def hooks(model: PreTrainedModel) -> int:
        return sum(len(module._forward_pre_hooks) for module in model.modules())  # noqa: SLF001

    with brisk_native.start_loading(large) as loading:
        with loading.computing() as model:
            assert hooks(model) > 0
        assert hooks(model) == 0
        assert_equals_reference(loading.result(), large)


def test_a_model_that_must_be_converted_computes_when_all_is_there(tmp_path: Path) -> None:
    from transformers import MixtralConfig  # noqa: PLC0415 - only here

    folder = save(tmp_path, MixtralConfig(**TINY, num_local_experts=4))
    with brisk_native.start_loading(folder) as loading, loading.computing() as model:
        assert_equals_reference(model, folder)


@pytest.mark.parametrize("kind", ["large", "shards"])
def test_chunks_are_planned_in_the_order_of_need(kind: str, request: pytest.FixtureRequest) -> None:
    weights = brisk_native.inspect(request.getfixturevalue(kind))
    groups = brisk_native.execution_order(weights.tensors)
    plan = _reading.read_plan(weights, groups)
    assert len(set(plan.order)) == len(plan.order)
    assert list(plan.milestones) == sorted(plan.milestones)
    assert plan.milestones[-1] == len(plan.order)
    # Nearly half of the chunks must not be waited for by the first layer.
    assert plan.milestones[1] < 0.6 * len(plan.order)
    numbers = {file.name: number for number, file in enumerate(weights.files)}
    for group, milestone in zip(groups, plan.milestones, strict=True):
        there = set(plan.order[:milestone])
        for name in group.tensors:
            file, tensor = weights.tensors[name]
            assert (numbers[file.name], 0) in there  # the header
            last = (tensor.offset + tensor.size_bytes - 1) // CHUNK_BYTES
            for chunk in range(tensor.offset // CHUNK_BYTES, last + 1):
                assert (numbers[file.name], chunk) in there


def test_the_example_computes_and_loads(large: Path) -> None:
    example = Path(__file__).parents[3] / "examples" / "early_start.py"
    done = subprocess.run(
        [sys.executable, example, large], capture_output=True, text=True, check=True
    )
    logits = AutoModelForCausalLM.from_pretrained(large)(torch.tensor([[1, 2, 3]])).logits
    assert int(done.stdout) == int(logits[0, -1].argmax())
    assert "groups: embed, layers.0" in done.stderr
