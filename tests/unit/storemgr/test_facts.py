"""Sizes add up, tied tensors count once, a cached number is as wide as the weights."""

from __future__ import annotations

import json

import pytest
from brisk_native import TensorInfo
from brisk_native._types import DTYPE_BITS

from services.storemgr.facts import ModelFacts, Tally
from services.storemgr.model_config import parse_config

SHAPE = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
ELEMENTS = 2 * 2 * 4 * 16


def tensor(name: str, elements: int, dtype: str = "F32") -> TensorInfo:
    size = elements * DTYPE_BITS[dtype] // 8
    return TensorInfo(name=name, dtype=dtype, shape=(elements,), offset=0, size_bytes=size)


def facts(*tensors: TensorInfo, **fields: object) -> ModelFacts:
    tally = Tally()
    for each in tensors:
        tally.add([each])
    raw = json.dumps({"architectures": ["X"], **SHAPE, **fields}).encode()
    return tally.facts(parse_config(raw))


def test_bytes_and_parameters_are_those_of_all_tensors() -> None:
    found = facts(tensor("a", 10), tensor("b", 7, "F16"))
    assert (found.weight_bytes, found.parameters, found.tensors) == (54, 17, 2)


def test_a_tied_head_that_was_stored_nevertheless_counts_once() -> None:
    tensors = (tensor("model.embed_tokens.weight", 10), tensor("lm_head.weight", 10))
    assert facts(*tensors, tie_word_embeddings=True).weight_bytes == 40
    assert facts(*tensors, tie_word_embeddings=True).parameters == 10
    assert facts(*tensors, tie_word_embeddings=False).weight_bytes == 80


def test_the_most_frequent_type_is_the_model_s() -> None:
    assert facts(tensor("a", 1, "BF16"), tensor("b", 1, "BF16"), tensor("c", 99)).dtype == "BF16"
    assert facts(tensor("a", 1, "BF16"), tensor("c", 99)).dtype == "F32"


@pytest.mark.parametrize(
    ("dtype", "stated", "width"),
    [
        ("F32", "bfloat16", 4),
        ("BF16", None, 2),
        ("F64", None, 8),
        ("F8_E4M3", "float32", 4),
        ("F8_E4M3", None, 2),
        ("I8", "quaternion", 2),
    ],
)
def test_a_cached_number_is_as_wide_as_the_weights(
    dtype: str, stated: str | None, width: int
) -> None:
    found = facts(tensor("a", 8, dtype), torch_dtype=stated)
    assert found.kv_bytes_per_token == ELEMENTS * width


def test_what_the_config_leaves_open_is_zero() -> None:
    found = facts(tensor("a", 1), num_hidden_layers=None)
    assert (found.kv_bytes_per_token, found.context_tokens_max) == (0, 0)
