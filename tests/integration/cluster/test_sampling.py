"""Every way to choose tokens is honoured from the client's call to the model's logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from brisk_client import AsyncClient, InvalidRequestError, SamplingOptions

from tests.integration.cluster.conftest import Deploy

PROMPT = [5, 99, 512, 7, 300]
TOKENS = 16


async def test_a_repetition_penalty_is_transformers_own(
    client: AsyncClient, deploy: Deploy, folder_of: Callable[[str], Path]
) -> None:
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model: Any = AutoModelForCausalLM.from_pretrained(folder_of("llama"), dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            repetition_penalty=1.8,
            pad_token_id=1,
        )
    name = await deploy("llama")
    greedy: SamplingOptions = {"max_tokens": TOKENS, "temperature": 0}
    plain = await client.generate(name, PROMPT, **greedy).result()
    greedy["repetition_penalty"] = 1.8
    penalized = await client.generate(name, PROMPT, **greedy).result()
    assert list(penalized.token_ids) == output[0, len(PROMPT) :].tolist()
    assert penalized.token_ids != plain.token_ids


async def test_logprobs_are_those_of_the_models_own_logits(
    client: AsyncClient, deploy: Deploy, folder_of: Callable[[str], Path]
) -> None:
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    result = await client.generate(
        await deploy("llama"), PROMPT, max_tokens=4, temperature=1.5, seed=3, top_logprobs=5
    ).result()
    model = AutoModelForCausalLM.from_pretrained(folder_of("llama"), dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + list(result.token_ids)])).logits[0]
    expected = torch.log_softmax(logits.double(), dim=-1)
    assert len(result.logprobs) == len(result.token_ids)
    for index, told in enumerate(result.logprobs):
        row = expected[len(PROMPT) - 1 + index]
        assert told.chosen.token_id == result.token_ids[index]
        assert told.chosen.logprob == pytest.approx(row[told.chosen.token_id].item(), abs=1e-3)
        likely = row.topk(5)
        assert [one.token_id for one in told.top] == likely.indices.tolist()
        assert [one.logprob for one in told.top] == pytest.approx(likely.values.tolist(), abs=1e-3)


async def test_several_answers_are_drawn_apart_and_the_first_one_as_alone(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy("llama")

    async def answers(choices: int) -> list[tuple[int, ...]]:
        stream = client.generate(name, PROMPT, max_tokens=TOKENS, seed=4, choices=choices)
        return [answer.token_ids for answer in await stream.results()]

    alone, three = await answers(1), await answers(3)
    assert alone[0] == three[0]
    assert len(set(three)) == 3
    assert three == await answers(3)


async def test_a_bias_forces_a_token_that_the_model_has_and_no_other(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy("llama")
    result = await client.generate(
        name, PROMPT, max_tokens=3, temperature=0, logit_bias={777: 100.0}
    ).result()
    assert result.token_ids == (777, 777, 777)
    with pytest.raises(InvalidRequestError, match=r"must be below 1024\. Given: 1024") as refused:
        await client.generate(name, PROMPT, logit_bias={1024: 1.0}).result()
    assert refused.value.reason == "INVALID_SAMPLING"
    assert refused.value.metadata["parameter"] == "logit_bias"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"choices": 17}, "choices must be between 1 and 16. Given: 17"),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20. Given: 21"),
        ({"frequency_penalty": 2.5}, "frequency_penalty must be between -2 and 2. Given: 2.5"),
        ({"stop": ["x"] * 10_000}, "stop must have at most 16 texts. Given: 10000"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_out_of_limits_is_refused_with_limit_and_value(
    client: AsyncClient, options: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await client.generate("any", PROMPT, **options).result()  # type: ignore[arg-type]
    assert says in refused.value.message
