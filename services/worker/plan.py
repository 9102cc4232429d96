"""How long a sequence may become on an instance: pure.

A sequence ends at the instance's context limit at the latest. `max_tokens` above what the context
leaves is not an error, whether the caller set it or not: the sequence then ends with LENGTH at the
limit, as OpenAI-compatible servers do. A prompt that leaves no room for a single token is refused.

Memory for keys and values may be shorter than the context. A caller that leaves `max_tokens` open
gets what fits; one that asks for more than could ever fit is refused, when it is to be admitted.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.errors import InvalidArgumentError, Reason
from services.common.sampling import MAX_TOKENS_DEFAULT, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLimits:
    """What an instance's model and its order allow."""

    vocabulary: int
    context_tokens_max: int
    kv_bytes_per_token: int  # 0: unknown, so not limited
    kv_bytes: int  # for all sequences together
    block_tokens: int = 0  # sequences share `kv_bytes` in blocks of so many tokens; 0: they do not

    @property
    def kv_tokens(self) -> int:
        """Tokens that there is memory for."""
        if not self.kv_bytes_per_token:
            return self.context_tokens_max
        return self.kv_bytes // self.kv_bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one sequence may use."""

    max_tokens: int
    kv_bytes: int


def plan_sequence(
    prompt: tuple[int, ...],
    sampling: Sampling,
    limits: TokenLimits,
    delivered: tuple[int, ...] = (),
) -> Plan:
    """Return the plan for continuing `prompt`, whose answer may begin with `delivered`.

    Raises InvalidArgumentError, with limit and given value: an empty prompt, a token outside the
    vocabulary, a prompt that fills the context (PROMPT_TOO_LONG).
    """
    if not prompt:
        raise InvalidArgumentError("prompt must have at least 1 token. Given: 0")
    if (largest := max(prompt + delivered)) >= limits.vocabulary:
        raise InvalidArgumentError(
            f"each token id must be below {limits.vocabulary}. Given: {largest}"
        )
    left = limits.context_tokens_max - len(prompt)
    if left < 1:
        raise InvalidArgumentError(
            f"prompt must have at most {limits.context_tokens_max - 1} tokens, so that one more "
            f"fits into the context of {limits.context_tokens_max}. Given: {len(prompt)}",
            reason=Reason.PROMPT_TOO_LONG,
            metadata={
                "limit": str(limits.context_tokens_max - 1),
                "given": str(len(prompt)),
            },
        )
    wanted = sampling.max_tokens
    if wanted is None:
        wanted = max(1, min(MAX_TOKENS_DEFAULT, limits.kv_tokens - len(prompt)))
    max_tokens = min(wanted, left)
    tokens = len(prompt) + max_tokens
    if limits.block_tokens:  # in whole blocks
        tokens = -(-tokens // limits.block_tokens) * limits.block_tokens
    return Plan(max_tokens=max_tokens, kv_bytes=tokens * limits.kv_bytes_per_token)
