"""An order is parsed whole or refused by the argument's name; nothing is silently ignored."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidArgumentError
from services.common.prompt import ChatMessage, Conversation, TextPrompt, TokensPrompt
from services.router.http.errors import failure_of
from services.router.http.orders import Order, parse_chat, parse_completion

HELLO = [{"role": "user", "content": "hello"}]


def chat(**members: Any) -> Order:
    return parse_chat({"model": "m", "messages": HELLO, **members})


def completion(**members: Any) -> Order:
    return parse_completion({"model": "m", "prompt": "hi", **members})


def refused(body: Any, parse: Any = parse_chat) -> tuple[str | None, str]:
    """Return the argument that is named and the message."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse(body)
    failure = failure_of(caught.value)
    assert failure.status == 400
    return failure.parameter, failure.message


def test_a_chat_becomes_a_conversation_with_the_engines_own_limit() -> None:
    order = chat()
    assert order.model == "m"
    assert order.prompt == Conversation(messages=(ChatMessage(role="user", content="hello"),))
    assert order.sampling.temperature == 1.0
    assert order.sampling.max_tokens is None
    assert not order.is_streamed


def test_a_completion_has_16_tokens_unless_told_otherwise() -> None:
    assert completion().sampling.max_tokens == 16
    assert completion(max_tokens=5).sampling.max_tokens == 5
    assert refused({"model": "m", "prompt": "x", "max_tokens": 0}, parse_completion)[0] == (
        "max_tokens"
    )


def test_every_sampling_argument_arrives() -> None:
    sampling = chat(
        temperature=0,
        top_p=0.5,
        top_k=7,
        seed=9,
        max_completion_tokens=11,
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        ignore_eos=True,
    ).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 0.5, 7)
    assert (sampling.seed, sampling.max_tokens) == (9, 11)
    assert (sampling.stop, sampling.stop_token_ids) == (("a", "b"), (1, 2))
    assert sampling.ignore_eos


def test_null_is_as_good_as_absent() -> None:
    nothing = dict.fromkeys(("temperature", "top_p", "seed", "stop", "stream", "tools", "n", "odd"))
    assert chat(**nothing) == chat()


def test_a_single_stop_text_needs_no_list() -> None:
    assert chat(stop="x").sampling.stop == ("x",)


def test_both_names_of_the_limit_work_and_must_agree() -> None:
    assert chat(max_tokens=3).sampling.max_tokens == 3
    assert chat(max_tokens=3, max_completion_tokens=3).sampling.max_tokens == 3
    given = {"model": "m", "messages": HELLO, "max_tokens": 3, "max_completion_tokens": 4}
    assert refused(given)[0] == "max_tokens"


@pytest.mark.parametrize(("given", "seed"), [(-1, 2**64 - 1), (-(2**63), 2**63), (5, 5)])
def test_a_negative_seed_is_taken_for_its_twos_complement(given: int, seed: int) -> None:
    assert chat(seed=given).sampling.seed == seed


def test_text_parts_are_joined_line_by_line() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    prompt = parse_chat({"model": "m", "messages": [{"role": "user", "content": parts}]}).prompt
    assert prompt == Conversation(messages=(ChatMessage(role="user", content="a\nb"),))


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ("x", TextPrompt(text="x")),
        (["x"], TextPrompt(text="x")),
        ([1, 2], TokensPrompt(ids=(1, 2))),
        ([[1, 2]], TokensPrompt(ids=(1, 2))),
    ],
)
def test_a_prompt_is_text_or_tokens_alone_or_in_a_list(given: Any, prompt: Any) -> None:
    assert completion(prompt=given).prompt == prompt


@pytest.mark.parametrize("given", [["a", "b"], [[1], [2]], [], [[]], 5, {}, [1, "a"], [True], [-1]])
def test_any_other_prompt_is_refused(given: Any) -> None:
    assert refused({"model": "m", "prompt": given}, parse_completion)[0] == "prompt"


def test_usage_in_a_stream_is_told_when_asked_for() -> None:
    assert chat(stream=True, stream_options={"include_usage": True}).wants_usage
    assert not chat(stream=True, stream_options={}).wants_usage
    given = {"model": "m", "messages": HELLO, "stream_options": {"include_usage": True}}
    assert refused(given)[0] == "stream_options"


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1},
        {"presence_penalty": 0.0, "frequency_penalty": 0},
        {"logit_bias": {}, "logprobs": False, "response_format": {"type": "text"}},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
    ],
)
def test_values_that_change_nothing_are_accepted(neutral: dict[str, Any]) -> None:
    assert chat(**neutral) == chat()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),
        ("presence_penalty", 0.1),
        ("frequency_penalty", -1),
        ("logit_bias", {"1": 2}),
        ("logprobs", True),
        ("top_logprobs", 2),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("modalities", ["audio"]),
        ("reasoning_effort", "low"),
        ("store", True),
        ("min_p", 0.1),
        ("odd", 1),
        ("temperature", "hot"),
        ("temperature", 11),
        ("temperature", float("nan")),
        ("temperature", 10**400),
        ("temperature", True),
        ("top_p", 0),
        ("top_k", -2),
        ("top_k", 1.5),
        ("seed", 2**64),
        ("seed", -(2**64)),
        ("seed", 1.0),
        ("stop", 5),
        ("stop", [5]),
        ("stop", ["x"] * 17),
        ("stop", ""),
        ("stop_token_ids", ["x"]),
        ("stop_token_ids", [-1]),
        ("ignore_eos", "yes"),
        ("max_tokens", 0),
        ("max_completion_tokens", 0),
        ("max_completion_tokens", "4"),
        ("stream", 1),
        ("messages", []),
        ("messages", "hello"),
        ("model", 5),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(name: str, value: Any) -> None:
    parameter, message = refused({"model": "m", "messages": HELLO, name: value})
    assert parameter == name
    assert name.split("_", maxsplit=1)[0] in message


@pytest.mark.parametrize(
    ("message", "parameter"),
    [
        ("hello", "messages[0]"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "", "content": "x"}, "messages[0].role"),
        ({"role": 5, "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[0].content"),
        ({"role": "user", "content": "x", "name": "eve"}, "messages[0].name"),
        ({"role": "assistant", "content": "x", "tool_calls": [1]}, "messages[0].tool_calls"),
    ],
)
def test_a_message_is_refused_by_its_place(message: Any, parameter: str) -> None:
    assert refused({"model": "m", "messages": [message]})[0] == parameter


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_what_must_be_there_is_named(missing: str) -> None:
    body = {"model": "m", "messages": HELLO}
    del body[missing]
    assert refused(body) == (missing, f"{missing} is required")


@pytest.mark.parametrize("body", [None, [], "x", 5, True])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    assert "JSON object" in refused(body)[1]


def test_a_slip_gets_a_hint() -> None:
    assert (
        "did you mean temperature?"
        in refused({"model": "m", "messages": HELLO, "temprature": 1})[1]
    )


def test_a_message_never_repeats_a_large_value() -> None:
    big = "x" * 100_000
    for members in ({"odd" * 9_000: 1}, {"temperature": big}, {"n": [1] * 9_999}, {"seed": 9**900}):
        assert len(refused({"model": "m", "messages": HELLO, **members})[1]) < 300
