"""Bad input gets one clear, typed refusal through the whole stack, and nothing is left of it."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from brisk_client import (
    AsyncClient,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
)

from tests.broken_models import BROKEN, broken_folder
from tests.integration.cluster.conftest import Deploy


async def test_an_unknown_model_is_named_with_what_comes_near(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy()
    with pytest.raises(NotFoundError) as caught:
        await client.generate(f"{name}x", "Hello").result()
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert f"{name}x" in caught.value.message
    assert f"{name}" in caught.value.message.replace(f"{name}x", "")
    for call in (client.get_model, client.delete):
        with pytest.raises(NotFoundError, match=f"{name}x"):
            await call(f"{name}x")


@pytest.mark.parametrize("kind", sorted(BROKEN))
async def test_a_broken_folder_is_refused_by_file_and_reason(
    client: AsyncClient, tmp_path: Path, kind: str
) -> None:
    folder = broken_folder(tmp_path / kind, kind)
    with pytest.raises(InvalidRequestError) as caught:
        await client.deploy("broken", source=folder)
    assert caught.value.reason == BROKEN[kind].reason
    for word in BROKEN[kind].names:
        assert word in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert "broken" not in [entry.name for entry in await client.list_models()]
    with pytest.raises(NotFoundError):
        await client.deploy("again", model="broken")


async def test_a_folder_that_is_not_there_is_not_found(client: AsyncClient) -> None:
    with pytest.raises(NotFoundError) as caught:
        await client.import_model("/nowhere/at/all")
    assert caught.value.reason == "SOURCE_NOT_FOUND"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -3}, "-3"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": -0.1}, "-0.1"),
        ({"temperature": 11.0}, "11"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "1.5"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "17"),
        ({"stop": ["x" * 257]}, "257"),
        ({"stop_token_ids": list(range(65))}, "65"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
async def test_bad_sampling_is_refused_with_limit_and_value(
    client: AsyncClient, deploy: Deploy, options: dict[str, object], word: str
) -> None:
    name = await deploy()
    with pytest.raises(InvalidRequestError) as caught:
        await client.generate(name, "Hello", **options).result()  # type: ignore[arg-type]
    assert word in caught.value.message


async def test_a_prompt_beyond_the_context_is_refused_with_limit_and_length(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy(context_tokens_max=64)
    with pytest.raises(InvalidRequestError) as caught:
        await client.generate(name, [7] * 65, max_tokens=1).result()
    assert caught.value.reason == "PROMPT_TOO_LONG"
    assert "64" in caught.value.message
    assert "65" in caught.value.message


@pytest.mark.parametrize("prompt", [[], [1024], [2**32 - 1], ""], ids=str)
async def test_a_prompt_the_model_cannot_read_is_refused(
    client: AsyncClient, deploy: Deploy, prompt: list[int] | str
) -> None:
    name = await deploy()
    with pytest.raises(InvalidRequestError):
        await client.generate(name, prompt).result()
    good = await client.generate(name, [5], max_tokens=2, ignore_eos=True).result()
    assert len(good.token_ids) == 2


@pytest.mark.parametrize(
    "name", ["../x", "a/../b", "a\0b", "x" * 10_240, "\u202eabc", "модель", "", "/a", "a//b"]
)
async def test_a_name_outside_the_rules_is_refused_everywhere(
    client: AsyncClient, folder_of: Callable[[str], Path], name: str
) -> None:
    with pytest.raises(InvalidRequestError):
        await client.generate(name, "Hello").result()
    with pytest.raises((InvalidRequestError, NotFoundError)):
        await client.get_model(name)
    if name:  # an empty one means the model's own
        with pytest.raises(InvalidRequestError):
            await client.deploy(name, source=folder_of("llama"))


@pytest.mark.parametrize(
    "spec",
    [{"slots": 0}, {"slots": 257}, {"context_tokens_max": 0}, {"context_tokens_max": 257}],
    ids=str,
)
async def test_a_bad_specification_is_refused(
    client: AsyncClient, folder_of: Callable[[str], Path], spec: dict[str, int]
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await client.deploy("misfit", source=folder_of("llama"), **spec)  # type: ignore[arg-type]
    assert caught.value.reason == "INVALID_SPEC"
    assert "misfit" not in [entry.name for entry in await client.list_models()]


async def test_too_little_memory_is_told_in_bytes(client: AsyncClient, deploy: Deploy) -> None:
    name = await deploy("opt", slots=256)  # 256 sequences of 256 tokens of 1 KiB: 64 MiB and more
    with pytest.raises(ResourceExhaustedError) as caught:
        await client.generate(name, "Hello").result()
    assert caught.value.reason == "INSUFFICIENT_MEMORY"
    needed = int(caught.value.metadata["needed_bytes"])
    assert needed > int(caught.value.metadata["available_bytes"]) > 0


async def test_a_deadline_ends_a_request_of_a_cold_model(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy()
    with pytest.raises(DeadlineExceededError):
        await client.generate(name, "Hello", timeout_s=0.005).result()
    assert (await client.generate(name, "Hello", max_tokens=2).result()).text is not None
