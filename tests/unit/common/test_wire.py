"""What is sent in a message is what the other side gets, and what is unknown never slips in."""

import math
from typing import Any

import pytest
from brisk.common.v1 import model_pb2, placement_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.common import wire, wire_sequence
from services.common.errors import InvalidArgumentError
from services.common.model import (
    FinishReason,
    ModelInfo,
    ModelRef,
    PhaseDuration,
    StartPhase,
    StartProgress,
    StartReport,
    Tier,
    TokenChunk,
    TokenLogprob,
    TokenLogprobs,
    Usage,
)
from services.common.names import parse_model_name
from services.common.placement import Device, Instance, InstanceState, Route, WorkerState
from services.common.prompt import ChatMessage, Conversation, TextPrompt, TokensPrompt
from services.common.sampling import Sampling, TokenBias

REF = ModelRef(name=parse_model_name("facebook/opt"), revision="0123456789abcdef")
INSTANCE = Instance(
    instance_id="i-1",
    deployment="opt",
    model=REF,
    worker_id="worker-1",
    device_id="cpu:0",
    memory_bytes=2**40,
    slots=4,
    state=InstanceState.READY,
    running=1,
    waiting=2,
    idle_s=1.5,
    keep_alive_left_s=298.25,
    serial_reason="it has an encoder",
)
BUSY = Instance(
    instance_id="i-2",
    deployment="opt",
    model=REF,
    worker_id="worker-1",
    device_id="cpu:0",
    memory_bytes=1,
    slots=1,
    state=InstanceState.LEAVING,
)
USAGE = Usage(prompt_tokens=3, completion_tokens=9)
EXAMPLES: list[tuple[str, Any]] = [
    ("prompt", TextPrompt(text="héllo")),
    ("prompt", TextPrompt(text="")),
    ("prompt", TokensPrompt(ids=(0, 2**32 - 1))),
    ("prompt", Conversation(messages=(ChatMessage(role="user", content="hi"),))),
    ("model_ref", REF),
    ("model_ref", ModelRef(name=REF.name)),
    (
        "model_info",
        ModelInfo(
            ref=REF,
            architecture="OPTForCausalLM",
            dtype="F32",
            weight_bytes=2**50,
            parameters=7,
            context_tokens_max=2048,
            kv_bytes_per_token=11,
        ),
    ),
    ("chunk", TokenChunk(first_index=5, token_ids=(1, 2), text="ab")),
    (
        "chunk",
        TokenChunk(first_index=0, token_ids=(), finish_reason=FinishReason.STOP, usage=USAGE),
    ),
    (
        "chunk",
        TokenChunk(
            first_index=0,
            token_ids=(1,),
            logprobs=(
                TokenLogprobs(
                    chosen=TokenLogprob(token_id=1, logprob=-0.5, piece=b"\xe2"),
                    top=(TokenLogprob(token_id=2, logprob=-0.25),),
                ),
            ),
        ),
    ),
    ("progress", StartProgress(phase=StartPhase.LOAD, bytes_done=1, bytes_total=2, detail="x")),
    (
        "report",
        StartReport(
            cold=True,
            source=Tier.SSD,
            phases=(PhaseDuration(phase=StartPhase.QUEUE, duration_s=0.125),),
        ),
    ),
    ("device", Device(device_id="cpu:0", memory_bytes=2**40, free_bytes=3)),
    ("instance", INSTANCE),
    ("instance", BUSY),
    (
        "worker_state",
        WorkerState(
            worker_id="worker-1",
            node_id="node-1",
            address="127.0.0.1:5",
            devices=(Device(device_id="cpu:0", memory_bytes=2, free_bytes=1),),
            instances=(INSTANCE, BUSY),
            draining=True,
            sequence=9,
        ),
    ),
    (
        "route",
        Route(
            instance_id="i-1",
            deployment="opt",
            worker_address="127.0.0.1:5",
            worker_id="worker-1",
            slots=4,
        ),
    ),
]


@pytest.mark.parametrize(("noun", "value"), EXAMPLES)
def test_what_is_sent_arrives_unchanged(noun: str, value: object) -> None:
    module = wire_sequence if noun in {"prompt", "chunk"} else wire
    message = getattr(module, f"{noun}_to_proto")(value)
    received = type(message).FromString(message.SerializeToString())
    assert getattr(module, f"{noun}_from_proto")(received) == value


def biases(given: dict[int, float]) -> tuple[TokenBias, ...]:
    return tuple(TokenBias(token_id=token, bias=bias) for token, bias in given.items())


@given(
    st.builds(
        Sampling,
        temperature=st.floats(0, 10),
        top_p=st.floats(0, 1, exclude_min=True),
        top_k=st.integers(0, 2**32 - 1),
        min_p=st.floats(0, 1, exclude_max=True),
        presence_penalty=st.floats(-2, 2),
        frequency_penalty=st.floats(-2, 2),
        repetition_penalty=st.floats(0, 10, exclude_min=True),
        logit_bias=st.dictionaries(st.integers(0, 2**32 - 1), st.floats(-100, 100)).map(biases),
        top_logprobs=st.none() | st.integers(0, 20),
        seed=st.none() | st.integers(0, 2**64 - 1),
        max_tokens=st.none() | st.integers(9, 2**31 - 1),
        min_tokens=st.integers(0, 9),
        stop=st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3).map(tuple),
        stop_token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple),
        ignore_eos=st.booleans(),
    )
)
def test_sampling_arrives_bit_by_bit(sampling: Sampling) -> None:
    message = wire_sequence.sampling_to_proto(sampling)
    received = model_pb2.SamplingParams.FromString(message.SerializeToString())
    assert wire_sequence.sampling_from_proto(received) == sampling


def test_unset_sampling_means_the_documented_defaults() -> None:
    assert wire_sequence.sampling_from_proto(model_pb2.SamplingParams()) == Sampling(
        temperature=1.0, top_p=1.0, top_k=0, seed=None, max_tokens=None
    )


@pytest.mark.parametrize(
    "message",
    [
        model_pb2.SamplingParams(temperature=math.nan),
        model_pb2.SamplingParams(temperature=-1.0),
        model_pb2.SamplingParams(top_p=0.0),
        model_pb2.SamplingParams(repetition_penalty=0.0),
        model_pb2.SamplingParams(max_tokens=0),
        model_pb2.SamplingParams(max_tokens=-1),
    ],
)
def test_a_zero_that_was_set_is_not_taken_for_unset(message: model_pb2.SamplingParams) -> None:
    with pytest.raises(InvalidArgumentError):
        wire_sequence.sampling_from_proto(message)


def test_a_prompt_without_a_form_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="prompt must be set"):
        wire_sequence.prompt_from_proto(model_pb2.Prompt())


@pytest.mark.parametrize(
    "message",
    [
        model_pb2.ModelRef(),
        model_pb2.ModelRef(name="../x"),
        model_pb2.ModelRef(name="m", revision="../x"),
    ],
)
def test_a_reference_that_could_leave_the_store_is_refused(message: model_pb2.ModelRef) -> None:
    with pytest.raises(InvalidArgumentError):
        wire.model_ref_from_proto(message)


def test_a_worker_without_an_identity_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="worker id"):
        wire.worker_state_from_proto(placement_pb2.WorkerState(node_id="n"))
    with pytest.raises(InvalidArgumentError, match="node id"):
        wire.worker_state_from_proto(placement_pb2.WorkerState(worker_id="w"))


@pytest.mark.parametrize(
    ("enum", "kind", "to_proto"),
    [
        (model_pb2.Tier, Tier, wire._TIERS),  # noqa: SLF001 - whether the table is complete
        (model_pb2.StartPhase, StartPhase, wire._PHASES),  # noqa: SLF001
        (model_pb2.FinishReason, FinishReason, wire_sequence._FINISHES),  # noqa: SLF001
        (placement_pb2.InstanceState, InstanceState, wire._STATES),  # noqa: SLF001
    ],
)
def test_every_value_of_an_enum_has_its_twin(enum: Any, kind: Any, to_proto: Any) -> None:
    assert set(to_proto.values()) == set(enum.values())
    assert set(kind) <= set(to_proto)
    prefix = enum.Name(0).removesuffix("UNSPECIFIED")
    for ours, number in to_proto.items():
        expected = "UNSPECIFIED" if ours is None else ours.name
        assert enum.Name(number) == prefix + expected


def test_enum_values_from_the_future_are_unspecified() -> None:
    progress = model_pb2.StartProgress.FromString(bytes([0x08, 99, 0x20, 99]))
    assert wire.progress_from_proto(progress) == StartProgress(phase=StartPhase.UNSPECIFIED)
    instance = wire.instance_to_proto(INSTANCE)
    instance.MergeFromString(bytes([0x40, 99]))
    assert wire.instance_from_proto(instance).state is InstanceState.UNSPECIFIED


@given(st.floats(-1e6, 1e6))
def test_durations_are_rounded_to_microseconds(seconds: float) -> None:
    arrived = wire.duration_from_proto(wire.duration_to_proto(seconds))
    assert arrived == pytest.approx(seconds, abs=6e-7)
