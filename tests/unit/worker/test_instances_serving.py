"""A request on a ready instance gets each token once, within its limits, or a typed refusal."""

import asyncio

import pytest

from services.common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    Reason,
    ResourceExhaustedError,
)
from services.common.model import (
    FinishReason,
)
from services.common.placement import InstanceState
from services.common.prompt import TextPrompt, TokensPrompt
from services.common.sampling import Sampling
from services.worker.serving import Produced
from tests.unit.worker.doubles import until
from tests.unit.worker.instances_house import Codec, House, text_of


async def test_generating_gives_each_token_once_with_the_prompt_first(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    produced: list[Produced] = []
    decoder.allowed.release(1)
    async for each in house.generate((3, 4), max_tokens=5):
        produced.append(each)
        decoder.allowed.release(1)
    assert len(produced) == 5  # nobody lagged
    assert produced[0].prompt_tokens == (3, 4)
    assert all(each.prompt_tokens == () for each in produced[1:])
    index = 0
    tokens: list[int] = []
    for each in produced:
        assert each.chunk.first_index == index
        assert each.chunk.token_ids
        index += len(each.chunk.token_ids)
        tokens += each.chunk.token_ids
    assert tokens == [5, 6, 7, 8, 9]
    assert [each.chunk.finish_reason for each in produced[:-1]] == [None] * (len(produced) - 1)
    last = produced[-1].chunk
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 5)


async def test_the_models_end_token_stops_unless_it_is_to_be_ignored(house: House) -> None:
    await house.load()
    assert await house.tokens((97,), max_tokens=9) == [98, 99]
    assert await house.tokens((97,), max_tokens=4, ignore_eos=True) == [98, 99, 0, 1]
    assert await house.tokens((1,), max_tokens=9, stop_token_ids=(3,)) == [2, 3]


async def test_a_sequence_ends_at_the_context_whatever_was_asked_for(house: House) -> None:
    await house.load()
    assert len(await house.tokens((1,) * 40, max_tokens=10_000)) == 10
    with pytest.raises(InvalidArgumentError) as refused:
        await house.tokens((1,) * 50)
    assert refused.value.reason == Reason.PROMPT_TOO_LONG


async def test_a_sampled_sequence_needs_no_seed_of_its_callers(house: House) -> None:
    await house.load()
    stream = house.instances.generate(
        "i", "r", TokensPrompt(ids=(1,)), Sampling(max_tokens=3, temperature=2.0)
    )
    assert sum([len(each.chunk.token_ids) async for each in stream]) == 3


async def test_text_for_a_model_without_tokenizer_is_refused(house: House) -> None:
    await house.load()
    stream = house.instances.generate("i", "r", TextPrompt(text="Hi"), Sampling())
    with pytest.raises(InvalidArgumentError, match="send tokens"):
        await anext(stream)


async def test_an_instance_that_is_not_here_is_gone(house: House) -> None:
    with pytest.raises(FailedPreconditionError) as refused:
        await house.tokens(instance_id="nobody")
    assert refused.value.reason == Reason.INSTANCE_GONE


async def test_a_client_that_leaves_frees_its_place_for_the_next(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    stream = house.generate((1,), max_tokens=49)
    decoder.allowed.release(2)
    assert (await anext(stream)).chunk.token_ids[0] == 2
    await stream.aclose()  # type: ignore[attr-defined]
    decoder.allowed.release(1000)
    await house.until_idle()
    assert len(decoder.shown) <= 4
    assert await house.tokens(max_tokens=2) == [2, 3]
    assert decoder.open_strands == 0


async def test_memory_for_keys_limits_who_runs_and_who_never_can(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    large = asyncio.create_task(house.tokens((1,), max_tokens=44))  # 180 of 200 bytes
    small = asyncio.create_task(house.tokens((1,), max_tokens=9))  # 40 bytes: has to wait
    sequences = house.instances.residents["i"].serving.sequences  # type: ignore[union-attr]
    await until(lambda: sequences.waiting >= 1)
    assert sequences.running == 1
    decoder.allowed.release(1000)
    assert len(await large) == 44
    assert len(await small) == 9
    await house.load(house.order("tight", 100 + 100))
    with pytest.raises(ResourceExhaustedError):
        await house.tokens((1,), "tight", max_tokens=1)


async def test_text_is_encoded_off_the_loop_and_comes_back_as_text(house: House) -> None:
    house.starter.codec = codec = Codec()
    await house.load()
    stream = house.instances.generate(
        "i", "r", TextPrompt(text="hi"), Sampling(temperature=0.0, max_tokens=3)
    )
    text = asyncio.create_task(text_of(stream))
    await asyncio.sleep(0)
    codec.may_encode.set()
    assert await text == ((1, 1), "cde")


async def test_an_instance_that_leaves_while_a_prompt_is_encoded_is_gone(house: House) -> None:
    house.starter.codec = codec = Codec()
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    running = asyncio.create_task(house.tokens(max_tokens=2))  # so that it cannot go at once
    await until(lambda: house.ledger.state_of("i") is InstanceState.READY and not running.done())
    stream = house.instances.generate("i", "r", TextPrompt(text="hi"), Sampling(max_tokens=3))
    late = asyncio.create_task(text_of(stream))
    await asyncio.sleep(0.01)
    unload = asyncio.create_task(house.instances.unload("i", 1, only_if_idle=False))
    await until(lambda: house.ledger.state_of("i") is InstanceState.LEAVING)
    codec.may_encode.set()
    with pytest.raises(FailedPreconditionError) as refused:
        await late
    assert refused.value.reason == Reason.INSTANCE_GONE
    decoder.allowed.release(100)
    await running
    await unload


async def test_a_full_queue_refuses_before_any_work(house: House) -> None:
    house.starter.codec = codec = Codec()
    codec.may_encode.set()
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    calls = [asyncio.create_task(house.tokens(max_tokens=2)) for _ in range(4)]
    sequences = house.instances.residents["i"].serving.sequences  # type: ignore[union-attr]
    await until(lambda: sequences.waiting >= 2)
    with pytest.raises(ResourceExhaustedError) as refused:
        await anext(house.instances.generate("i", "r", TextPrompt(text="hi"), Sampling()))
    assert codec.encoded == 0
    assert refused.value.reason == Reason.QUEUE_FULL
    assert refused.value.retry_after_s is not None
    decoder.allowed.release(1000)
    assert await asyncio.gather(*calls) == [[2, 3]] * 4
