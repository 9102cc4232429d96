"""Execution order: by names alone, the tensors of a model come in the order of their use."""

from __future__ import annotations

import random

import pytest
from brisk_native import execution_order

LLAMA_LAYER = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
OPT_LAYER = (
    *(f"self_attn_layer_norm.{end}" for end in ("weight", "bias")),
    *(f"self_attn.{one}_proj.{end}" for one in "qkv" for end in ("weight", "bias")),
    *(f"self_attn.out_proj.{end}" for end in ("weight", "bias")),
    *(f"final_layer_norm.{end}" for end in ("weight", "bias")),
    *(f"{one}.{end}" for one in ("fc1", "fc2") for end in ("weight", "bias")),
)
GPT2_LAYER = (
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias"),
    *("attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)
FUSED_LAYER = (
    *("input_layernorm.weight", "input_layernorm.bias"),
    *("ATTENTION.query_key_value.weight", "ATTENTION.query_key_value.bias"),
    *("ATTENTION.dense.weight", "ATTENTION.dense.bias"),
    *("post_attention_layernorm.weight", "post_attention_layernorm.bias"),
    *("mlp.dense_h_to_4h.weight", "mlp.dense_h_to_4h.bias"),
    *("mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_h.bias"),
)
MIXTRAL_LAYER = (
    *LLAMA_LAYER[:6],
    "block_sparse_moe.gate.weight",
    *(f"block_sparse_moe.experts.{n}.{w}.weight" for n in range(11) for w in ("w1", "w3", "w2")),
)
GEMMA_LAYER = (
    *LLAMA_LAYER[:6],
    "pre_feedforward_layernorm.weight",
    *LLAMA_LAYER[6:],
    "post_feedforward_layernorm.weight",
)
QWEN3_LAYER = (
    *LLAMA_LAYER[:4],
    *("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    *LLAMA_LAYER[4:],
)
PHI_LAYER = (
    *("input_layernorm.weight", "input_layernorm.bias"),
    *(f"self_attn.{one}_proj.{end}" for one in "qkv" for end in ("weight", "bias")),
    *("self_attn.dense.weight", "self_attn.dense.bias"),
    *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
)
NEOX_LAYER = tuple(name.replace("ATTENTION", "attention") for name in FUSED_LAYER)
BLOOM_LAYER = tuple(name.replace("ATTENTION", "self_attention") for name in FUSED_LAYER)
MODEL = ("model.embed_tokens.weight",)
NORM = ("model.norm.weight", "lm_head.weight")

# By architecture: what comes first, the path of the layers, one layer, what comes last.
ARCHITECTURES = {
    "llama": (MODEL, "model.layers", LLAMA_LAYER, NORM),
    "llama, tied": (MODEL, "model.layers", LLAMA_LAYER, NORM[:1]),
    "qwen3": (MODEL, "model.layers", QWEN3_LAYER, NORM),
    "gemma2": (MODEL, "model.layers", GEMMA_LAYER, NORM[:1]),
    "mixtral": (MODEL, "model.layers", MIXTRAL_LAYER, NORM),
    "phi": (
        MODEL,
        "model.layers",
        PHI_LAYER,
        ("model.final_layernorm.weight", "model.final_layernorm.bias", "lm_head.weight"),
    ),
    "opt": (
        ("model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"),
        "model.decoder.layers",
        OPT_LAYER,
        ("model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias"),
    ),
    "gpt2": (
        ("transformer.wte.weight", "transformer.wpe.weight"),
        "transformer.h",
        GPT2_LAYER,
        ("transformer.ln_f.weight", "transformer.ln_f.bias"),
    ),
    "gpt2, bare": (("wte.weight", "wpe.weight"), "h", GPT2_LAYER, ("ln_f.weight", "ln_f.bias")),
    "gpt-neox": (
        ("gpt_neox.embed_in.weight",),
        "gpt_neox.layers",
        NEOX_LAYER,
        ("gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias", "embed_out.weight"),
    ),
    "bloom": (
        (
            "word_embeddings.weight",
            "word_embeddings_layernorm.weight",
            "word_embeddings_layernorm.bias",
        ),
        "h",
        BLOOM_LAYER,
        ("ln_f.weight", "ln_f.bias"),
    ),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_is_ordered_by_use_however_its_names_come(architecture: str) -> None:
    before, path, layer, after = ARCHITECTURES[architecture]
    layers = [[f"{path}.{number}.{name}" for name in layer] for number in range(12)]
    expected = [*before, *(name for names in layers for name in names), *after]
    for mixed in (sorted(expected), expected[::-1], random.Random(1).sample(expected, 50)):  # noqa: S311
        rest = [name for name in expected if name not in set(mixed)]
        groups = execution_order([*mixed, *rest])
        order = [name for group in groups for name in group.tensors]
        assert order == expected
        names = ["embed", *(f"layers.{number}" for number in range(12)), "head"]
        assert [group.name for group in groups] == names


def test_layers_come_by_number_not_by_text() -> None:
    names = [f"model.layers.{number}.mlp.weight" for number in (10, 9, 100, 2)]
    groups = [group.name for group in execution_order(names)]
    assert groups == ["layers.2", "layers.9", "layers.10", "layers.100"]


def test_towers_and_projectors_come_between_embedding_and_layers() -> None:
    names = [
        "lm_head.weight",
        "language_model.model.layers.0.mlp.down_proj.weight",
        "language_model.model.norm.weight",
        "multi_modal_projector.linear_1.weight",
        "vision_tower.vision_model.post_layernorm.weight",
        "vision_tower.vision_model.encoder.layers.10.mlp.fc1.weight",
        "vision_tower.vision_model.encoder.layers.9.mlp.fc1.weight",
        "vision_tower.vision_model.embeddings.norm.weight",
        "language_model.model.embed_tokens.weight",
    ]
    assert [(group.name, group.tensors) for group in execution_order(names)] == [
        ("embed", (names[8],)),
        ("vision_tower.embed", (names[7],)),
        ("vision_tower.layers.9", (names[6],)),
        ("vision_tower.layers.10", (names[5],)),
        ("vision_tower.head", (names[4],)),
        ("multi_modal_projector", (names[3],)),
        ("layers.0", (names[1],)),
        ("head", (names[2], names[0])),
    ]


def test_an_encoder_is_a_tower_of_its_decoder() -> None:
    names = [
        "decoder.block.0.layer.2.DenseReluDense.wo.weight",
        "decoder.block.0.layer.0.SelfAttention.q.weight",
        "decoder.block.0.layer.1.EncDecAttention.q.weight",
        "decoder.final_layer_norm.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "encoder.final_layer_norm.weight",
        "shared.weight",
    ]
    groups = execution_order(names)
    order = [name for group in groups for name in group.tensors]
    assert order == [names[place] for place in (6, 4, 5, 1, 2, 0, 3)]
    assert [group.name for group in groups] == [
        *("embed", "encoder.layers.0", "encoder.head", "layers.0", "head")
    ]


def test_an_encoder_alone_is_the_model() -> None:
    names = ["encoder.layer.0.output.dense.weight", "pooler.dense.weight"]
    assert [group.name for group in execution_order(names)] == ["layers.0", "head"]


def test_a_second_list_of_layers_keeps_its_own_name_behind_the_first() -> None:
    names = ["mtp.layers.0.mlp.weight", *(f"model.layers.{n}.mlp.weight" for n in range(2))]
    groups = [group.name for group in execution_order(names)]
    assert groups == ["layers.0", "layers.1", "mtp.layers.0"]


def test_unknown_names_keep_their_order_at_the_end_of_the_embedding() -> None:
    names = ["z.bias", "a", "", "layers", "model.layers.x.weight", "a.b.c", "a.b.a", "layers.1"]
    embedding = "model.embed_tokens.weight"
    (group,) = execution_order([*names, embedding])
    assert (group.name, group.tensors) == ("embed", (embedding, *names))


def test_unknown_names_in_a_layer_come_last_in_it() -> None:
    names = [f"h.0.{end}" for end in ("zeta.weight", "alpha.weight", "mlp.c_fc.weight")]
    (group,) = execution_order(names)
    assert group.tensors == (names[2], names[0], names[1])


def test_nothing_is_lost_and_nothing_doubled() -> None:
    words = ["model", "layers", "0", "10", "h", "norm", "embed", "encoder", "decoder", "visual", ""]
    chooser = random.Random(7)  # noqa: S311
    names = [".".join(chooser.choices(words, k=chooser.randint(1, 6))) for _ in range(5_000)]
    order = [name for group in execution_order(names) for name in group.tensors]
    assert sorted(order) == sorted(set(names))


def test_ordered_names_stay_as_they_are() -> None:
    chooser = random.Random(8)  # noqa: S311
    names = [f"model.layers.{n}.{name}" for n in range(20) for name in MIXTRAL_LAYER]
    chooser.shuffle(names)
    once = [name for group in execution_order(names) for name in group.tensors]
    assert [name for group in execution_order(once) for name in group.tensors] == once


def test_names_without_any_need_no_group() -> None:
    assert execution_order(()) == ()
