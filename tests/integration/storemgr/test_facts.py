"""What the store says about a model is what transformers makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.storemgr.checkpoint import inspect
from services.storemgr.folder import survey
from tests.models import KINDS, make_model


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_cache_are_those_of_the_model_that_transformers_builds(
    kind: str, tmp_path: Path
) -> None:
    import torch  # noqa: PLC0415 - takes seconds; collecting the tests must not
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    folder = make_model(tmp_path, kind)
    facts = inspect(survey(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    parameters = list(model.parameters())
    assert facts.architecture == type(model).__name__
    assert facts.parameters == sum(parameter.numel() for parameter in parameters)
    assert facts.weight_bytes == sum(parameter.nbytes for parameter in parameters)
    assert facts.context_tokens_max == model.config.max_position_embeddings
    prompt = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        cache = model(prompt, use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert facts.kv_bytes_per_token == kept / prompt.numel()
