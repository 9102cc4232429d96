"""Exact decoding: a sequence's logits are the same to the bit, however it was computed."""

import random

import numpy as np
import pytest
import torch

from services.worker import metrics
from services.worker.decoder import Decoders
from services.worker.packed import PackedDecoder
from services.worker.ports import Decoder
from services.worker.probe import EXACT_ROWS
from services.worker.sampler import Logits
from services.worker.serial import SerialDecoder
from tests.architectures import VOCABULARY, greedy_alone, tiny
from tests.unit.worker.doubles import ListSink
from tests.unit.worker.house_of_models import KV_BYTES, ModelHouse, show, shown

KINDS = ("llama", "opt", "gpt2", "gemma2", "mistral")
TOKENS = tuple(11 * index % VOCABULARY for index in range(45))


def exact(kind: str, dtype: torch.dtype, *, shares_prefixes: bool = False) -> Decoder:
    model = tiny(kind, dtype=dtype)
    return Decoders(exact=True, shares_prefixes=shares_prefixes).make(model, KV_BYTES)


def in_company(decoder: Decoder) -> Logits:
    """Show the sequence piece by piece between others that come and go."""
    strand = decoder.open((), len(TOKENS))
    others = [decoder.open((), 200) for _ in range(20)]
    assert strand is not None
    answer = np.zeros(0, dtype=np.float32)
    start = 0
    for step, size in enumerate((1, 9, 4, 20, 1, 9, 1)):
        neighbours = [
            (other, [3 * step % VOCABULARY] * (1 + (number + step) % 3))
            for number, other in enumerate(others)
            if other is not None and (number + step) % 2
        ]
        middle = (step * 7) % len(neighbours)
        mine = (strand, TOKENS[start : start + size])
        logits = show(decoder, [*neighbours[:middle], mine, *neighbours[middle:]])
        answer = logits[middle]
        start += size
    assert start == len(TOKENS)
    for each in (strand, *others):
        if each is not None:
            each.close()
    return answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_company_or_on_how_a_prompt_is_cut(
    kind: str, dtype: torch.dtype
) -> None:
    decoder = exact(kind, dtype)
    assert isinstance(decoder, PackedDecoder)
    assert decoder.exact_rows == EXACT_ROWS
    token_by_token = shown(decoder, [(token,) for token in TOKENS])
    assert np.array_equal(shown(decoder, [TOKENS]), token_by_token)
    assert np.array_equal(in_company(decoder), token_by_token)


def test_bits_do_not_depend_on_who_computed_the_beginning() -> None:
    decoder = exact("llama", torch.bfloat16, shares_prefixes=True)
    alone = shown(decoder, [(token,) for token in TOKENS])
    strand = decoder.open(TOKENS, len(TOKENS))
    assert strand is not None
    assert strand.seen == 32
    assert np.array_equal(show(decoder, [(strand, TOKENS[32:])])[0], alone)


def test_experts_are_asked_row_by_row_so_that_bits_stay_the_same() -> None:
    decoder = exact("mixtral", torch.float32)
    assert isinstance(decoder, PackedDecoder)
    assert decoder.exact_rows == 1
    alone = shown(decoder, [(token,) for token in TOKENS])
    assert np.array_equal(in_company(decoder), alone)


def test_a_model_that_is_not_packed_sees_token_after_token() -> None:
    decoder = exact("bloom", torch.float32)
    assert isinstance(decoder, SerialDecoder)
    parts = (TOKENS[:7], TOKENS[7:30], TOKENS[30:])
    assert np.array_equal(shown(decoder, [TOKENS]), shown(decoder, parts))


def test_nothing_that_happens_to_others_changes_a_token() -> None:
    draw = random.Random(7)  # noqa: S311 - the same each time
    prompts = [(*TOKENS[:size], family) for family in (1, 2, 3) for size in (0, 16, 31, 40)]
    alone = []
    for prompt in prompts:
        house = ModelHouse(exact("llama", torch.float32))
        sink = house.begin(prompt, 30)
        house.finish()
        alone.append(sink.tokens)
    model = tiny("llama")
    decoder = Decoders(exact=True).make(model, 768 * 16 * 14)  # room for three of the longest
    assert isinstance(decoder, PackedDecoder)
    house = ModelHouse(decoder)
    before = metrics.PREEMPTIONS._value.get()  # noqa: SLF001 - there is no other way to read it
    begun: list[tuple[int, ListSink]] = []
    for _ in range(250):
        if len(begun) < 60 and draw.random() < 0.3:
            chosen = draw.randrange(len(prompts))
            begun.append((chosen, house.begin(prompts[chosen], 30)))
        if begun and draw.random() < 0.1:
            house.roster.end(f"s{draw.randint(1, len(begun))}", None)
        house.step()
        decoder.pool.audit()
    house.finish()
    assert metrics.PREEMPTIONS._value.get() > before  # noqa: SLF001
    assert len(begun) > 40
    assert sum(len(sink.tokens) == 30 for _, sink in begun) > 20
    for chosen, sink in begun:
        assert sink.error is None
        assert sink.tokens == alone[chosen][: len(sink.tokens)]
    assert decoder.pool.held == 0


def test_exact_tokens_are_those_of_generate() -> None:
    model = tiny("llama")
    prompts = [TOKENS[:start] for start in (1, 17, 45)]
    expected = [greedy_alone(model, prompt, 12) for prompt in prompts]
    house = ModelHouse(Decoders(exact=True).make(model, KV_BYTES))
    sinks = [house.begin(prompt, 12) for prompt in prompts]
    house.finish()
    assert [sink.tokens for sink in sinks] == expected


def test_decoders_that_are_not_asked_to_be_exact_take_all_rows_at_once() -> None:
    decoder = Decoders().make(tiny("llama"), KV_BYTES)
    assert isinstance(decoder, PackedDecoder)
    assert decoder.exact_rows is None
