"""Brisk's tokens are the model's: greedy ones equal transformers', sampled ones follow the seed."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from brisk_client import AsyncClient, FinishReason, InvalidRequestError

from tests.integration.cluster.conftest import Deploy
from tests.models import KINDS, reference_greedy

PROMPT = [5, 99, 512, 7, 300]
TOKENS = 24


@pytest.mark.parametrize("kind", KINDS)
async def test_greedy_tokens_equal_those_of_transformers(
    client: AsyncClient, deploy: Deploy, folder_of: Callable[[str], Path], kind: str
) -> None:
    name = await deploy(kind)
    expected = reference_greedy(folder_of(kind), PROMPT, TOKENS, ignore_eos=True)
    result = await client.generate(
        name, PROMPT, max_tokens=TOKENS, temperature=0, ignore_eos=True
    ).result()
    assert list(result.token_ids) == expected
    assert result.finish_reason is FinishReason.LENGTH
    assert result.usage.prompt_tokens == len(PROMPT)
    assert result.usage.completion_tokens == TOKENS


async def test_neighbours_in_a_batch_change_nothing(
    client: AsyncClient, deploy: Deploy, folder_of: Callable[[str], Path]
) -> None:
    name = await deploy("llama", slots=4)
    prompts = [[3 + number, 40, 77][: 1 + number % 3] for number in range(8)]
    results = await asyncio.gather(
        *(
            client.generate(
                name, prompt, max_tokens=TOKENS, temperature=0, ignore_eos=True
            ).result()
            for prompt in prompts
        )
    )
    for prompt, result in zip(prompts, results, strict=True):
        expected = reference_greedy(folder_of("llama"), prompt, TOKENS, ignore_eos=True)
        assert list(result.token_ids) == expected


async def test_equal_seeds_give_equal_answers_and_others_others(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy()
    first, again, other = [
        (await client.generate(name, PROMPT, max_tokens=TOKENS, seed=seed).result()).token_ids
        for seed in (1, 1, 2)
    ]
    assert first == again
    assert first != other


async def test_without_a_seed_answers_differ(client: AsyncClient, deploy: Deploy) -> None:
    name = await deploy()
    answers = {
        (await client.generate(name, PROMPT, max_tokens=TOKENS).result()).token_ids
        for _ in range(3)
    }
    assert len(answers) > 1


async def test_a_stop_token_ends_the_answer(
    client: AsyncClient, deploy: Deploy, folder_of: Callable[[str], Path]
) -> None:
    name = await deploy()
    expected = reference_greedy(folder_of("llama"), PROMPT, TOKENS, ignore_eos=True)
    stop = expected[6]
    result = await client.generate(
        name, PROMPT, max_tokens=TOKENS, temperature=0, ignore_eos=True, stop_token_ids=[stop]
    ).result()
    assert result.finish_reason is FinishReason.STOP
    end = expected.index(stop) + 1
    assert list(result.token_ids) == expected[:end]


async def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy()
    whole = await client.generate(
        name, PROMPT, max_tokens=TOKENS, temperature=0, ignore_eos=True
    ).result()
    assert len(whole.text) > 8
    stop = whole.text[5:8]
    result = await client.generate(
        name, PROMPT, max_tokens=TOKENS, temperature=0, ignore_eos=True, stop=stop
    ).result()
    assert result.finish_reason is FinishReason.STOP
    assert result.text == whole.text[: whole.text.index(stop)]


async def test_streamed_text_is_the_whole_text(client: AsyncClient, deploy: Deploy) -> None:
    name = await deploy()
    options = {"max_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True}
    chunks = [chunk async for chunk in client.generate(name, "Hello", **options)]  # type: ignore[arg-type]
    result = await client.generate(name, "Hello", **options).result()  # type: ignore[arg-type]
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert len(chunks) > 1
    assert chunks[-1].finish_reason is not None
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


async def test_chat_needs_a_template_and_uses_it(
    client: AsyncClient, deploy: Deploy, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    name = await deploy()
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(InvalidRequestError) as caught:
        await client.chat(name, messages).result()
    assert caught.value.reason == "NO_CHAT_TEMPLATE"

    folder = Path(shutil.copytree(folder_of("llama"), tmp_path / "with-template"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    await client.deploy("templated", source=folder)
    options = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    spoken = await client.chat("templated", messages, **options).result()  # type: ignore[arg-type]
    plain = await client.generate("templated", "<user>Hello", **options).result()  # type: ignore[arg-type]
    await client.delete("templated")
    assert spoken.token_ids == plain.token_ids
