"""An order is parsed whole or refused by the argument's name; nothing is silently ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.common.deadline import Deadline
from services.common.errors import InvalidArgumentError
from services.common.prompt import ChatMessage, Conversation, TextPrompt, TokensPrompt
from services.common.sampling import TokenBias
from services.router.http.errors import failure_of
from services.router.http.orders import Order, parse_chat, parse_completion, parse_tokenize
from services.router.job import Job

HELLO = [{"role": "user", "content": "hello"}]


def chat(**members: Any) -> Order:
    return parse_chat({"model": "m", "messages": HELLO, **members})


def completion(**members: Any) -> Order:
    return parse_completion({"model": "m", "prompt": "hi", **members})


def job_of(order: Order) -> Job:
    return order.job("r", Deadline.after(1.0))


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
        min_p=0.25,
        presence_penalty=-1,
        frequency_penalty=0.5,
        repetition_penalty=1.5,
        logit_bias={"7": -100, "8": 2.5},
        min_tokens=3,
        logprobs=True,
        top_logprobs=4,
    ).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 0.5, 7)
    assert (sampling.seed, sampling.max_tokens) == (9, 11)
    assert (sampling.stop, sampling.stop_token_ids) == (("a", "b"), (1, 2))
    assert sampling.ignore_eos
    assert (sampling.min_p, sampling.min_tokens, sampling.top_logprobs) == (0.25, 3, 4)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-1.0, 0.5)
    assert sampling.repetition_penalty == 1.5
    assert sampling.logit_bias == (
        TokenBias(token_id=7, bias=-100.0),
        TokenBias(token_id=8, bias=2.5),
    )


def test_the_number_of_answers_arrives() -> None:
    assert job_of(chat(n=3)).choices == job_of(completion(n=3)).choices == 3
    assert job_of(chat()).choices == 1


def test_logprobs_are_a_flag_in_a_chat_and_a_number_in_a_completion() -> None:
    assert chat().sampling.top_logprobs is None
    assert chat(logprobs=True).sampling.top_logprobs == 0
    assert completion(logprobs=0).sampling.top_logprobs == 0
    assert completion(logprobs=20).sampling.top_logprobs == 20
    assert completion().sampling.top_logprobs is None
    for wrong in (21, -1, True):
        body = {"model": "m", "prompt": "x", "logprobs": wrong}
        assert refused(body, parse_completion)[0] == "logprobs"


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
        {"tools": [], "tool_choice": "none"},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
    ],
)
def test_values_that_change_nothing_are_accepted(neutral: dict[str, Any]) -> None:
    assert chat(**neutral) == chat()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 17),
        ("n", 0),
        ("n", True),
        ("presence_penalty", 2.1),
        ("frequency_penalty", "much"),
        ("repetition_penalty", 0),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": 10**400}),
        ("logit_bias", {"1": True}),
        ("logit_bias", {"one": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"4294967296": 1}),
        ("logit_bias", {"1": 1, "01": 1}),
        ("logit_bias", [1]),
        ("logprobs", 3),
        ("top_logprobs", 2),
        ("tools", "none"),
        ("structured_outputs", {}),
        ("structured_outputs", {"regex": "a", "grammar": "b"}),
        ("tool_choice", "required"),
        ("modalities", ["audio"]),
        ("reasoning_effort", "low"),
        ("store", True),
        ("min_p", 1),
        ("min_tokens", -1),
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
    body = {"model": "m", "messages": HELLO, name: value}
    parameter, message = refused(body, lambda each: job_of(parse_chat(each)))
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
        ({"role": "user", "content": "x", "name": 5}, "messages[0].name"),
        ({"role": "user", "content": "x", "name": "e" * 65}, "messages[0].name"),
        ({"role": "tool", "content": "x", "tool_call_id": "e" * 65}, "messages[0].tool_call_id"),
        ({"role": "assistant", "content": "x", "tool_calls": [1]}, "messages[0].tool_calls"),
        (
            {"role": "assistant", "tool_calls": [{"type": "function"}]},
            "messages[0].tool_calls[0].function",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "1"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
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


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_tools_are_shown_unless_none_may_be_called() -> None:
    shown = chat(tools=[TOOL], tool_choice="auto", parallel_tool_calls=True).prompt
    assert isinstance(shown, Conversation)
    assert [json.loads(tool) for tool in shown.tools] == [TOOL]
    assert chat(tools=[TOOL], tool_choice="none") == chat()


def test_calls_and_their_results_become_turns() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c", "name": "f"},
    ]
    prompt = parse_chat({"model": "m", "messages": turns}).prompt
    assert isinstance(prompt, Conversation)
    called, result = prompt.messages
    assert called.content == ""
    assert json.loads(called.tool_calls[0]) == {
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": {"a": 1}},
    }
    assert (result.tool_call_id, result.name) == ("c", "f")


@pytest.mark.parametrize(
    ("members", "parameter"),
    [
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
            "tools[0].function.strict",
        ),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": TOOL}, "tool_choice"),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [TOOL] * 129}, "tools"),
    ],
)
def test_tools_that_promise_too_much_are_refused(members: Any, parameter: str) -> None:
    assert refused({"model": "m", "messages": HELLO, **members})[0] == parameter


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("members", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", {"type": "object"}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
                }
            },
            "json_schema",
            SCHEMA,
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"grammar": "start: A"}}, "grammar", "start: A"),
    ],
)
def test_a_format_becomes_a_constraint(members: Any, kind: str, text: object) -> None:
    for order in (chat(**members), completion(**members)):
        constraint = order.sampling.constraint
        assert constraint is not None
        assert constraint.kind == kind
        assert (json.loads(constraint.text) if kind == "json_schema" else constraint.text) == text


@pytest.mark.parametrize(
    ("format", "parameter"),
    [
        ("json", "response_format"),
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {}}, "response_format.json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": 5}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {"a": "x" * 65_536}}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}},
            "response_format.json_schema.strict",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_format_that_is_none_is_refused_by_its_part(format: Any, parameter: str) -> None:  # noqa: A002
    assert refused({"model": "m", "messages": HELLO, "response_format": format})[0] == parameter


def test_two_formats_at_a_time_are_refused() -> None:
    body = {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}
    assert refused({"model": "m", "messages": HELLO, **body})[0] == "structured_outputs"


def test_tokens_are_asked_for_with_a_prompt_or_with_messages() -> None:
    asked = parse_tokenize({"model": "m", "prompt": "x", "return_token_strs": True})
    assert (asked.model, asked.prompt, asked.wants_names) == ("m", TextPrompt(text="x"), True)
    talk = parse_tokenize({"model": "m", "messages": HELLO, "tools": [TOOL]})
    assert isinstance(talk.prompt, Conversation)
    assert (len(talk.prompt.tools), talk.wants_names) == (1, False)
    for body, parameter in (
        ({"model": "m"}, "messages"),
        ({"prompt": "x"}, "model"),
        ({"model": "m", "prompt": "x", "add_special_tokens": False}, "add_special_tokens"),
        ({"model": "m", "prompt": "x", "messages": HELLO}, "messages"),
    ):
        assert refused(body, parse_tokenize)[0] == parameter
