"""What protobuf cannot carry is refused with the server's own kind of error, naming the value."""

import json
import math
from pathlib import Path

import pytest
from brisk_client import requests
from brisk_client.channel import parse_endpoint, parse_request_id
from brisk_client.errors import InvalidRequestError
from brisk_client.requests import SamplingOptions
from brisk_client.results import ChatMessage


def test_only_given_sampling_options_are_set() -> None:
    params = requests.sampling({"temperature": 0.0, "stop": "end", "stop_token_ids": [3]})
    assert params.HasField("temperature")
    assert params.temperature == 0.0
    assert not params.HasField("top_p")
    assert not params.HasField("seed")
    assert list(params.stop) == ["end"]
    assert list(params.stop_token_ids) == [3]


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": -1},
        {"seed": 2**64},
        {"stop_token_ids": [-1]},
        {"max_tokens": "many"},
        {"temperature": "hot"},
        {"stop": 5},
        {"stop": ["\ud800"]},
    ],
    ids=str,
)
def test_a_value_that_protobuf_cannot_carry_is_refused_by_name(options: SamplingOptions) -> None:
    (name,) = options
    with pytest.raises(InvalidRequestError, match=name):
        requests.sampling(options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": -2}, "top_k must be at least 0. Given: -2"),
        ({"top_k": 2**32}, "top_k must be at most 4294967295. Given: 4294967296"),
        ({"seed": -1}, "seed must be at least 0. Given: -1"),
        ({"top_logprobs": -1}, "top_logprobs must be at least 0. Given: -1"),
        ({"min_tokens": -1}, "min_tokens must be at least 0. Given: -1"),
        ({"logit_bias": {-1: 1.0}}, "each of logit_bias must be at least 0. Given: -1"),
        ({"stop_token_ids": [3, -1]}, "each of stop_token_ids must be at least 0. Given: -1"),
    ],
    ids=str,
)
def test_a_number_out_of_range_is_refused_with_limit_and_value(
    options: SamplingOptions, says: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        requests.sampling(options)
    assert (caught.value.message, caught.value.reason) == (says, "INVALID_SAMPLING")


@pytest.mark.parametrize("field", ["slots", "context_tokens_max"])
def test_a_specification_out_of_range_is_refused_with_limit_and_value(field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        deploy(**{field: -1})
    assert caught.value.message == f"{field} must be at least 1. Given: -1"
    assert caught.value.reason == "INVALID_SPEC"


def test_limits_that_the_server_knows_are_left_to_it() -> None:
    assert requests.sampling({"max_tokens": -5}).max_tokens == -5
    assert math.isnan(requests.sampling({"temperature": math.nan}).temperature)


def test_an_unknown_option_is_a_type_error_as_with_any_function() -> None:
    with pytest.raises(TypeError, match="temprature"):
        requests.sampling({"temprature": 1.0})  # type: ignore[typeddict-unknown-key]


def test_an_unknown_option_of_a_request_is_named_without_another_fields_name() -> None:
    options = {"timeout": 1.0}
    asked = {"request_id": "r", "want_progress": False}
    expected = r"^unknown option 'timeout'; did you mean timeout_s\?"
    with pytest.raises(TypeError, match=expected):
        requests.generate("m", "p", options, **asked)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=expected):
        requests.chat("m", [], options, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [[-1], [2**32], ["a"], "\ud800", 7, None], ids=str)
def test_a_prompt_is_text_or_token_ids(prompt: object) -> None:
    with pytest.raises(InvalidRequestError, match="prompt"):
        requests.prompt(prompt)  # type: ignore[arg-type]


def test_messages_come_as_values_or_as_mappings() -> None:
    request = requests.chat(
        "m",
        [ChatMessage(role="system", content="a"), {"role": "user", "content": "b"}],
        {},
        request_id="r",
        want_progress=False,
    )
    assert [(turn.role, turn.content) for turn in request.messages] == [
        ("system", "a"),
        ("user", "b"),
    ]


@pytest.mark.parametrize(
    "message",
    [{"role": "user"}, {"role": "user", "content": "a", "mood": "b"}, {"role": 1, "content": "a"}],
    ids=str,
)
def test_a_message_has_a_role_a_content_and_what_belongs_to_calls(message: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="messages"):
        requests.chat("m", [message], {}, request_id="r", want_progress=False)


def test_a_source_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    request = requests.import_model("models/tiny", None, as_is=True)
    assert (request.source_path, request.as_is) == (f"{tmp_path}/models/tiny", True)
    with pytest.raises(InvalidRequestError, match="NUL"):
        requests.source_path("a\0b")


def deploy(**changed: object) -> object:
    arguments = {
        "name": "n", "source": None, "model": "m", "revision": None, "as_is": False,
        "keep_alive_s": None, "slots": None, "context_tokens_max": None,
    }  # fmt: skip
    return requests.deploy(**{**arguments, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_s", "seconds", "nanos"),
    [(0, 0, 0), (1.5, 1, 500_000_000), (300, 300, 0), (math.inf, -1, 0), (0.9999999999, 1, 0)],
)
def test_keep_alive_becomes_a_duration(given_s: float, seconds: int, nanos: int) -> None:
    keep_alive = deploy(keep_alive_s=given_s).spec.keep_alive  # type: ignore[attr-defined]
    assert (keep_alive.seconds, keep_alive.nanos) == (seconds, nanos)


def test_what_was_not_given_is_not_sent() -> None:
    spec = deploy().spec  # type: ignore[attr-defined]
    assert not spec.HasField("keep_alive")
    assert not spec.HasField("slots")
    assert not spec.HasField("context_tokens_max")


@pytest.mark.parametrize(
    "changed",
    [
        {"keep_alive_s": -1.0},
        {"keep_alive_s": math.nan},
        {"keep_alive_s": 1e12},
        {"slots": -1},
        {"slots": 2**32},
        {"source": "/x"},
        {"model": None},
    ],
    ids=str,
)
def test_a_bad_deployment_is_refused_before_it_is_sent(changed: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        deploy(**changed)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_every_call_has_a_finite_deadline(value: float) -> None:
    with pytest.raises(InvalidRequestError, match="timeout_s"):
        requests.timeout_s(value)


@pytest.mark.parametrize("text", ["127.0.0.1:7480", "[::1]:80", "router.local:65535"])
def test_an_endpoint_is_host_and_port(text: str) -> None:
    assert parse_endpoint(text) == text


@pytest.mark.parametrize(
    "text", ["", "localhost", ":80", "h:0", "h:65536", "http://h:80", "h:80/", "h:80\n", "h h:80"]
)
def test_anything_else_is_no_endpoint(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="host:port"):
        parse_endpoint(text)


@pytest.mark.parametrize("text", ["", "a b", "é", "x" * 65, "a\n", "../x"])
def test_a_request_id_fits_into_metadata_and_logs(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="64 characters"):
        parse_request_id(text)


def test_every_sampling_option_travels() -> None:
    options: SamplingOptions = {
        "json_schema": {"type": "object"},
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.25,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.25,
        "logit_bias": {7: -100.0, 8: 2.0},
        "seed": 9,
        "max_tokens": 8,
        "min_tokens": 2,
        "stop": ["a", "b"],
        "stop_token_ids": [1],
        "ignore_eos": True,
        "top_logprobs": 4,
        "choices": 3,
    }
    others = {"regex": "a+", "grammar": "start: A"}
    assert {*options, *others} == SamplingOptions.__annotations__.keys()
    request = requests.generate("m", "p", options, request_id="r", want_progress=False)
    assert request.choices == 3
    params = request.sampling
    assert [(each.token_id, each.bias) for each in params.logit_bias] == [(7, -100.0), (8, 2.0)]
    assert json.loads(params.constraint.json_schema) == {"type": "object"}
    for name, text in others.items():
        constraint = requests.sampling({name: text}).constraint  # type: ignore[misc]
        assert getattr(constraint, name) == text
    special = {"logit_bias", "choices", "json_schema"}
    plain = {name: value for name, value in options.items() if name not in special}
    for name, value in plain.items():
        sent = getattr(params, name)
        assert (list(sent) if isinstance(value, list) else sent) == value


@pytest.mark.parametrize(
    ("choices", "says"), [(0, "at least 1"), (-1, "at least 1"), (2**32, "at most")]
)
def test_a_number_of_answers_that_the_wire_cannot_tell_is_refused(choices: int, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        requests.chat("m", [], {"choices": choices}, request_id="r", want_progress=False)


def test_one_constraint_at_a_time() -> None:
    with pytest.raises(InvalidRequestError, match="give one of json_schema, regex, grammar"):
        requests.sampling({"regex": "a", "grammar": "b"})


def test_tools_and_calls_travel_as_json() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    said = {"role": "assistant", "content": "", "tool_calls": [tool], "name": "eve"}
    answer = ChatMessage(role="tool", content="3", tool_call_id="c")
    request = requests.chat(
        "m", [said, answer], {}, tools=[tool], request_id="r", want_progress=False
    )
    assert [json.loads(each) for each in request.tools] == [tool]
    assert [json.loads(each) for each in request.messages[0].tool_calls] == [tool]
    assert (request.messages[0].name, request.messages[1].tool_call_id) == ("eve", "c")
    asked = requests.tokenize("m", [said], [tool])
    assert list(asked.prompt.conversation.tools) == list(request.tools)
    assert requests.tokenize("m", "x", ()).prompt.text == "x"
    with pytest.raises(InvalidRequestError, match="tools"):
        requests.tokenize("m", [said], [{"f": object()}])
