"""The unmodified `openai` package and `curl` work against a whole cluster, as the README says."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from brisk_client import AsyncClient, Client
from brisk_client.local.sync import LocalCluster
from openai.types.chat import ChatCompletionChunk

from tests.integration.cluster.conftest import Deploy, residents, until
from tests.integration.cluster.programs import ROOT
from tests.models import DEMO_MODEL

README = ROOT / "README.md"
ADDRESS = "127.0.0.1:7481"
NAME = "org/licence"  # a name with a slash, on purpose


@pytest.fixture(scope="module")
def model(cluster: LocalCluster) -> Iterator[str]:
    """Deploy the demo model for this module."""
    with Client(cluster.router_address) as client:
        client.deploy(NAME, source=DEMO_MODEL)
        client.deploy("tiny", source=DEMO_MODEL)
        yield NAME
        client.delete(NAME)
        client.delete("tiny")


@pytest.fixture
async def api(cluster: LocalCluster) -> AsyncIterator[openai.AsyncOpenAI]:
    """Return an async client that repeats nothing by itself."""
    url = f"http://{cluster.http_address}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


async def test_streamed_and_whole_answers_are_grpcs_own(
    model: str, api: openai.AsyncOpenAI, client: AsyncClient
) -> None:
    grpc = client.generate(model, "You may copy", max_tokens=12, temperature=0)
    expected = "".join([chunk.text async for chunk in grpc])
    whole = await api.completions.create(
        model=model, prompt="You may copy", max_tokens=12, temperature=0
    )
    stream = await api.completions.create(
        model=model,
        prompt="You may copy",
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].text == expected
    assert whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12


async def test_the_same_seed_gives_the_same_chat(model: str, api: openai.AsyncOpenAI) -> None:
    async def chat(seed: int) -> str | None:
        answer = await api.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "You may copy"}],
            max_completion_tokens=16,
            seed=seed,
            top_p=0.95,
            extra_body={"top_k": 50},
        )
        assert answer.model == model
        assert answer.id.startswith("chatcmpl-")
        return answer.choices[0].message.content

    first, again, other = [await chat(seed) for seed in (7, 7, 8)]
    assert first == again
    assert first != other


async def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(
    model: str, api: openai.AsyncOpenAI
) -> None:
    async def complete(stop: list[str]) -> tuple[str, str]:
        answer = await api.completions.create(
            model=model, prompt="You may copy", max_tokens=24, temperature=0, stop=stop
        )
        return answer.choices[0].text, answer.choices[0].finish_reason

    text, _ = await complete([])
    word = text.split()[2]
    cut, reason = await complete([word])
    assert reason == "stop"
    assert cut == text[: text.index(word)]


def test_the_sync_client_streams_too(model: str, cluster: LocalCluster) -> None:
    url = f"http://{cluster.http_address}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as api:
        stream = api.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "You may copy"}],
            max_tokens=8,
            stream=True,
        )
        chunks: list[ChatCompletionChunk] = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in {"length", "stop"}
    assert len({chunk.id for chunk in chunks}) == 1


async def test_models_are_listed_with_their_state_also_at_zero(
    api: openai.AsyncOpenAI, deploy: Deploy, client: AsyncClient
) -> None:
    name = await deploy("llama")
    found = await api.models.retrieve(name)
    assert (found.id, found.owned_by) == (name, "brisk")
    assert (found.model_extra or {})["state"] == "zero"
    assert name in [entry.id async for entry in api.models.list()]
    await api.completions.create(model=name, prompt="x", max_tokens=1)
    assert await residents(client, name) == 1
    assert ((await api.models.retrieve(name)).model_extra or {})["state"] == "ready"


async def test_a_name_with_a_slash_is_found(model: str, api: openai.AsyncOpenAI) -> None:
    assert (await api.models.retrieve(model)).id == model
    assert (await api.models.retrieve(model)).created > 1_700_000_000


async def test_closing_a_stream_frees_its_sequence(
    api: openai.AsyncOpenAI, deploy: Deploy, client: AsyncClient
) -> None:
    name = await deploy("llama")
    stream = await api.completions.create(
        model=name, prompt="x", max_tokens=9_000, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = aiter(stream)
    await anext(chunks)

    async def is_running() -> bool:
        return await running(client, name) == 1

    async def is_free() -> bool:
        return await running(client, name) == 0

    await until(is_running, "the sequence is reported")
    await stream.close()
    await until(is_free, "the sequence is freed")


async def running(client: AsyncClient, name: str) -> int:
    return sum(entry.running for entry in await client.instances() if entry.deployment == name)


async def test_errors_have_their_classes(model: str, api: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="org/licence") as missing:
        await api.completions.create(model="org/licenze", prompt="x")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        await api.completions.create(model=model, prompt="x", temperature=99)
    assert wrong.value.param == "temperature"
    assert wrong.value.request_id
    with pytest.raises(openai.BadRequestError) as long:
        await api.completions.create(model=model, prompt="word " * 9_000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="n must be between 1 and 16") as many:
        await api.completions.create(model=model, prompt="x", n=17)
    assert many.value.param == "n"


async def test_several_answers_come_in_one_whole_or_streamed(
    model: str, api: openai.AsyncOpenAI
) -> None:
    asked: Any = {
        "model": model,
        "messages": [{"role": "user", "content": "You may copy"}],
        "max_tokens": 6,
        "n": 3,
        "seed": 5,
    }
    whole = await api.chat.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [choice.message.content or "" for choice in whole.choices]
    assert len(set(texts)) == 3
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 18
    streamed = ["", "", ""]
    async for chunk in await api.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


async def test_logprobs_name_the_tokens_of_the_text(model: str, api: openai.AsyncOpenAI) -> None:
    chat = await api.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "You may copy"}],
        max_tokens=6,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    told = chat.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert len(told.content) == 6
    pieces = b"".join(bytes(each.bytes or []) for each in told.content)
    assert pieces.decode() == chat.choices[0].message.content
    for each in told.content:
        assert (each.top_logprobs[0].token, each.logprob) == (
            each.token,
            each.top_logprobs[0].logprob,
        )
        assert len(each.top_logprobs) == 2
    done = await api.completions.create(
        model=model, prompt="You may copy", max_tokens=6, temperature=0, logprobs=2
    )
    lists = done.choices[0].logprobs
    assert lists is not None
    assert "".join(lists.tokens or []) == done.choices[0].text
    assert lists.text_offset == [sum(map(len, (lists.tokens or [])[:index])) for index in range(6)]


async def test_penalties_and_biases_change_the_answer(model: str, api: openai.AsyncOpenAI) -> None:
    async def complete(**options: Any) -> str:
        answer = await api.completions.create(
            model=model, prompt="You may copy", max_tokens=24, temperature=0, **options
        )
        return str(answer.choices[0].text)

    plain = await complete()
    assert await complete(frequency_penalty=0, presence_penalty=0, logit_bias={}) == plain
    assert await complete(extra_body={"repetition_penalty": 3}) != plain
    assert len(set(await complete(logit_bias={"40": 100}))) == 1


async def test_a_request_id_of_the_clients_own_comes_back(
    model: str, api: openai.AsyncOpenAI
) -> None:
    raw = await api.completions.with_raw_response.create(
        model=model, prompt="x", max_tokens=1, extra_headers={"x-request-id": "mine.1"}
    )
    assert raw.headers["x-request-id"] == "mine.1"


async def test_more_requests_than_slots_are_all_answered(
    api: openai.AsyncOpenAI, deploy: Deploy
) -> None:
    name = await deploy("llama", slots=1)
    answers = await asyncio.gather(
        *(api.completions.create(model=name, prompt="x", max_tokens=4) for _ in range(12))
    )
    assert all(answer.usage and answer.usage.completion_tokens for answer in answers)


async def test_the_readmes_curl_lines_work(model: str, cluster: LocalCluster) -> None:
    [commands] = blocks("sh", cluster)
    assert commands.count("curl") == 2
    listed, streamed = [await run("bash", "-ec", each) for each in split_commands(commands)]
    assert {"tiny", model} <= {entry["id"] for entry in json.loads(listed)["data"]}
    assert streamed.startswith("data: {")
    assert streamed.endswith("data: [DONE]\n\n")


async def test_the_readmes_program_works(model: str, cluster: LocalCluster) -> None:
    assert model
    [program] = blocks("python", cluster)
    assert (await run(sys.executable, "-W", "error", "-c", program)).strip()


async def run(*command: str) -> str:
    """Run a program to its end and return what it printed."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def split_commands(text: str) -> list[str]:
    """Return the commands of a block; a line that ends in a backslash goes on."""
    return [each for each in re.split(r"(?<!\\)\n", text) if each]


def blocks(language: str, cluster: LocalCluster) -> list[str]:
    """Return the code of the README's section, with the address of the running cluster."""
    section = README.read_text(encoding="utf-8").split("## OpenAI-compatible endpoint")[1]
    section = section.split("\n## ")[0]
    assert ADDRESS in section
    code = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return [each.replace(ADDRESS, cluster.http_address) for each in code]


async def test_a_json_schema_is_kept_to_by_a_model_that_knows_no_json(
    model: str, api: openai.AsyncOpenAI
) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "free": {"type": "boolean"}},
        "required": ["name", "free"],
        "additionalProperties": False,
    }
    asked: Any = {
        "model": model,
        "messages": [{"role": "user", "content": "A licence as JSON:"}],
        "max_tokens": 200,
        "seed": 3,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "licence", "strict": True, "schema": schema},
        },
    }
    answer = await api.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "stop"
    licence = json.loads(answer.choices[0].message.content or "")
    assert licence.keys() == {"name", "free"}
    assert isinstance(licence["free"], bool)
    stream = await api.chat.completions.create(**asked, stream=True)
    text = "".join([each.choices[0].delta.content or "" async for each in stream if each.choices])
    assert text == answer.choices[0].message.content
    chosen = await api.completions.create(
        model=model,
        prompt="You may",
        max_tokens=20,
        extra_body={"structured_outputs": {"regex": "(copy|modify) it!"}},
    )
    assert chosen.choices[0].text in {"copy it!", "modify it!"}
    with pytest.raises(openai.BadRequestError, match="cannot be used") as refused:
        await api.chat.completions.create(
            **{**asked, "response_format": _format({"type": "no such type"})}
        )
    assert refused.value.code == "invalid_constraint"
    with pytest.raises(openai.BadRequestError) as exploding:
        await api.completions.create(
            model=model,
            prompt="x",
            extra_body={"structured_outputs": {"regex": "a?" * 32_000}},
        )
    assert exploding.value.code == "invalid_constraint"


def _format(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


async def test_tools_are_shown_by_templates_that_know_them(
    model: str, api: openai.AsyncOpenAI, client: AsyncClient, tmp_path: Path
) -> None:
    folder = tmp_path / "talker"
    shutil.copytree(DEMO_MODEL, folder)
    config = folder / "tokenizer_config.json"
    template = (
        "{% for t in tools or [] %}{{ t['function']['name'] }} {% endfor %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    asked: Any = {
        "messages": [{"role": "user", "content": "You may copy"}],
        "max_tokens": 4,
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    }
    await client.deploy("talker", source=folder)
    try:
        tokens = {}
        for choice in ("auto", "none"):
            answer = await api.chat.completions.create(model="talker", **asked, tool_choice=choice)
            assert answer.usage is not None
            tokens[choice] = answer.usage.prompt_tokens
        assert tokens["auto"] > tokens["none"]
        told = await client.tokenize("talker", asked["messages"], tools=asked["tools"])
        assert len(told.token_ids) == tokens["auto"]
        assert b"".join(told.pieces) == b"weather You may copy"
    finally:
        await client.delete("talker")
    with pytest.raises(openai.BadRequestError, match="takes no tools") as refused:
        await api.chat.completions.create(model=model, **asked)
    assert refused.value.code == "no_tools"
    with pytest.raises(openai.BadRequestError, match="cannot be guaranteed"):
        await api.chat.completions.create(model=model, **asked, tool_choice="required")
