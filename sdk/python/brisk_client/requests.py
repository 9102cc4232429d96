"""From Python arguments to protobuf requests, refusing what cannot be expressed.

Limits that depend on the model are the server's business. What protobuf itself cannot carry (a
negative token id, half a surrogate pair) is refused here with the same error the server uses.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, TypedDict

from brisk.common.v1 import model_pb2
from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk.inference.v1 import inference_service_pb2 as inference_pb2
from google.protobuf.duration_pb2 import Duration

from brisk_client.errors import InvalidRequestError
from brisk_client.results import ChatMessage

FOREVER_S = math.inf
_NANOS_PER_S = 1_000_000_000
_KEEP_ALIVE_S_MAX = 10 * 365 * 86_400.0
_UINT32_MAX = 2**32 - 1
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WIRE_MAX = {
    "top_k": _UINT32_MAX,
    "seed": 2**64 - 1,
    "min_tokens": _UINT32_MAX,
    "top_logprobs": _UINT32_MAX,
}
Tool: TypeAlias = Mapping[str, object]
Message: TypeAlias = ChatMessage | Mapping[str, object]
_MESSAGE_KEYS = ChatMessage.__dataclass_fields__.keys()
_CONSTRAINTS = ("json_schema", "regex", "grammar")
_INVALID_SAMPLING, _INVALID_SPEC = "INVALID_SAMPLING", "INVALID_SPEC"


class SamplingOptions(TypedDict, total=False):
    """How to choose tokens and when to stop; what is left out takes the server's default."""

    temperature: float  # 0..10; 0 takes the most likely token; default 1
    top_p: float  # (0, 1]; default 1
    top_k: int  # 0 or left out: all
    min_p: float  # [0, 1), as a share of the most likely token's probability; default 0
    presence_penalty: float  # -2..2, for tokens that the answer has; default 0
    frequency_penalty: float  # -2..2, for each time that it has them; default 0
    repetition_penalty: float  # (0, 10], a factor for tokens of prompt and answer; default 1
    logit_bias: Mapping[int, float]  # -100..100 for up to 1,024 token ids
    seed: int  # left out: the router draws one
    max_tokens: int  # at least 1; default 256
    min_tokens: int  # before these, nothing but max_tokens ends the answer; default 0
    stop: str | Sequence[str]  # texts that end the answer and are not part of it
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    top_logprobs: int  # 0..20 likely tokens to tell with each one; left out: no logprobs
    json_schema: str | Mapping[str, object]  # the answer is JSON that is valid against it
    regex: str  # the answer is a full match
    grammar: str  # the answer is a sentence of this grammar, in Lark's EBNF or GBNF
    choices: int  # 1..16 answers side by side, each with a seed of its own; default 1


class ScaleOptions(TypedDict, total=False):
    """How many instances a deployment has; what is left out takes the server's default."""

    learned_keep_alive: bool  # learn from its idle times how long an instance stays
    min_replicas: int  # always there; default 0
    max_replicas: int  # at most; default 1, or min_replicas
    target_concurrency: int  # sequences for which one instance is meant; default its slots
    max_queue: int  # requests that may wait for an instance to start; default no limit of its own
    priority: int  # -10..10: a step counts like having come a turn, 30 s, earlier


@contextmanager
def _refusing(what: str, reason: str | None = None) -> Iterator[None]:
    """Turn protobuf's complaints about a value into our error."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidRequestError(f"{what}: {exc}", reason=reason) from exc


def _check_limits(what: str, value: object, most: int, *, least: int, reason: str) -> None:
    """Refuse a whole number that the wire cannot carry; a lower limit of the server is `least`."""
    if not isinstance(value, int) or 0 <= value <= most:
        return
    limit = f"at least {least}" if value < 0 else f"at most {most}"
    raise InvalidRequestError(f"{what} must be {limit}. Given: {value}", reason=reason)


def sampling(options: SamplingOptions) -> model_pb2.SamplingParams:
    """Return the sampling message. Raises InvalidRequestError, or TypeError for unknown names."""
    if unknown := sorted(options.keys() - SamplingOptions.__annotations__.keys()):
        known = ", ".join(SamplingOptions.__annotations__)
        hint = "did you mean timeout_s? " if unknown[0] == "timeout" else ""
        raise TypeError(f"unknown option {unknown[0]!r}; {hint}sampling options: {known}")
    params = model_pb2.SamplingParams()
    for name, value in options.items():
        if value is None or name == "choices":
            continue
        with _refusing(name, _INVALID_SAMPLING):
            if name in _WIRE_MAX:
                _check_limits(name, value, _WIRE_MAX[name], least=0, reason=_INVALID_SAMPLING)
            if name == "stop":
                params.stop.extend([value] if isinstance(value, str) else value)  # type: ignore[arg-type]
            elif name == "stop_token_ids":
                params.stop_token_ids.extend(_token_ids(name, value))  # type: ignore[arg-type]
            elif name == "logit_bias":
                biases = dict(value)  # type: ignore[call-overload]
                for token_id in _token_ids(name, biases):
                    params.logit_bias.add(token_id=token_id, bias=biases[token_id])
            elif name in _CONSTRAINTS:
                if params.HasField("constraint"):
                    raise ValueError("give one of " + ", ".join(_CONSTRAINTS))
                text = value if isinstance(value, str) else json.dumps(value)
                setattr(params.constraint, name, text)
            else:
                setattr(params, name, value)
    return params


def _token_ids(name: str, given: Iterable[int]) -> list[int]:
    """Return the ids as a list, each one checked to fit the wire."""
    token_ids = list(given)
    for token_id in token_ids:
        _check_limits(f"each of {name}", token_id, _UINT32_MAX, least=0, reason=_INVALID_SAMPLING)
    return token_ids


def _choices(options: SamplingOptions) -> int:
    """Return how many answers to ask for. 0 would be taken for unset, so it is refused here."""
    choices = options.get("choices")
    if choices is None:
        return 1
    if choices == 0:
        raise InvalidRequestError("choices must be at least 1. Given: 0", reason=_INVALID_SAMPLING)
    _check_limits("choices", choices, _UINT32_MAX, least=1, reason=_INVALID_SAMPLING)
    return choices


def prompt(value: str | Sequence[int]) -> model_pb2.Prompt:
    """Return the prompt message for a text or for token ids."""
    with _refusing("prompt"):
        if isinstance(value, str):
            return model_pb2.Prompt(text=value)
        return model_pb2.Prompt(tokens=model_pb2.TokenIds(ids=list(value)))


def generate(
    model: str,
    prompt_value: str | Sequence[int],
    options: SamplingOptions,
    *,
    request_id: str,
    want_progress: bool,
) -> inference_pb2.GenerateRequest:
    """Return the request for a continuation."""
    asked, chosen = prompt(prompt_value), sampling(options)
    choices = _choices(options)
    with _refusing("model"):
        return inference_pb2.GenerateRequest(
            request_id=request_id,
            model=model,
            prompt=asked,
            sampling=chosen,
            want_progress=want_progress,
            choices=choices,
        )


def chat(
    model: str,
    messages: Sequence[Message],
    options: SamplingOptions,
    *,
    tools: Sequence[Tool] = (),
    request_id: str,
    want_progress: bool,
) -> inference_pb2.ChatRequest:
    """Return the request for the next turn of a conversation."""
    turns = [_chat_message(message) for message in messages]
    shown = _objects("tools", tools)
    chosen = sampling(options)
    choices = _choices(options)
    with _refusing("model"):
        return inference_pb2.ChatRequest(
            request_id=request_id,
            model=model,
            messages=turns,
            tools=shown,
            sampling=chosen,
            want_progress=want_progress,
            choices=choices,
        )


def tokenize(
    model: str, prompt_value: str | Sequence[Message], tools: Sequence[Tool]
) -> inference_pb2.TokenizeRequest:
    """Return the request for the tokens of a text or a conversation."""
    if isinstance(prompt_value, str):
        asked = prompt(prompt_value)
    else:
        turns = [_chat_message(message) for message in prompt_value]
        conversation = model_pb2.Conversation(messages=turns, tools=_objects("tools", tools))
        asked = model_pb2.Prompt(conversation=conversation)
    with _refusing("model"):
        return inference_pb2.TokenizeRequest(model=model, prompt=asked)


def _chat_message(message: Message) -> model_pb2.ChatMessage:
    if not isinstance(message, ChatMessage):
        parts = dict(message)
        if not {"role", "content"} <= parts.keys() <= _MESSAGE_KEYS:
            given = ", ".join(sorted(map(str, parts)))
            raise InvalidRequestError(
                "messages: a message has a role and a content, and may have a name, a "
                f"tool_call_id and tool_calls; given: {given}"
            )
        with _refusing("messages"):
            message = ChatMessage(**parts)  # type: ignore[arg-type]  # protobuf checks it below
    with _refusing("messages"):
        return model_pb2.ChatMessage(
            role=message.role,
            content=message.content,
            name=message.name,
            tool_call_id=message.tool_call_id,
            tool_calls=_objects("tool_calls", message.tool_calls),
        )


def _objects(what: str, given: Iterable[Tool]) -> list[str]:
    """Return each of some JSON objects as text."""
    with _refusing(what):
        return [json.dumps(each) for each in given]


def is_url(source: str) -> bool:
    """Return whether `source` is a URL rather than a folder's path."""
    return _URL.match(source) is not None


def source_path(source: str | os.PathLike[str]) -> str:
    """Return a URL as it is, and of a folder the absolute path, links and all.

    The store manager resolves it.
    """
    text = os.fspath(source)
    if isinstance(source, str) and is_url(source) and "\0" not in text:
        return text
    if not text or "\0" in text:
        raise InvalidRequestError("source: a folder's path is neither empty nor holds NUL")
    return str(Path(text).expanduser().absolute())


def import_model(
    source: str | os.PathLike[str], name: str | None, *, as_is: bool
) -> control_pb2.ImportRequest:
    """Return the request to import a folder or URL."""
    with _refusing("import"):
        return control_pb2.ImportRequest(
            source_path=source_path(source), name=name or "", as_is=as_is
        )


def deploy(
    *,
    name: str | None,
    source: str | os.PathLike[str] | None,
    model: str | None,
    revision: str | None,
    keep_alive_s: float | None,
    slots: int | None,
    context_tokens_max: int | None,
    as_is: bool = False,
    scale: ScaleOptions | None = None,
) -> control_pb2.DeployRequest:
    """Return the request to deploy a folder or an imported model, exactly one of them."""
    if (source is None) == (model is None):
        raise InvalidRequestError("deploy: give either `source`, a folder, or `model`, its name")
    with _refusing("deploy"):
        request = control_pb2.DeployRequest(name=name or "", as_is=as_is)
        if source is not None:
            request.source_path = source_path(source)
        elif model is not None:
            request.model.CopyFrom(model_pb2.ModelRef(name=model, revision=revision or ""))
        _set_optional(request.spec, "slots", slots)
        _set_optional(request.spec, "context_tokens_max", context_tokens_max)
        _set_scale(request.spec, {} if scale is None else scale)
        if keep_alive_s is not None:
            request.spec.keep_alive.CopyFrom(_keep_alive(keep_alive_s))
        return request


def _set_scale(spec: control_pb2.DeploymentSpec, scale: ScaleOptions) -> None:
    if unknown := sorted(scale.keys() - ScaleOptions.__annotations__.keys()):
        known = ", ".join(ScaleOptions.__annotations__)
        raise TypeError(f"unknown option {unknown[0]!r}; scale options: {known}")
    for name, value in scale.items():
        if name == "learned_keep_alive":
            spec.learned_keep_alive = bool(value)
        elif name == "priority":
            with _refusing(name, _INVALID_SPEC):
                spec.priority = value  # type: ignore[assignment]  # protobuf checks it
        else:
            _set_optional(spec, name, value, least=0)  # type: ignore[arg-type]  # a number or None


def _set_optional(
    spec: control_pb2.DeploymentSpec, field: str, value: int | None, *, least: int = 1
) -> None:
    if value is not None:
        _check_limits(field, value, _UINT32_MAX, least=least, reason=_INVALID_SPEC)
        with _refusing(field, _INVALID_SPEC):
            setattr(spec, field, value)


def _keep_alive(seconds: float) -> Duration:
    """Return the wire form: negative means never unload."""
    if seconds == FOREVER_S:
        return Duration(seconds=-1)
    if not 0 <= seconds <= _KEEP_ALIVE_S_MAX:  # NaN fails both
        raise InvalidRequestError(
            f"keep_alive_s must be within 0..{_KEEP_ALIVE_S_MAX:.0f} or math.inf; given: {seconds}",
            reason=_INVALID_SPEC,
        )
    whole, nanos = divmod(round(seconds * _NANOS_PER_S), _NANOS_PER_S)
    return Duration(seconds=whole, nanos=nanos)


def timeout_s(value: float) -> float:
    """Return a call's time limit in seconds. Every call has one, so infinity is refused."""
    if not 0 < value < math.inf:
        raise InvalidRequestError(f"timeout_s must be finite and above 0; given: {value}")
    return value
