"""A real worker process: load, generate, unload; what a caller gives up is given up here too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from brisk.common.v1 import model_pb2, placement_pb2
from brisk.worker.v1 import worker_service_pb2 as pb2
from brisk.worker.v1 import worker_service_pb2_grpc as pb2_grpc
from transformers import AutoTokenizer

from services.common.errors import BriskError, Reason
from services.common.status import from_rpc_error
from tests.integration.worker.house import (
    Cluster,
    connect,
    describe,
    load,
    load_request,
    refusal,
    text_of,
    until_state,
)
from tests.models import DEMO_MODEL, KINDS, reference_greedy

Stub: TypeAlias = "pb2_grpc.WorkerServiceAsyncStub"  # the stubs know it, the module does not
GREEDY = model_pb2.SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


@pytest.fixture
async def demo(cluster: Cluster, stub: Stub) -> AsyncIterator[model_pb2.ModelInfo]:
    """Return the demo model, resident as `demo` for the test."""
    info = await cluster.import_model(DEMO_MODEL, "demo")
    await load(stub, load_request(info, "demo", context_tokens_max=1024))
    yield info
    await stub.Unload(pb2.UnloadRequest(instance_id="demo", leader_epoch=1), timeout=30)


def request(
    prompt: str | tuple[int, ...], sampling: model_pb2.SamplingParams, instance: str = "demo"
) -> pb2.GenerateRequest:
    form = (
        model_pb2.Prompt(text=prompt)
        if isinstance(prompt, str)
        else model_pb2.Prompt(tokens=model_pb2.TokenIds(ids=prompt))
    )
    return pb2.GenerateRequest(
        request_id="request-1", instance_id=instance, prompt=form, sampling=sampling
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_greedy_tokens_of_every_kind_equal_those_of_transformers(
    cluster: Cluster, stub: Stub, kind: str, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model(kind)
    info = await cluster.import_model(folder, kind)
    before = (await describe(stub)).devices[0].free_bytes
    progress, loaded = await load(stub, load_request(info, kind))
    assert [phase.phase for phase in loaded.start.phases] == [
        model_pb2.START_PHASE_FETCH,
        model_pb2.START_PHASE_LOAD,
        model_pb2.START_PHASE_INIT,
    ]
    assert loaded.start.source == model_pb2.TIER_SSD
    assert loaded.bytes_read >= info.weight_bytes
    assert progress
    prompt = (17, 400, 23, 1000, 6)
    tokens: list[int] = []
    async for response in stub.Generate(request(prompt, GREEDY, kind), timeout=60):
        assert response.chunk.first_index == len(tokens)
        assert (tuple(response.prompt_tokens.ids) == prompt) == (not tokens)
        tokens += response.chunk.token_ids
    assert response.chunk.finish_reason == model_pb2.FINISH_REASON_LENGTH
    assert response.chunk.usage.prompt_tokens == 5
    assert response.chunk.usage.completion_tokens == 20
    assert tokens == reference_greedy(folder, prompt, 20, ignore_eos=True)
    await stub.Unload(pb2.UnloadRequest(instance_id=kind, leader_epoch=1), timeout=30)
    assert (await describe(stub)).devices[0].free_bytes == before


async def test_text_goes_in_and_comes_out(stub: Stub, demo: model_pb2.ModelInfo) -> None:
    text = await text_of(stub, request("You may copy and distribute the", GREEDY))
    assert text.startswith(" ")
    assert "\ufffd" not in text
    stopped = model_pb2.SamplingParams(temperature=0, max_tokens=20, stop=[text[5:9]])
    assert await text_of(stub, request("You may copy and distribute the", stopped)) == text[:5]


async def test_a_seed_decides_what_is_drawn_also_for_a_sequence_taken_up_again(
    stub: Stub, demo: model_pb2.ModelInfo
) -> None:
    async def tokens(prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
        sampling = model_pb2.SamplingParams(
            temperature=0.9, seed=42, max_tokens=count, ignore_eos=True
        )
        responses = stub.Generate(request(prompt, sampling), timeout=60)
        return tuple([token async for each in responses for token in each.chunk.token_ids])

    prompt = (40, 41, 42)
    whole, again = await asyncio.gather(tokens(prompt, 30), tokens(prompt, 30))
    assert whole == again
    assert await tokens((*prompt, *whole[:11]), 19) == whole[11:]


async def test_an_answer_begun_elsewhere_goes_on_as_if_it_had_begun_here(
    stub: Stub, demo: model_pb2.ModelInfo
) -> None:
    sampling = model_pb2.SamplingParams(
        temperature=0.9,
        seed=42,
        max_tokens=30,
        min_tokens=25,
        frequency_penalty=0.8,
        repetition_penalty=1.2,
        stop=["the"],
        top_logprobs=0,
    )

    async def chunks(*delivered: int) -> list[model_pb2.TokenChunk]:
        asked = request((40, 41, 42), sampling)
        asked.delivered.ids.extend(delivered)
        return [each.chunk async for each in stub.Generate(asked, timeout=60)]

    whole = await chunks()
    tokens = [token for each in whole for token in each.token_ids]
    told = [one.chosen.logprob for each in whole for one in each.logprobs]
    rest = await chunks(*tokens[:11])
    assert rest[0].first_index == 11
    assert [token for each in rest for token in each.token_ids] == tokens[11:]
    assert [one.chosen.logprob for each in rest for one in each.logprobs] == pytest.approx(
        told[11:], abs=1e-3
    )
    assert rest[-1].usage == whole[-1].usage
    assert rest[-1].finish_reason == whole[-1].finish_reason
    text = "".join(each.text for each in whole)
    assert text.endswith("".join(each.text for each in rest))
    ended = await refusal(stub.Generate(_delivered(sampling, *tokens, 7, 7), timeout=60))
    assert (ended.code, "ends within" in ended.message) == ("INVALID_ARGUMENT", True)
    text_prompt = request("The", sampling)
    text_prompt.delivered.ids.append(1)
    refused = await refusal(stub.Generate(text_prompt, timeout=60))
    assert (refused.code, "prompt of tokens" in refused.message) == ("INVALID_ARGUMENT", True)


def _delivered(sampling: model_pb2.SamplingParams, *tokens: int) -> pb2.GenerateRequest:
    asked = request((40, 41, 42), sampling)
    asked.delivered.ids.extend(tokens)
    return asked


async def test_loading_twice_answers_at_once(cluster: Cluster, stub: Stub, demo: object) -> None:
    info = await cluster.import_model(DEMO_MODEL, "demo")
    progress, loaded = await load(stub, load_request(info, "demo"))
    assert progress == []
    assert loaded.start.source == model_pb2.TIER_SSD
    assert len((await describe(stub)).instances) == 1


async def test_a_client_that_disappears_frees_its_sequence(
    cluster: Cluster, stub: Stub, demo: model_pb2.ModelInfo
) -> None:
    endless = model_pb2.SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    async with connect(cluster.worker.grpc) as other:
        call = other.Generate(request("The", endless))
        await call.read()
        assert (await describe(stub)).instances[0].running == 1
        call.cancel()
        await until_state(stub, lambda state: state.instances[0].running == 0)
        await other.Generate(request("The", endless)).read()
    # That one was left open when its connection went.
    state = await until_state(stub, lambda state: state.instances[0].running == 0)
    assert state.instances[0].HasField("idle")


async def test_a_client_that_does_not_read_stops_only_its_own_sequence(
    stub: Stub, demo: model_pb2.ModelInfo
) -> None:
    endless = model_pb2.SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    stalled = stub.Generate(request("The", endless))
    assert len(await text_of(stub, request("You may", GREEDY))) > 0
    tokens = [token async for each in stalled for token in each.chunk.token_ids]
    assert len(tokens) == 1000


async def test_more_sequences_than_slots_wait_and_all_finish(
    stub: Stub, demo: model_pb2.ModelInfo
) -> None:
    texts = await asyncio.gather(
        *(text_of(stub, request("You may copy", GREEDY)) for _ in range(10))
    )
    assert len(set(texts)) == 1


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"prompt": (99_999,)}, Reason.INVALID_ARGUMENT, "below 1024"),
        ({"prompt": (1,) * 1024}, Reason.PROMPT_TOO_LONG, "1024"),
        ({"prompt": ()}, Reason.INVALID_ARGUMENT, "at least 1"),
        ({"temperature": float("nan")}, Reason.INVALID_SAMPLING, "nan"),
        ({"max_tokens": 0}, Reason.INVALID_SAMPLING, "Given: 0"),
        ({"instance": "nobody"}, Reason.INSTANCE_GONE, "not ready"),
        ({"instance": "../x"}, Reason.INVALID_ARGUMENT, "instance id"),
    ],
)
async def test_a_wrong_request_is_refused_with_its_reason(
    stub: Stub, demo: model_pb2.ModelInfo, change: dict[str, object], reason: str, words: str
) -> None:
    sampling = {"temperature": 0.0, "max_tokens": 2}
    sampling.update({k: v for k, v in change.items() if k in sampling})  # type: ignore[misc]
    asked = request(
        change.get("prompt", (1,)),  # type: ignore[arg-type]
        model_pb2.SamplingParams(**sampling),  # type: ignore[arg-type]
        str(change.get("instance", "demo")),
    )
    error = await refusal(stub.Generate(asked, timeout=30))
    assert error.reason == reason
    assert words in error.message


async def test_a_conversation_is_rendered_by_the_models_template(
    stub: Stub, demo: model_pb2.ModelInfo
) -> None:
    said = [{"role": "user", "content": "May I copy it?"}]
    turns = [model_pb2.ChatMessage(**turn) for turn in said]
    asked = request("x", GREEDY)
    asked.prompt.CopyFrom(model_pb2.Prompt(conversation=model_pb2.Conversation(messages=turns)))
    responses = [each async for each in stub.Generate(asked, timeout=30)]
    reference = AutoTokenizer.from_pretrained(DEMO_MODEL)
    rendered = reference.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    assert list(responses[0].prompt_tokens.ids) == rendered


async def test_a_load_that_cannot_be_is_refused_and_takes_nothing(
    cluster: Cluster, stub: Stub
) -> None:
    info = await cluster.import_model(DEMO_MODEL, "demo")
    unknown = model_pb2.ModelRef(name="unknown", revision="0" * 16)
    before = await describe(stub)

    async def refused(**fields: object) -> BriskError:
        return await refusal(stub.Load(load_request(info, "x", **fields), timeout=30))

    assert (await refused(model=unknown)).reason == Reason.MODEL_NOT_FOUND
    assert (await refused(device_id="cpu:9")).reason == Reason.INVALID_ARGUMENT
    assert (await refused(slots=0)).reason == Reason.INVALID_ARGUMENT
    large = await refused(memory_bytes=1 << 40)
    assert large.reason == Reason.INSUFFICIENT_MEMORY
    assert large.metadata["needed_bytes"] == str(1 << 40)
    assert large.metadata["available_bytes"] == str(before.devices[0].free_bytes)
    small = await refused(memory_bytes=1000)
    assert small.reason == Reason.INSUFFICIENT_MEMORY
    after = await describe(stub)
    assert list(after.instances) == []
    assert after.devices == before.devices


async def test_a_cancelled_load_frees_everything(cluster: Cluster, stub: Stub) -> None:
    info = await cluster.import_model(DEMO_MODEL, "demo")
    for reads in (0, 1):
        call = stub.Load(load_request(info, f"cancelled-{reads}"))
        for _ in range(reads):
            await call.read()
        call.cancel()
    state = await until_state(stub, lambda state: not state.instances)
    assert state.devices[0].free_bytes == state.devices[0].memory_bytes


async def test_orders_of_an_older_leader_are_refused(cluster: Cluster, stub: Stub) -> None:
    info = await cluster.import_model(DEMO_MODEL, "demo")
    # Epochs are remembered for the worker's life: the shared one must stay usable.
    stale = load_request(info, "stale", leader_epoch=0)
    assert (await refusal(stub.Load(stale, timeout=30))).reason == Reason.STALE_EPOCH
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Unload(pb2.UnloadRequest(instance_id="x", leader_epoch=0), timeout=30)
    assert from_rpc_error(refused.value).reason == Reason.STALE_EPOCH


async def test_checking_a_good_model_changes_nothing(cluster: Cluster, stub: Stub) -> None:
    info = await cluster.import_model(DEMO_MODEL, "demo")
    await stub.Check(pb2.CheckRequest(model=info.ref), timeout=30)
    assert list((await describe(stub)).instances) == []


async def test_unloading_a_busy_instance_waits_or_is_refused(cluster: Cluster, stub: Stub) -> None:
    info = await cluster.import_model(DEMO_MODEL, "demo")
    await load(stub, load_request(info, "leaving", context_tokens_max=1024))
    sampling = model_pb2.SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
    call = aiter(stub.Generate(request("The", sampling, "leaving"), timeout=60))
    await anext(call)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Unload(
            pb2.UnloadRequest(instance_id="leaving", leader_epoch=1, only_if_idle=True), timeout=30
        )
    assert from_rpc_error(refused.value).reason == Reason.INSTANCE_BUSY
    unload = asyncio.ensure_future(
        stub.Unload(pb2.UnloadRequest(instance_id="leaving", leader_epoch=1), timeout=60)
    )
    leaving = placement_pb2.INSTANCE_STATE_LEAVING
    await until_state(stub, lambda state: state.instances[0].state == leaving)
    gone = await refusal(stub.Generate(request("The", sampling, "leaving"), timeout=30))
    assert gone.reason == Reason.INSTANCE_GONE
    count = sum([len(each.chunk.token_ids) async for each in call])
    assert count >= 149  # all but what was read before
    await unload
    assert list((await describe(stub)).instances) == []


async def test_the_request_id_is_in_every_line_of_a_load(cluster: Cluster, stub: Stub) -> None:
    info = await cluster.import_model(DEMO_MODEL, "demo")
    call = stub.Load(
        load_request(info, "traced"), timeout=30, metadata=(("x-request-id", "trace-me"),)
    )
    async for _ in call:
        pass
    await stub.Unload(pb2.UnloadRequest(instance_id="traced", leader_epoch=1), timeout=30)
    lines = {e["message"] for e in cluster.worker.events() if e.get("request_id") == "trace-me"}
    assert lines >= {"loading", "leased", "reading", "read", "load ended"}


async def test_metrics_say_what_was_loaded_and_decoded(
    cluster: Cluster, stub: Stub, demo: model_pb2.ModelInfo
) -> None:
    await text_of(stub, request("You may", GREEDY))
    text = await cluster.worker.scrape()
    for name in (
        'brisk_load_phase_seconds_bucket{le="0.001",phase="fetch"}',
        'brisk_load_phase_seconds_count{phase="load"}',
        "brisk_load_bytes_read_total",
        "brisk_load_files_read_total{",
        'brisk_load_bytes_total{mode="direct"}',
        'brisk_load_page_bytes_total{pages="small"}',
        "brisk_time_to_first_token_seconds_count",
        "brisk_inter_token_latency_seconds_count",
        'brisk_num_requests_running{deployment="tiny"}',
        'brisk_num_requests_waiting{deployment="tiny"}',
        'brisk_device_memory_bytes{device="cpu:0"}',
        'brisk_device_memory_used_bytes{device="cpu:0"}',
    ):
        assert name in text
