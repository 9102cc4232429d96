"""What weights take beyond what was ordered is reserved before it is taken, or the load refused."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import brisk_native
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig

from services.common.errors import ResourceExhaustedError
from services.worker.start import Starter
from tests.unit.worker.doubles import FolderStore, model_info
from tests.unit.worker.house_of_models import shown
from tests.unit.worker.test_start import FILE, House


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def house(tmp_path: Path, tiny_model: Callable[[str], Path], executor: ThreadPoolExecutor) -> House:
    return House(shutil.copytree(tiny_model("llama"), tmp_path / "m"), executor)


async def test_weights_that_are_used_in_place_take_what_was_ordered(house: House) -> None:
    order = house.order()
    await house.start(order)
    assert set(house.sizes) == {order.memory_bytes}


def store_twice(folder: Path) -> int:
    """Store the tied head of a model, too; return its size."""
    tensors = load_file(folder / FILE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    return tensors["lm_head.weight"].nbytes


async def test_a_tied_head_that_is_stored_all_the_same_is_reserved(house: House) -> None:
    known = model_info(house.folder)  # a store counts what is tied once
    house.store = FolderStore({"m": house.folder}, lambda _: known)
    house.starter = Starter(house.store, house.executor)
    head_bytes = store_twice(house.folder)
    order = house.order()
    await house.start(order)
    excess = brisk_native.inspect(house.folder).tensor_bytes - known.weight_bytes
    assert 0 < head_bytes - excess < 10_000  # which the header of the file has
    assert set(house.sizes) == {order.memory_bytes + excess}


async def test_copies_are_reserved_before_they_are_made(house: House) -> None:
    tensors = load_file(house.folder / FILE)
    odd = "model.layers.0.mlp.up_proj.weight"
    tensors[odd] = tensors[odd].to(torch.float16)  # to be cast
    save_file(tensors, house.folder / FILE, metadata={"format": "pt"})
    order = house.order()
    started = await house.start(order)
    assert started.loaded.bytes_read == (house.folder / FILE).stat().st_size
    header_bytes = started.loaded.bytes_read - brisk_native.inspect(house.folder).tensor_bytes
    cast_bytes = 2 * tensors[odd].nbytes
    assert house.sizes == [
        order.memory_bytes,
        *[order.memory_bytes + cast_bytes - header_bytes] * 2,
    ]
    house.device_bytes = house.sizes[-1] - 1
    with pytest.raises(ResourceExhaustedError, match="full"):
        await house.start(order)


def mixture(folder: Path) -> Path:
    """Write a model whose stored tensors must be merged."""
    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=1024,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


async def test_what_converting_takes_is_reserved_and_given_back(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    house = House(mixture(tmp_path / "m"), executor)
    weight_bytes = model_info(house.folder).weight_bytes
    order = house.order(memory_bytes=weight_bytes + (1 << 20))
    started = await house.start(order)
    first, most, last = house.sizes
    assert first == last == order.memory_bytes
    assert most > order.memory_bytes + 0.9 * weight_bytes
    assert shown(started.decoder, [(1, 2, 3)]).shape == (1024,)
    del started
    house.device_bytes = most - 1
    with pytest.raises(ResourceExhaustedError, match="full"):
        await house.start(order)
    assert house.store.leases == 0
