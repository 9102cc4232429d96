"""One request on a ready instance: from its prompt to its last chunk of tokens."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import secrets
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from services.common.clock import monotonic_s
from services.common.errors import InternalError, InvalidArgumentError, Reason
from services.common.model import TokenChunk, Usage
from services.common.prompt import Prompt, TokensPrompt
from services.common.sampling import Sampling
from services.worker import metrics
from services.worker.plan import Plan, TokenLimits, plan_sequence
from services.worker.ports import Job, TextCodec
from services.worker.sequences import Sequences
from services.worker.stream import TokenStream
from services.worker.text import Continuation, Decoded, Detokenizer

_SEED_BITS: Final = 64
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
    ) -> None:
        self.sequences = sequences
        self._instance_id = instance_id
        self._codec = codec
        self._limits = limits
        self._eos_token_ids = eos_token_ids
        self._executor = executor

    async def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: Sampling,
        *,
        refuse_if_gone: Callable[[], None],
    ) -> AsyncGenerator[Produced]:
        """Yield the continuation of `prompt`; the last chunk has finish reason and usage.

        `refuse_if_gone` is called once the prompt is tokenized, just before the sequence is
        opened. Closing the generator frees the sequence within one decode step.

        Raises InvalidArgumentError, ResourceExhaustedError (QUEUE_FULL, INSUFFICIENT_MEMORY),
        InternalError (ENGINE_FAILED) and UnavailableError (SHUTTING_DOWN).
        """
        arrived_at_s = monotonic_s()
        self.sequences.refuse_if_full()
        prompt_ids = await self._encode(prompt)
        plan = plan_sequence(prompt_ids, sampling, self._limits)
        refuse_if_gone()
        ticket = f"{request_id}:{next(_numbers)}"
        stream = self.sequences.open(
            ticket,
            plan.kv_bytes,
            lambda sink: self._job(
                sink,
                ticket=ticket,
                request_id=request_id,
                prompt_ids=prompt_ids,
                sampling=sampling,
                plan=plan,
            ),
        )
        outcome = "cancelled"
        try:
            shown = prompt_ids
            async for chunk in _chunks(stream, len(prompt_ids), arrived_at_s):
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

    def _job(
        self,
        sink: TokenStream,
        *,
        ticket: str,
        request_id: str,
        prompt_ids: tuple[int, ...],
        sampling: Sampling,
        plan: Plan,
    ) -> Job:
        if sampling.seed is None:
            sampling = sampling.with_seed(secrets.randbits(_SEED_BITS))
        codec = self._codec
        stops = frozenset(sampling.stop_token_ids)
        return Job(
            ticket=ticket,
            request_id=request_id,
            instance_id=self._instance_id,
            prompt=prompt_ids,
            tokens_max=len(prompt_ids) + plan.max_tokens,
            sampling=sampling,
            continuation=Continuation(
                detokenizer=Detokenizer(codec.decode, prompt_ids) if codec else None,
                max_tokens=plan.max_tokens,
                stop=sampling.stop,
                stop_token_ids=stops if sampling.ignore_eos else stops | self._eos_token_ids,
            ),
            sink=sink,
        )


async def _chunks(
    stream: TokenStream, prompt_tokens: int, arrived_at_s: float
) -> AsyncGenerator[TokenChunk]:
    """Yield the stream's tokens, all that have come at a time, until one has a finish reason."""
    index = 0
    before_s = arrived_at_s
    while True:
        tokens = await stream.take()
        if not tokens:
            raise InternalError("the sequence ended early", reason=Reason.ENGINE_FAILED)
        now_s = monotonic_s()
        _observe(len(tokens), is_first=index == 0, elapsed_s=now_s - before_s)
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
    )


def _observe(count: int, *, is_first: bool, elapsed_s: float) -> None:
    metrics.TOKENS.inc(count)
    if is_first:
        metrics.TIME_TO_FIRST_TOKEN.observe(elapsed_s)
        return
    for _ in range(count):
        metrics.INTER_TOKEN_LATENCY.observe(elapsed_s / count)
