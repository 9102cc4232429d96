"""What a sequence is asked and what it answers, on the wire and as our types: see `wire`.

`*_from_proto` parses: what comes out needs no further check. It raises InvalidArgumentError.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from brisk.common.v1 import model_pb2

from services.common.constraint import Constraint, ConstraintKind
from services.common.errors import InvalidArgumentError, Reason
from services.common.model import FinishReason, TokenChunk, TokenLogprob, TokenLogprobs, Usage
from services.common.prompt import ChatMessage, Conversation, Prompt, TextPrompt, TokensPrompt
from services.common.sampling import Sampling, TokenBias

_FINISHES: Final[dict[FinishReason | None, model_pb2.FinishReason.ValueType]] = {
    None: model_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: model_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: model_pb2.FINISH_REASON_LENGTH,
}
_FINISHES_BACK: Final = {number: finish for finish, number in _FINISHES.items()}


# --- Sampling ---


def sampling_from_proto(message: model_pb2.SamplingParams) -> Sampling:
    """Parse sampling parameters. Raises InvalidArgumentError (INVALID_SAMPLING)."""
    repetition = message.repetition_penalty if message.HasField("repetition_penalty") else 1.0
    return Sampling(
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        top_k=message.top_k,
        min_p=message.min_p,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=repetition,
        logit_bias=tuple(
            TokenBias(token_id=each.token_id, bias=each.bias) for each in message.logit_bias
        ),
        seed=message.seed if message.HasField("seed") else None,
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        min_tokens=message.min_tokens,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
        constraint=_constraint_from_proto(message.constraint)
        if message.HasField("constraint")
        else None,
    )


def sampling_to_proto(sampling: Sampling) -> model_pb2.SamplingParams:
    """Return the message that parses back to `sampling`."""
    return model_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=[
            model_pb2.TokenBias(token_id=each.token_id, bias=each.bias)
            for each in sampling.logit_bias
        ],
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
        top_logprobs=sampling.top_logprobs,
        constraint=_constraint_to_proto(sampling.constraint) if sampling.constraint else None,
    )


def _constraint_from_proto(message: model_pb2.Constraint) -> Constraint:
    form = message.WhichOneof("form")
    if form is None:
        raise InvalidArgumentError(
            "constraint must be set: json_schema, regex or grammar",
            reason=Reason.INVALID_CONSTRAINT,
            metadata={"parameter": "constraint"},
        )
    return Constraint(kind=ConstraintKind(form), text=getattr(message, form))


def _constraint_to_proto(constraint: Constraint) -> model_pb2.Constraint:
    match constraint.kind:
        case ConstraintKind.JSON_SCHEMA:
            return model_pb2.Constraint(json_schema=constraint.text)
        case ConstraintKind.REGEX:
            return model_pb2.Constraint(regex=constraint.text)
        case ConstraintKind.GRAMMAR:
            return model_pb2.Constraint(grammar=constraint.text)


# --- Prompts ---


def prompt_from_proto(message: model_pb2.Prompt) -> Prompt:
    """Parse a prompt. Raises InvalidArgumentError if no form is set or one is out of limits."""
    match message.WhichOneof("form"):
        case "text":
            return TextPrompt(text=message.text)
        case "tokens":
            return TokensPrompt(ids=tuple(message.tokens.ids))
        case "conversation":
            return conversation_from_proto(
                message.conversation.messages, message.conversation.tools
            )
        case _:
            raise InvalidArgumentError("prompt must be set: text, tokens or conversation")


def prompt_to_proto(prompt: Prompt) -> model_pb2.Prompt:
    """Return the message that parses back to `prompt`."""
    match prompt:
        case TextPrompt():
            return model_pb2.Prompt(text=prompt.text)
        case TokensPrompt():
            return model_pb2.Prompt(tokens=model_pb2.TokenIds(ids=prompt.ids))
        case Conversation():
            turns = [_turn_to_proto(turn) for turn in prompt.messages]
            conversation = model_pb2.Conversation(messages=turns, tools=prompt.tools)
            return model_pb2.Prompt(conversation=conversation)


def conversation_from_proto(
    messages: Iterable[model_pb2.ChatMessage], tools: Iterable[str] = ()
) -> Conversation:
    """Parse a list of turns and what the model may call. Raises InvalidArgumentError."""
    turns = tuple(
        ChatMessage(
            role=turn.role,
            content=turn.content,
            name=turn.name,
            tool_call_id=turn.tool_call_id,
            tool_calls=tuple(turn.tool_calls),
        )
        for turn in messages
    )
    return Conversation(messages=turns, tools=tuple(tools))


def _turn_to_proto(turn: ChatMessage) -> model_pb2.ChatMessage:
    return model_pb2.ChatMessage(
        role=turn.role,
        content=turn.content,
        name=turn.name,
        tool_call_id=turn.tool_call_id,
        tool_calls=turn.tool_calls,
    )


# --- Answers ---


def chunk_from_proto(message: model_pb2.TokenChunk) -> TokenChunk:
    """Parse a chunk of tokens."""
    usage = message.usage if message.HasField("usage") else None
    return TokenChunk(
        first_index=message.first_index,
        token_ids=tuple(message.token_ids),
        text=message.text,
        finish_reason=_FINISHES_BACK.get(message.finish_reason),
        usage=None
        if usage is None
        else Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens),
        logprobs=tuple(
            TokenLogprobs(
                chosen=_logprob_from_proto(each.chosen),
                top=tuple(_logprob_from_proto(one) for one in each.top),
            )
            for each in message.logprobs
        ),
    )


def chunk_to_proto(chunk: TokenChunk) -> model_pb2.TokenChunk:
    """Return the message that parses back to `chunk`."""
    usage = chunk.usage
    return model_pb2.TokenChunk(
        first_index=chunk.first_index,
        token_ids=chunk.token_ids,
        text=chunk.text,
        finish_reason=_FINISHES[chunk.finish_reason],
        usage=None
        if usage is None
        else model_pb2.Usage(
            prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens
        ),
        logprobs=[
            model_pb2.TokenLogprobs(
                chosen=_logprob_to_proto(each.chosen),
                top=[_logprob_to_proto(one) for one in each.top],
            )
            for each in chunk.logprobs
        ],
    )


def _logprob_from_proto(message: model_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token_id=message.token_id, logprob=message.logprob, piece=message.piece)


def _logprob_to_proto(one: TokenLogprob) -> model_pb2.TokenLogprob:
    return model_pb2.TokenLogprob(token_id=one.token_id, logprob=one.logprob, piece=one.piece)


def finish_from_proto(number: int) -> FinishReason | None:
    """Return why a sequence ended, or None while more follows."""
    return _FINISHES_BACK.get(model_pb2.FinishReason.ValueType(number))


def finish_name(number: int) -> str:
    """Return a finish reason's name on the wire, for logs and metrics."""
    return model_pb2.FinishReason.Name(model_pb2.FinishReason.ValueType(number))
