"""What a client orders: the bodies of `/v1/chat/completions`, `/v1/completions`, `/tokenize`.

Parsed into the same prompt and sampling that gRPC requests become. An argument of OpenAI's (or of
vLLM's) that the engine cannot serve is refused by name, unless its value changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from services.common.deadline import Deadline
from services.common.errors import InvalidArgumentError
from services.common.prompt import ChatMessage, Conversation, Prompt, TextPrompt, TokensPrompt
from services.common.sampling import MAX_TOKENS_MAX, Sampling
from services.router.http.errors import refuse
from services.router.http.fields import Fields, shown
from services.router.http.sampling_fields import (
    chat_logprobs,
    completion_logprobs,
    parse_sampling,
    token_ids,
)
from services.router.http.tools import parse_tool_calls, parse_tools
from services.router.job import Job, make_job

_COMPLETION_TOKENS_DEFAULT: Final = 16  # as OpenAI's; a chat's is the engine's own

# Who asks, and how it is booked: no answer depends on it.
_SKIPPED: Final = ("user", "metadata", "safety_identifier", "prompt_cache_key")
# The value that changes nothing; any other is refused.
_NEUTRAL_IN_CHAT: Final[Mapping[str, tuple[Any, ...]]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
_NEUTRAL_IN_COMPLETION: Final[Mapping[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
_NEUTRAL_IN_MESSAGE: Final[Mapping[str, tuple[Any, ...]]] = {
    "function_call": (),
    "refusal": (),
    "audio": (),
    "annotations": ([],),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request, parsed."""

    model: str
    prompt: Prompt
    sampling: Sampling
    choices: int  # answers to make
    is_streamed: bool
    wants_usage: bool  # as the last chunk of a stream

    def job(self, request_id: str, deadline: Deadline) -> Job:
        """Return the job. Raises InvalidArgumentError (INVALID_NAME)."""
        return make_job(
            request_id=request_id,
            model=self.model,
            prompt=self.prompt,
            sampling=self.sampling,
            deadline=deadline,
            want_progress=self.is_streamed,
            choices=self.choices,
            choices_name="n",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeOrder:
    """A request for tokens, parsed."""

    model: str
    prompt: Prompt
    wants_names: bool  # of the tokens

    def job(self, request_id: str, deadline: Deadline) -> Job:
        """Return the job. Raises InvalidArgumentError (INVALID_NAME)."""
        return make_job(
            request_id=request_id,
            model=self.model,
            prompt=self.prompt,
            sampling=Sampling(),
            deadline=deadline,
            want_progress=False,
        )


def parse_chat(body: Any) -> Order:
    """Parse the body of `/v1/chat/completions`. Raises InvalidArgumentError naming the argument."""
    fields = _members(body)
    max_tokens = _chat_limit(fields)
    prompt = _conversation(fields)
    sampling = parse_sampling(fields, max_tokens, chat_logprobs(fields))
    return _order(fields, prompt, sampling, _NEUTRAL_IN_CHAT)


def parse_completion(body: Any) -> Order:
    """Parse the body of `/v1/completions`. Raises InvalidArgumentError naming the argument."""
    fields = _members(body)
    max_tokens = fields.integer("max_tokens")
    if max_tokens is None:
        max_tokens = _COMPLETION_TOKENS_DEFAULT
    given = fields.take("prompt")
    if given is None:
        raise fields.missing("prompt")
    with _naming("prompt"):
        prompt = _prompt(fields, given)
    sampling = parse_sampling(fields, max_tokens, completion_logprobs(fields))
    return _order(fields, prompt, sampling, _NEUTRAL_IN_COMPLETION)


def parse_tokenize(body: Any) -> TokenizeOrder:
    """Parse the body of `/tokenize`, as vLLM's. Raises InvalidArgumentError naming the argument."""
    fields = _members(body)
    given = fields.take("prompt")
    if given is None:
        prompt: Prompt = _conversation(fields)
    else:
        with _naming("prompt"):
            prompt = _prompt(fields, given)
    model = _model(fields)
    wants_names = fields.flag("return_token_strs") or False
    for name in ("add_special_tokens", "add_generation_prompt"):
        fields.only(name, (True,))
    fields.end()
    return TokenizeOrder(model=model, prompt=prompt, wants_names=wants_names)


def _conversation(fields: Fields) -> Conversation:
    given = fields.list("messages")
    if given is None:
        raise fields.missing("messages")
    tools = parse_tools(fields)
    with _naming("messages"):
        turns = tuple(_message(each, index) for index, each in enumerate(given))
        return Conversation(messages=turns, tools=tools)


def _members(body: Any) -> Fields:
    if not isinstance(body, dict):
        raise InvalidArgumentError(f"the body must be a JSON object. Given: {shown(body)}")
    return Fields(body)


def _order(
    fields: Fields, prompt: Prompt, sampling: Sampling, neutral: Mapping[str, tuple[Any, ...]]
) -> Order:
    model = _model(fields)
    choices = fields.integer("n")
    is_streamed = fields.flag("stream") or False
    wants_usage = _wants_usage(fields, is_streamed=is_streamed)
    for name, values in neutral.items():
        fields.only(name, values)
    fields.skip(_SKIPPED)
    fields.end()
    return Order(
        model=model,
        prompt=prompt,
        sampling=sampling,
        choices=1 if choices is None else choices,
        is_streamed=is_streamed,
        wants_usage=wants_usage,
    )


def _model(fields: Fields) -> str:
    model = fields.text("model")
    if model is None:
        raise fields.missing("model")
    return model


def _wants_usage(fields: Fields, *, is_streamed: bool) -> bool:
    options = fields.object("stream_options")
    if options is None:
        return False
    if not is_streamed:
        raise refuse("stream_options", "stream_options is only for streams: set stream to true")
    wants_usage = options.flag("include_usage") or False
    options.skip(("include_obfuscation",))  # pads chunks against onlookers; adds no content
    options.end()
    return wants_usage


def _chat_limit(fields: Fields) -> int | None:
    """Return the limit under its present or its former name."""
    limit, former = fields.integer("max_completion_tokens"), fields.integer("max_tokens")
    if limit is None:
        return former
    if former is not None and former != limit:
        raise refuse("max_tokens", "max_tokens and max_completion_tokens differ; give one of them")
    if not 1 <= limit <= MAX_TOKENS_MAX:
        raise fields.wrong(
            "max_completion_tokens", f"must be at least 1 and at most {MAX_TOKENS_MAX}", limit
        )
    return limit


def _message(given: Any, index: int) -> ChatMessage:
    path = f"messages[{index}]"
    if not isinstance(given, dict):
        raise refuse(path, f"{path} must be an object. Given: {shown(given)}")
    fields = Fields(given, path + ".")
    role = fields.text("role")
    if role is None:
        raise fields.missing("role")
    calls = parse_tool_calls(fields)
    content = _content(fields, may_be_absent=bool(calls))
    name, call_id = fields.text("name"), fields.text("tool_call_id")
    for each, values in _NEUTRAL_IN_MESSAGE.items():
        fields.only(each, values)
    fields.end()
    with _within(path):
        return ChatMessage(
            role=role,
            content=content,
            name=name or "",
            tool_call_id=call_id or "",
            tool_calls=calls,
        )


def _content(fields: Fields, *, may_be_absent: bool) -> str:
    """Return a message's text: a string, or parts of type "text", one a line."""
    given = fields.take("content")
    if given is None and may_be_absent:
        return ""
    if given is None:
        raise fields.missing("content")
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise fields.wrong("content", "must be a string or a list of text parts", given)
    texts = []
    for part in given:
        is_text = isinstance(part, dict) and part.get("type") == "text"
        if not is_text or not isinstance(part.get("text"), str):
            raise fields.wrong("content", 'may have parts of type "text" only', given)
        texts.append(part["text"])
    return "\n".join(texts)


def _prompt(fields: Fields, given: Any) -> Prompt:
    """Return the one prompt: text or tokens, alone or as the only one of a list."""
    if isinstance(given, list) and given and not isinstance(given[0], int):
        if len(given) > 1:
            raise fields.wrong("prompt", "must be one prompt; send one request for each", given)
        given = given[0]
    if isinstance(given, str):
        return TextPrompt(text=given)
    if isinstance(given, list):
        return TokensPrompt(ids=token_ids(fields, "prompt", given))
    raise fields.wrong("prompt", "must be a string or a list of tokens", given)


@contextmanager
def _naming(parameter: str) -> Iterator[None]:
    """Have errors of the block say which argument they are about, if they do not yet."""
    try:
        yield
    except InvalidArgumentError as error:
        if "parameter" in error.metadata:
            raise
        metadata = {**error.metadata, "parameter": parameter}
        raise InvalidArgumentError(error.message, reason=error.reason, metadata=metadata) from error


@contextmanager
def _within(path: str) -> Iterator[None]:
    """Have errors of the block say which part of `path` they are about."""
    try:
        yield
    except InvalidArgumentError as error:
        part = error.metadata.get("parameter")
        metadata = {**error.metadata, "parameter": f"{path}.{part}" if part else path}
        raise InvalidArgumentError(error.message, reason=error.reason, metadata=metadata) from error
