"""One sequence per forward pass: right for every architecture, and slower.

For models whose sequences cannot be packed: attention that transformers does not let us replace,
frequencies that change with the longest sequence of a batch. Their keys are in transformers' own
cache. A model that keeps something else than keys is shown its whole sequence at each step.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from services.worker.ports import Share, Strand
from services.worker.sampler import Logits


class SerialStrand:
    """A sequence's place: a cache of its own, or all its tokens where that is no use."""

    __slots__ = ("cache", "tokens")

    def __init__(self, cache: DynamicCache | None) -> None:
        self.cache = cache
        self.tokens: list[int] = []

    @property
    def seen(self) -> int:
        """Return how many of its tokens the model has seen."""
        return len(self.tokens)

    def close(self, *, is_sound: bool = True) -> None:  # noqa: ARG002 - nobody shares it
        """Free the cache."""
        self.cache = None


class SerialDecoder:
    """A Decoder that shows a model one sequence at a time. See `ports`."""

    shares_max = 1

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        by_token: bool = False,
        caches: bool = True,
        reason: str = "",
    ) -> None:
        """Show it token after token if `by_token`: however a prompt is cut, the bits are equal.

        Unless it `caches`, show it everything each time. `reason` is why the model's sequences are
        not packed.
        """
        self.reason = reason
        self.caches = caches
        self._model = model
        self._by_token = by_token
        # Most models can spare us the logits of all tokens but the last.
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if keeps else {}

    def open(self, tokens: Sequence[int], tokens_max: int) -> SerialStrand:  # noqa: ARG002
        """Return a place with an empty cache."""
        return SerialStrand(DynamicCache(config=self._model.config) if self.caches else None)

    def extend(self, strand: Strand, tokens: int) -> bool:  # noqa: ARG002 - it was set aside
        """Return that there is room."""
        return True

    def step(self, shares: Sequence[Share]) -> list[Logits | None]:
        """Let the model see the one share. A strand is of no use once this has raised."""
        (share,) = shares
        strand = share.strand
        if not isinstance(strand, SerialStrand):
            raise TypeError(f"{type(strand).__name__} is not of this decoder")
        strand.tokens.extend(share.token_ids)
        if strand.cache is None:
            return [self._forward(strand.tokens, None) if share.wants_logits else None]
        size = 1 if self._by_token else len(share.token_ids)
        logits: Logits | None = None
        for start in range(0, len(share.token_ids), size):
            logits = self._forward(share.token_ids[start : start + size], strand.cache)
        return [logits]

    def audit(self) -> None:
        """Return: each cache is its sequence's own."""

    def _forward(self, token_ids: Sequence[int], cache: DynamicCache | None) -> Logits:
        device = input_weight(self._model).device
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([list(token_ids)], device=device),
                past_key_values=cache,
                use_cache=cache is not None,
                return_dict=True,
                **self._options,
            )
            last: Logits = output.logits[0, -1].float().cpu().numpy()
        return last


def input_weight(model: PreTrainedModel) -> torch.Tensor:
    """Return the weight that tokens are looked up in: its rows are the vocabulary."""
    weight = model.get_input_embeddings().weight
    if not isinstance(weight, torch.Tensor):
        raise TypeError("the model's input is not an embedding of tokens")
    return weight
