"""Brisk's greedy tokens are those of `transformers.generate`, for every kind of tiny model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from brisk_native import load_model

from services.worker.decoder import Decoders, decoder_facts
from services.worker.engine import DeviceEngine
from tests.models import KINDS, reference_greedy
from tests.unit.worker.doubles import ListSink, job
from tests.unit.worker.house_of_models import KV_BYTES, shown

PROMPTS = ((5,), (17, 400, 23, 1000, 6, 6, 90), tuple(range(40, 90)))
TOKENS = 24


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_equal_those_of_generate(
    kind: str, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model(kind)
    engine = DeviceEngine("cpu:0")
    engine.start()
    try:
        engine.load("i", Decoders().make(load_model(folder), KV_BYTES))
        sinks = [ListSink() for _ in PROMPTS]
        for index, (prompt, sink) in enumerate(zip(PROMPTS, sinks, strict=True)):
            engine.add(job(f"s{index}", prompt, tokens=TOKENS, sink=sink))
        for prompt, sink in zip(PROMPTS, sinks, strict=True):
            assert sink.ended.wait(60)
            assert sink.error is None
            assert sink.tokens == reference_greedy(folder, prompt, TOKENS, ignore_eos=True)
    finally:
        assert engine.close(10)


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2", "qwen2"])
def test_a_prompt_shown_in_pieces_gives_the_same_logits(
    kind: str, tiny_model: Callable[[str], Path]
) -> None:
    decoder = Decoders(shares_prefixes=False).make(load_model(tiny_model(kind)), KV_BYTES)
    ids = tuple(range(30, 60))
    whole = shown(decoder, [ids])
    assert np.allclose(shown(decoder, [ids[:11], ids[11:29], ids[29:]]), whole, atol=1e-4)
    assert whole.dtype == np.float32
    assert whole.shape == (1024,)


def test_the_facts_are_those_of_the_model_and_its_folder(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_model("llama")
    model = load_model(folder)
    facts = decoder_facts(model, folder)
    assert facts.vocabulary == 1024
    assert facts.context_tokens_max == 256
    assert facts.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4  # k and v, layers, heads, head, fp32
    assert facts.eos_token_ids == {1}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert decoder_facts(model, tmp_path).eos_token_ids == {7, 9}
