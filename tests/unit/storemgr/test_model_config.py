"""Every family spells its facts differently. The impossible is refused, the absent is 0."""

from __future__ import annotations

import json

import pytest

from services.storemgr.model_config import ModelConfig, parse_config
from services.storemgr.refusal import MalformedError


def config(**fields: object) -> ModelConfig:
    return parse_config(json.dumps({"architectures": ["XForCausalLM"], **fields}).encode())


@pytest.mark.parametrize(
    ("family", "fields", "kv_elements", "context"),
    [
        (
            "llama",
            {
                "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
                "num_key_value_heads": 2, "max_position_embeddings": 256,
            },
            2 * 2 * 2 * 16,
            256,
        ),
        (
            "qwen2 with its own head width",
            {
                "num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 32,
                "num_key_value_heads": 1, "max_position_embeddings": 32768,
            },
            2 * 3 * 1 * 32,
            32768,
        ),
        (
            "opt",
            {
                "num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 32,
                "max_position_embeddings": 2048,
            },
            2 * 24 * 32 * 64,
            2048,
        ),
        ("gpt2", {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024}, 18432, 1024),
        ("mpt", {"n_layers": 2, "d_model": 64, "n_heads": 4, "max_seq_len": 99}, 256, 99),
        ("gpt_neo", {"num_layers": 2, "hidden_size": 64, "num_heads": 4}, 256, None),
        (
            "falcon",
            {
                "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
                "multi_query": True, "num_kv_heads": 4,
            },
            2 * 2 * 1 * 16,
            None,
        ),
        (
            "falcon",
            {
                "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
                "multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 2,
            },
            2 * 2 * 2 * 16,
            None,
        ),
        ("bloom", {"n_layer": 2, "hidden_size": 64, "n_head": 4, "seq_length": 2048}, 256, 2048),
        ("mamba", {"num_hidden_layers": 2, "hidden_size": 64}, 0, None),
        (
            "deepseek_v3",
            {
                "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
                "kv_lora_rank": 512,
            },
            0,
            None,
        ),
        (
            "gemma, whose head width is no quotient",
            {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4},
            0,
            None,
        ),
        (
            "one value per layer",
            {
                "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
                "num_key_value_heads": [1, 2],
            },
            0,
            None,
        ),
        ("xlnet without bound", {"max_position_embeddings": -1}, 0, None),
    ],
)  # fmt: skip
def test_facts_are_found_under_each_family_s_names(
    family: str, fields: dict[str, object], kv_elements: int, context: int | None
) -> None:
    parsed = config(model_type=family.split(maxsplit=1)[0].rstrip(","), **fields)
    assert parsed.kv_elements_per_token == kv_elements
    assert parsed.context_tokens_max == context


def test_the_language_part_of_a_larger_model_speaks() -> None:
    parsed = config(
        hidden_size=1,
        text_config={
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "max_position_embeddings": 77,
        },
    )
    assert parsed.kv_elements_per_token == 2 * 2 * 4 * 16
    assert parsed.context_tokens_max == 77


def test_only_an_explicit_tie_counts() -> None:
    assert config(tie_word_embeddings=True).tied
    assert not config().tied
    assert not config(tie_word_embeddings="yes").tied


@pytest.mark.parametrize(
    ("fields", "architecture"),
    [
        ({"architectures": ["LlamaForCausalLM", "Other"]}, "LlamaForCausalLM"),
        ({"architectures": None, "model_type": "llama"}, "llama"),
        ({"architectures": [], "model_type": "llama"}, "llama"),
    ],
)
def test_the_first_class_named_is_the_architecture(
    fields: dict[str, object], architecture: str
) -> None:
    assert config(**fields).architecture == architecture


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"architectures": None}, "names neither"),
        ({"architectures": "LlamaForCausalLM"}, "a string as architectures"),
        ({"architectures": [1]}, "a number as architecture"),
        ({"architectures": ["rm -rf /"]}, "no class name"),
        ({"architectures": ["A" * 129]}, "no class name"),
        ({"num_hidden_layers": -1}, "num_hidden_layers. Given: -1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers. Given: 0"),
        ({"num_hidden_layers": "2"}, "Given: a string"),
        ({"num_hidden_layers": 2.5}, "Given: a number"),
        ({"num_hidden_layers": True}, "Given: a boolean"),
        ({"hidden_size": 2**31}, "hidden_size. Given: 2147483648"),
        ({"max_position_embeddings": 0}, "max_position_embeddings. Given: 0"),
        ({"max_position_embeddings": 2**32}, "max_position_embeddings"),
        ({"max_position_embeddings": {}}, "Given: an object"),
    ],
)
def test_what_cannot_be_true_is_refused_with_the_given_value(
    fields: dict[str, object], problem: str
) -> None:
    with pytest.raises(MalformedError) as refusal:
        config(**fields)
    assert problem in str(refusal.value)


def test_infinity_in_a_config_is_no_fault() -> None:
    parsed = parse_config(b'{"model_type": "mamba2", "time_step_limit": [0.0, Infinity]}')
    assert parsed.architecture == "mamba2"
