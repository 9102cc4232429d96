"""What a client orders: the bodies of `/v1/chat/completions` and `/v1/completions`.

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
from services.router.job import Job, make_job

_COMPLETION_TOKENS_DEFAULT: Final = 16  # as OpenAI's; a chat's is the engine's own
_TOKEN_ID_MAX: Final = 2**32 - 1
_SEED_MODULUS: Final = 2**64

# Who asks, and how it is booked: no answer depends on it.
_SKIPPED: Final = ("user", "metadata", "safety_identifier", "prompt_cache_key")
# The value that changes nothing; any other is refused.
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
}
_NEUTRAL_IN_CHAT: Final[Mapping[str, tuple[Any, ...]]] = {
    **_NEUTRAL,
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),  # there are no tools to choose from
    "parallel_tool_calls": (True, False),
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
    **_NEUTRAL,
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
}
_NEUTRAL_IN_MESSAGE: Final[Mapping[str, tuple[Any, ...]]] = {
    "name": (),
    "tool_calls": ([],),
    "tool_call_id": (),
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
        )


def parse_chat(body: Any) -> Order:
    """Parse the body of `/v1/chat/completions`. Raises InvalidArgumentError naming the argument."""
    fields = _members(body)
    max_tokens = _chat_limit(fields)
    given = fields.list("messages")
    if given is None:
        raise fields.missing("messages")
    with _naming("messages"):
        prompt = Conversation(messages=tuple(_message(each, i) for i, each in enumerate(given)))
    return _order(fields, prompt, max_tokens, _NEUTRAL_IN_CHAT)


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
    return _order(fields, prompt, max_tokens, _NEUTRAL_IN_COMPLETION)


def _members(body: Any) -> Fields:
    if not isinstance(body, dict):
        raise InvalidArgumentError(f"the body must be a JSON object. Given: {shown(body)}")
    return Fields(body)


def _order(
    fields: Fields, prompt: Prompt, max_tokens: int | None, neutral: Mapping[str, tuple[Any, ...]]
) -> Order:
    model = fields.text("model")
    if model is None:
        raise fields.missing("model")
    sampling = _sampling(fields, max_tokens)
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
        is_streamed=is_streamed,
        wants_usage=wants_usage,
    )


def _sampling(fields: Fields, max_tokens: int | None) -> Sampling:
    temperature, top_p = fields.number("temperature"), fields.number("top_p")
    top_k = fields.integer("top_k")
    return Sampling(
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        top_k=0 if top_k in (None, -1) else top_k or 0,  # -1 is vLLM's word for all
        seed=_seed(fields),
        max_tokens=max_tokens,
        stop=_stop(fields),
        stop_token_ids=_token_ids(fields, "stop_token_ids", fields.list("stop_token_ids") or []),
        ignore_eos=fields.flag("ignore_eos") or False,
    )


def _seed(fields: Fields) -> int | None:
    """Return the seed; OpenAI's may be negative and is then taken for its two's complement."""
    seed = fields.integer("seed")
    return None if seed is None else seed % _SEED_MODULUS


def _stop(fields: Fields) -> tuple[str, ...]:
    given = fields.take("stop")
    if given is None:
        return ()
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise fields.wrong("stop", "must be a string or a list of strings", given)
    return tuple(texts)


def _token_ids(fields: Fields, name: str, given: list[Any]) -> tuple[int, ...]:
    if not all(type(token) is int and 0 <= token <= _TOKEN_ID_MAX for token in given):
        raise fields.wrong(name, f"must be a list of token ids of 0 to {_TOKEN_ID_MAX}", given)
    return tuple(given)


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
    content = _content(fields)
    for name, values in _NEUTRAL_IN_MESSAGE.items():
        fields.only(name, values)
    fields.end()
    with _naming(f"{path}.role"):
        return ChatMessage(role=role, content=content)


def _content(fields: Fields) -> str:
    """Return a message's text: a string, or parts of type "text", one a line."""
    given = fields.take("content")
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
        return TokensPrompt(ids=_token_ids(fields, "prompt", given))
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
