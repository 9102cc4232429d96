"""Brisk's tokens are the model's: greedy ones equal transformers', sampled ones follow the seed."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from brisk_client import AsyncClient, FinishReason, InvalidRequestError, SamplingOptions

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
    options = SamplingOptions(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    chunks = [chunk async for chunk in client.generate(name, "Hello", **options)]
    result = await client.generate(name, "Hello", **options).result()
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert len(chunks) > 1
    assert chunks[-1].finish_reason is not None
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


async def test_chat_renders_the_models_own_template(
    client: AsyncClient, deploy: Deploy, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folder_of("llama"), tmp_path / "templated"))
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    _set_template(folder, template)
    await client.deploy("templated", source=folder)
    options = SamplingOptions(max_tokens=8, temperature=0.0, ignore_eos=True)
    messages = [{"role": "user", "content": "Hello"}]
    spoken = await client.chat("templated", messages, **options).result()
    plain = await client.generate("templated", "<user>Hello", **options).result()
    await client.delete("templated")
    assert spoken.token_ids == plain.token_ids


async def test_chat_with_a_model_that_has_no_template_is_refused(
    client: AsyncClient, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folder_of("llama"), tmp_path / "untemplated"))
    _set_template(folder, None)
    await client.deploy("untemplated", source=folder)
    with pytest.raises(InvalidRequestError) as caught:
        await client.chat("untemplated", [{"role": "user", "content": "Hello"}]).result()
    assert caught.value.reason == "NO_CHAT_TEMPLATE"
    await client.delete("untemplated")


def _set_template(folder: Path, template: str | None) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template", None)
    if template is not None:
        config["chat_template"] = template
    path.write_text(json.dumps(config))
