"""What follows one sequence while it is decoded: its sampler and its continuation, made together.

Both are rebuilt from tokens alone, so that an answer begun elsewhere goes on here as it would have
gone on there.
"""

from __future__ import annotations

import asyncio
import contextvars
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, TypeVar

from services.common.constraint import Constraint
from services.common.errors import Reason, ResourceExhaustedError
from services.common.sampling import Sampling
from services.worker.adjustments import Adjustment
from services.worker.plan import Plan, TokenLimits
from services.worker.ports import TextCodec
from services.worker.sampler import Sampler
from services.worker.text import Continuation, Detokenizer

Result = TypeVar("Result")

COMPILE_S_MAX: Final = 10.0
_SEED_BITS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Follower:
    """Belongs to the device's thread once the sequence begins."""

    sampler: Sampler
    continuation: Continuation


class Followers:
    """Makes the followers of one instance's sequences."""

    def __init__(
        self,
        *,
        codec: TextCodec | None,
        limits: TokenLimits,
        eos_token_ids: frozenset[int],
        executor: Executor,
        grammar_executor: Executor,
    ) -> None:
        """Constraints are compiled by `grammar_executor`, so that tokenizing never waits for it."""
        self._codec = codec
        self._limits = limits
        self._eos_token_ids = eos_token_ids
        self._executor = executor
        self._grammar_executor = grammar_executor

    async def make(
        self,
        prompt_ids: tuple[int, ...],
        delivered: tuple[int, ...],
        sampling: Sampling,
        plan: Plan,
    ) -> Follower:
        """Return the follower of a sequence whose answer begins with the tokens `delivered`.

        Raises InvalidArgumentError if the answer ended with them, if a bias is for no token of
        the model's, or if the constraint cannot be used (INVALID_CONSTRAINT).
        """
        guide = await self._guide(sampling.constraint) if sampling.constraint else None

        def call() -> Follower:
            return self._make(prompt_ids, delivered, sampling, plan, guide)

        # Tokens delivered are all decoded once more, which takes its time.
        return await self._aside(self._executor, call) if delivered else call()

    async def _guide(self, constraint: Constraint) -> Adjustment:
        """Compile a constraint, or find it compiled, within a time limit."""
        codec = self._codec
        if codec is None or not self._eos_token_ids:
            raise constraint.refused(
                "the model has no tokenizer or no end-of-sequence token: it cannot be constrained"
            )
        has_begun = False

        def compiled() -> Adjustment:
            nonlocal has_begun
            has_begun = True
            return codec.constrain(
                constraint,
                vocabulary=self._limits.vocabulary,
                eos_token_ids=self._eos_token_ids,
            )

        try:
            async with asyncio.timeout(COMPILE_S_MAX):
                return await self._aside(self._grammar_executor, compiled)
        except TimeoutError as error:
            if not has_begun:
                raise _others_compile() from error
            raise constraint.refused(
                f"{constraint.kind} took longer than {COMPILE_S_MAX:g} s to compile"
            ) from error

    def _make(
        self,
        prompt_ids: tuple[int, ...],
        delivered: tuple[int, ...],
        sampling: Sampling,
        plan: Plan,
        guide: Adjustment | None,
    ) -> Follower:
        if sampling.seed is None:
            sampling = sampling.with_seed(secrets.randbits(_SEED_BITS))
        codec = self._codec
        stops = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stops |= self._eos_token_ids
        continuation = Continuation(
            detokenizer=Detokenizer(codec.decode, prompt_ids) if codec else None,
            max_tokens=plan.max_tokens,
            min_tokens=sampling.min_tokens,
            stop=sampling.stop,
            stop_token_ids=stops,
            spell=codec.piece if codec else None,
            delivered=delivered,
        )
        sampler = Sampler.of(
            sampling,
            prompt_ids,
            delivered=delivered,
            stop_token_ids=stops,
            vocabulary=self._limits.vocabulary,
            guide=guide,
        )
        return Follower(sampler=sampler, continuation=continuation)

    async def _aside(self, executor: Executor, call: Callable[[], Result]) -> Result:
        """Call on a thread, in this task's log context."""
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, context.run, call)


def _others_compile() -> ResourceExhaustedError:
    return ResourceExhaustedError(
        "too many constraints are being compiled at the moment",
        reason=Reason.QUEUE_FULL,
        retry_after_s=COMPILE_S_MAX,
    )
