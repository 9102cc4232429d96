"""One request on a ready instance: from its prompt to its last chunk of tokens."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from services.common.clock import monotonic_s
from services.common.errors import InternalError, InvalidArgumentError, Reason
from services.common.model import TokenChunk, Tokenized, Usage
from services.common.prompt import Prompt, TokensPrompt
from services.common.sampling import Sampling
from services.worker import metrics
from services.worker.follower import Followers
from services.worker.plan import TokenLimits, plan_sequence
from services.worker.ports import Job, TextCodec
from services.worker.sequences import Sequences
from services.worker.stream import TokenStream
from services.worker.text import Decoded

_numbers: Final = itertools.count()  # makes tickets unique: request ids come from outside


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """The next tokens; the first one carries the prompt's."""

    chunk: TokenChunk
    prompt_tokens: tuple[int, ...] = ()


class Serving:
    """What it takes to serve on one instance."""

    def __init__(
        self,
        instance_id: str,
        *,
        sequences: Sequences,
        codec: TextCodec | None,
        limits: TokenLimits,
        eos_token_ids: frozenset[int],
        executor: Executor,
        grammar_executor: Executor,
    ) -> None:
        self.sequences = sequences
        self._instance_id = instance_id
        self._codec = codec
        self._limits = limits
        self._executor = executor
        self._followers = Followers(
            codec=codec,
            limits=limits,
            eos_token_ids=eos_token_ids,
            executor=executor,
            grammar_executor=grammar_executor,
        )

    async def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: Sampling,
        *,
        delivered: tuple[int, ...] = (),
        refuse_if_gone: Callable[[], None],
    ) -> AsyncGenerator[Produced]:
        """Yield the continuation of `prompt`; the last chunk has finish reason and usage.

        With `delivered`, the first tokens of the answer, it goes on behind those, with the
        index that follows: as if it had produced them.

        `refuse_if_gone` is called once the prompt is tokenized, just before the sequence is
        opened. Closing the generator frees the sequence within one decode step.

        Raises InvalidArgumentError, ResourceExhaustedError (QUEUE_FULL, INSUFFICIENT_MEMORY),
        InternalError (ENGINE_FAILED) and UnavailableError (SHUTTING_DOWN).
        """
        arrived_at_s = monotonic_s()
        self.sequences.refuse_if_full()
        prompt_ids = await self._encode(prompt)
        plan = plan_sequence(prompt_ids, sampling, self._limits, delivered)
        follower = await self._followers.make(prompt_ids, delivered, sampling, plan)
        refuse_if_gone()
        ticket = f"{request_id}:{next(_numbers)}"
        stream = self.sequences.open(
            ticket,
            plan.kv_bytes,
            lambda sink: Job(
                ticket=ticket,
                request_id=request_id,
                instance_id=self._instance_id,
                prompt=prompt_ids + delivered,
                tokens_max=len(prompt_ids) + plan.max_tokens,
                sampler=follower.sampler,
                continuation=follower.continuation,
                sink=sink,
            ),
        )
        outcome = "cancelled"
        try:
            shown = prompt_ids
            async for chunk in _chunks(stream, len(prompt_ids), len(delivered), arrived_at_s):
                if chunk.finish_reason is not None:
                    outcome = chunk.finish_reason.value
                yield Produced(chunk=chunk, prompt_tokens=shown)
                shown = ()
        except Exception:
            outcome = "failed"
            raise
        finally:
            metrics.SEQUENCES.labels(outcome).inc()
            self.sequences.close(ticket)

    async def tokenize(self, prompt: Prompt) -> Tokenized:
        """Return the prompt's tokens. Raises InvalidArgumentError."""
        token_ids = await self._encode(prompt)
        codec = self._codec
        pieces: tuple[bytes, ...] = ()
        if codec is not None:
            pieces = await asyncio.get_running_loop().run_in_executor(
                self._executor, lambda: tuple(map(codec.piece, token_ids))
            )
        return Tokenized(
            token_ids=token_ids,
            pieces=pieces,
            context_tokens_max=self._limits.context_tokens_max,
        )

    async def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, TokensPrompt):
            return prompt.ids
        codec = self._codec
        if codec is None:
            raise InvalidArgumentError(
                "the model has no tokenizer: send tokens", reason=Reason.INVALID_ARGUMENT
            )
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, context.run, codec.encode, prompt
        )


async def _chunks(
    stream: TokenStream, prompt_tokens: int, first_index: int, arrived_at_s: float
) -> AsyncGenerator[TokenChunk]:
    """Yield the stream's tokens, all that have come at a time, until one has a finish reason."""
    index = first_index
    before_s = arrived_at_s
    while True:
        tokens = await stream.take()
        if not tokens:
            raise InternalError("the sequence ended early", reason=Reason.ENGINE_FAILED)
        now_s = monotonic_s()
        _observe(len(tokens), is_first=index == first_index, elapsed_s=now_s - before_s)
        before_s = now_s
        yield _chunk(tokens, index, prompt_tokens)
        index += len(tokens)
        if tokens[-1].finish_reason is not None:
            return


def _chunk(tokens: tuple[Decoded, ...], first_index: int, prompt_tokens: int) -> TokenChunk:
    finish_reason = tokens[-1].finish_reason
    usage = None
    if finish_reason is not None:
        completion_tokens = first_index + len(tokens)
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    return TokenChunk(
        first_index=first_index,
        token_ids=tuple(token.token_id for token in tokens),
        text="".join(token.text for token in tokens),
        finish_reason=finish_reason,
        usage=usage,
        logprobs=tuple(token.logprobs for token in tokens if token.logprobs is not None),
    )


def _observe(count: int, *, is_first: bool, elapsed_s: float) -> None:
    metrics.TOKENS.inc(count)
    if is_first:
        metrics.TIME_TO_FIRST_TOKEN.observe(elapsed_s)
        return
    for _ in range(count):
        metrics.INTER_TOKEN_LATENCY.observe(elapsed_s / count)
