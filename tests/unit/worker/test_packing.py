"""Packed sequences: each gets the tokens that `generate` would give it alone, whatever goes on."""

import math

import numpy as np
import pytest
import torch
from brisk_native import load_model
from transformers import PreTrainedModel

from services.common.errors import Reason, ResourceExhaustedError
from services.worker import metrics
from services.worker.attention import NAME
from services.worker.decoder import Decoders
from services.worker.packed import BLOCK_TOKENS, PackedDecoder
from services.worker.serial import SerialDecoder, input_weight
from tests.architectures import PACKED, SERIAL, VOCABULARY, WINDOW, greedy_alone, tiny
from tests.models import DEMO_MODEL
from tests.unit.worker.house_of_models import KV_BYTES, ModelHouse, show, shown

TOKENS = 12
PROMPTS = (
    (5,),
    (17, 400, 23, 100, 6, 6, 90),
    tuple(range(40, 90)),
    tuple(7 * index % VOCABULARY for index in range(150)),  # more than a first step shows
)


def packed(model: PreTrainedModel, kv_bytes: int = KV_BYTES, **options: bool) -> PackedDecoder:
    decoder = Decoders(**options).make(model, kv_bytes)
    assert isinstance(decoder, PackedDecoder), decoder.reason
    return decoder


@pytest.mark.parametrize("kind", PACKED)
def test_greedy_tokens_of_a_batch_are_those_of_generate_alone(kind: str) -> None:
    model = tiny(kind)
    expected = [greedy_alone(model, prompt, TOKENS) for prompt in PROMPTS]
    assert len({tuple(each) for each in expected}) == len(PROMPTS)
    house = ModelHouse(packed(model))
    sinks = [house.begin(prompt, TOKENS) for prompt in PROMPTS[:2]]
    house.step()
    sinks += [house.begin(prompt, TOKENS) for prompt in PROMPTS[2:]]
    house.finish()
    assert [sink.error for sink in sinks] == [None] * len(PROMPTS)
    assert [sink.tokens for sink in sinks] == expected


@pytest.mark.parametrize("kind", SERIAL)
def test_what_cannot_be_packed_is_decoded_one_by_one_and_says_why(kind: str) -> None:
    model = tiny(kind)
    expected = [greedy_alone(model, prompt, TOKENS) for prompt in PROMPTS[:3]]
    decoder = Decoders().make(model, KV_BYTES)
    assert isinstance(decoder, SerialDecoder)
    assert any(word in decoder.reason for word in SERIAL[kind][2].split("|"))
    assert decoder.caches == (kind != "mamba")
    house = ModelHouse(decoder)
    sinks = [house.begin(prompt, TOKENS) for prompt in PROMPTS[:3]]
    house.finish()
    assert [sink.tokens for sink in sinks] == expected


def test_tokens_are_the_same_when_memory_runs_out_and_sequences_make_way() -> None:
    model = tiny("llama")
    prompts = [tuple(range(start, start + 40)) for start in (10, 100, 200, 300)]
    expected = [greedy_alone(model, prompt, 60) for prompt in prompts]
    per_token = packed(tiny("llama")).kv_bytes_per_token
    small = packed(model, per_token * BLOCK_TOKENS * 16, shares_prefixes=False)
    before = metrics.PREEMPTIONS._value.get()  # noqa: SLF001 - there is no other way to read it
    house = ModelHouse(small)
    sinks = [house.begin(prompt, 60) for prompt in prompts]
    house.finish()
    assert metrics.PREEMPTIONS._value.get() > before  # noqa: SLF001
    assert [sink.tokens for sink in sinks] == expected
    small.pool.audit()
    assert small.pool.held == 0


def test_a_prompt_that_begins_like_another_is_not_computed_again() -> None:
    model = tiny("qwen2-window")
    beginning = tuple(range(100, 100 + 3 * BLOCK_TOKENS))
    prompts = [(*beginning, 7, 8), (*beginning, 9), beginning]
    expected = [greedy_alone(model, prompt, TOKENS) for prompt in prompts]
    decoder = packed(model)
    house = ModelHouse(decoder)
    first = house.begin(prompts[0], TOKENS)
    house.step()
    before = metrics.PREFIX_HITS._value.get()  # noqa: SLF001 - there is no other way to read it
    later = [house.begin(prompt, TOKENS) for prompt in prompts[1:]]
    house.finish()
    hits = metrics.PREFIX_HITS._value.get() - before  # noqa: SLF001
    assert hits == len(beginning) + len(beginning) - BLOCK_TOKENS
    assert [sink.tokens for sink in (first, *later)] == expected
    again = house.begin((*prompts[0], *expected[0]), TOKENS)  # a conversation that goes on
    house.step()
    hits = metrics.PREFIX_HITS._value.get() - before - hits  # noqa: SLF001
    assert hits == (len(prompts[0]) + TOKENS - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    house.finish()
    assert again.tokens == greedy_alone(tiny("qwen2-window"), (*prompts[0], *expected[0]), TOKENS)


def test_memory_for_keys_is_used_to_the_last_whole_block_and_no_further() -> None:
    model = tiny("llama")
    per_token = 3 * 2 * 2 * 16 * 4  # layers, keys and values, heads, size, fp32
    decoder = packed(model, per_token * (5 * BLOCK_TOKENS + 7))
    assert decoder.kv_bytes_per_token == per_token
    assert decoder.kv_bytes == per_token * 5 * BLOCK_TOKENS
    assert decoder.open(range(5 * BLOCK_TOKENS + 1), 400) is None
    strand = decoder.open(range(5 * BLOCK_TOKENS), 400)
    assert strand is not None
    logits = show(decoder, [(strand, range(5 * BLOCK_TOKENS))])[0]
    assert logits.shape == (VOCABULARY,)
    assert not decoder.extend(strand, 5 * BLOCK_TOKENS + 1)
    stores = decoder._model.stored._stores.values()  # noqa: SLF001 - the memory itself
    assert sum(store.nbytes for pair in stores for store in pair) == decoder.kv_bytes


def test_less_memory_than_a_block_is_one_small_block_and_none_is_refused() -> None:
    model = tiny("llama")
    per_token = packed(model).kv_bytes_per_token
    assert packed(tiny("llama"), per_token * 5).block_tokens == 5
    with pytest.raises(ResourceExhaustedError) as refused:
        Decoders().make(tiny("llama"), per_token - 1)
    assert refused.value.reason == Reason.INSUFFICIENT_MEMORY


def test_a_sequence_of_broken_numbers_harms_no_neighbour_and_is_not_remembered() -> None:
    model = tiny("llama")
    with torch.no_grad():
        input_weight(model)[33] = math.nan
    healthy = (1, 2, 3, 4) * 8
    expected = greedy_alone(model, healthy, TOKENS)
    decoder = packed(model)
    house = ModelHouse(decoder)
    good = house.begin(healthy, TOKENS)
    bad = house.begin((*range(20, 33), 33, *range(34, 60)), TOKENS)
    house.finish()
    assert bad.error is not None
    assert bad.error.reason == Reason.ENGINE_FAILED
    assert bad.tokens == []
    assert good.error is None
    assert good.tokens == expected
    assert decoder.pool.kept == (len(healthy) + TOKENS - 1) // BLOCK_TOKENS
    decoder.pool.audit()


def test_a_model_that_mixes_rows_by_itself_is_found_out_and_decoded_rightly() -> None:
    def mix(_module: object, _given: object, output: torch.Tensor) -> torch.Tensor:
        before = torch.nn.functional.pad(output, (0, 0, 1, 0))[:, :-1]
        return output + before  # as if each token knew which one was before it

    model = tiny("llama")
    model.get_input_embeddings().register_forward_hook(mix)
    prompt = list(range(50, 60))
    expected = list(prompt)
    for _ in range(TOKENS):
        with torch.no_grad():
            output = model.forward(input_ids=torch.tensor([expected]), use_cache=False)
        expected.append(int(output.logits[0, -1].argmax()))
    decoder = Decoders().make(model, KV_BYTES)
    assert isinstance(decoder, SerialDecoder)
    assert "other logits" in decoder.reason
    assert not decoder.caches
    house = ModelHouse(decoder)
    sinks = [house.begin(prompt, TOKENS) for _ in range(2)]
    house.finish()
    assert [sink.tokens for sink in sinks] == [expected[10:]] * 2


def test_a_real_model_is_packed_and_one_of_the_same_kind_is_not_tried_again() -> None:
    decoders = Decoders()
    first, second = load_model(DEMO_MODEL), load_model(DEMO_MODEL)
    assert isinstance(decoders.make(first, KV_BYTES), PackedDecoder)
    passes = []
    second.register_forward_pre_hook(lambda *_: passes.append(1))
    decoder = decoders.make(second, KV_BYTES)
    assert isinstance(decoder, PackedDecoder)
    assert passes == []
    assert second.config._attn_implementation == NAME  # noqa: SLF001 - there is no other way
    expected = greedy_alone(load_model(DEMO_MODEL), (5, 6, 7), 5)
    house = ModelHouse(decoder)
    sink = house.begin((5, 6, 7), 5)
    house.finish()
    assert sink.tokens == expected


def test_one_model_is_whole_again_after_it_was_tried() -> None:
    model = tiny("gpt2")
    parts = [name for name, _ in model.named_modules()]
    weights = {name: id(weight) for name, weight in model.named_parameters(remove_duplicate=False)}
    Decoders().make(model, KV_BYTES)
    assert [name for name, _ in model.named_modules()] == parts
    after = {name: id(weight) for name, weight in model.named_parameters(remove_duplicate=False)}
    assert after == weights
    bloom = tiny("bloom")
    own = bloom.config._attn_implementation  # noqa: SLF001
    Decoders().make(bloom, KV_BYTES)
    assert bloom.config._attn_implementation == own  # noqa: SLF001


def test_a_window_beyond_the_first_tokens_is_kept_for_every_way_of_reading() -> None:
    model = tiny("mistral")
    tokens = tuple(range(60, 60 + 5 * WINDOW))
    with torch.no_grad():
        output = model.forward(input_ids=torch.tensor([tokens]))
    right = output.logits[0, -1].numpy()
    decoder = packed(model)
    parts = [tokens[:3], tokens[3:20], *[(token,) for token in tokens[20:]]]
    assert np.allclose(shown(decoder, [tokens]), right, atol=1e-3)
    assert np.allclose(shown(decoder, parts), right, atol=1e-3)
