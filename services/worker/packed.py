"""Many sequences in one forward pass: their tokens are packed into one row of tokens.

Prompts and continuations go side by side; what keeps them apart is the attention (`attention`) and
that each token brings its own position. Keys and values live in blocks (`blocks`).

An exact decoder makes a sequence's logits depend on its own tokens alone, bit for bit. Matrix
products give a row the same bits whatever the other rows are, as long as their number is the same;
so every pass has the same number of rows, filled up with rows that belong to nobody.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from services.common.errors import Reason, ResourceExhaustedError
from services.worker import metrics
from services.worker.attention import KeyValues, LayerShape, Pass, Span
from services.worker.blocks import BlockPool, BlockTable
from services.worker.ports import Share, Strand
from services.worker.sampler import Logits
from services.worker.serial import input_weight

BLOCK_TOKENS: Final = 16
SHARES_MAX: Final = 1 << 16  # no limit of ours: one pass takes what there is


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """What has to be known of a model to pack its sequences."""

    layers: tuple[LayerShape, ...]
    rows: int | None = None  # of every pass of an exact decoder; None: as many as there are

    @property
    def kv_bytes_per_token(self) -> int:
        """Return the bytes of a token's keys and values in all layers."""
        return sum(layer.bytes_per_token for layer in self.layers)


class PackedStrand:
    """A sequence's place: its blocks, and the tokens whose keys are in them."""

    __slots__ = ("_pool", "table", "tokens")

    def __init__(self, pool: BlockPool, table: BlockTable, tokens: list[int]) -> None:
        self._pool = pool
        self.table = table
        self.tokens = tokens

    @property
    def seen(self) -> int:
        """Return how many of its tokens the model has seen."""
        return len(self.tokens)

    def close(self, *, is_sound: bool = True) -> None:
        """Give the blocks back."""
        self._pool.close(self.table, forget=not is_sound)


class PackedDecoder:
    """A Decoder that shows a model the tokens of all sequences at once. See `ports`."""

    shares_max = SHARES_MAX

    def __init__(
        self, model: PreTrainedModel, packing: Packing, *, kv_bytes: int, shares_prefixes: bool
    ) -> None:
        """Use `kv_bytes` for keys and values. `model` attends by `attention`.

        Raises ResourceExhaustedError (INSUFFICIENT_MEMORY) if that is not enough for one token.
        """
        tokens = kv_bytes // packing.kv_bytes_per_token
        if tokens < 1:
            raise ResourceExhaustedError(
                f"a token's keys and values take {packing.kv_bytes_per_token} bytes, "
                f"the order leaves {kv_bytes} for them",
                reason=Reason.INSUFFICIENT_MEMORY,
                metadata={
                    "needed_bytes": str(packing.kv_bytes_per_token),
                    "available_bytes": str(kv_bytes),
                },
            )
        self.block_tokens = min(BLOCK_TOKENS, tokens)
        blocks = tokens // self.block_tokens
        self.exact_rows = packing.rows
        self.kv_bytes_per_token = packing.kv_bytes_per_token
        self.kv_bytes = blocks * self.block_tokens * packing.kv_bytes_per_token
        self.pool = BlockPool(blocks, self.block_tokens, shares_prefixes=shares_prefixes)
        self._model = PackedModel(model, self.pool, rows=packing.rows)

    def open(self, tokens: Sequence[int], tokens_max: int) -> PackedStrand | None:
        """Return a place for `tokens`, with what is known of their beginning, or None."""
        table = self.pool.open(tokens, tokens_max)
        if table is None:
            return None
        metrics.PREFIX_QUERIES.inc(len(tokens))
        metrics.PREFIX_HITS.inc(table.found_tokens)
        return PackedStrand(self.pool, table, list(tokens[: table.found_tokens]))

    def extend(self, strand: Strand, tokens: int) -> bool:
        """Make room for `tokens` in all; return False if there is none."""
        return self.pool.extend(_packed(strand).table, tokens)

    def step(self, shares: Sequence[Share]) -> list[Logits | None]:
        """Let the model see all shares; nothing has changed if it raises."""
        logits = self._model.see(shares)
        for share in shares:
            strand = _packed(share.strand)
            strand.tokens.extend(share.token_ids)
            self.pool.filled(strand.table, strand.tokens)
        return logits

    def audit(self) -> None:
        """Raise RuntimeError if a block is held although there is no sequence."""
        self.pool.audit_idle()


class PackedModel:
    """A model, and the keys and values that the blocks of a pool stand for."""

    def __init__(self, model: PreTrainedModel, pool: BlockPool, *, rows: int | None) -> None:
        """Give each pass `rows` rows; None: as many as there are tokens."""
        self.stored = KeyValues(pool.blocks * pool.block_tokens)
        self._model = model
        self._block_tokens = pool.block_tokens
        self._rows = rows
        # Most models can spare us the logits of all rows but some.
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def see(self, shares: Sequence[Share]) -> list[Logits | None]:
        """Store the keys and values of all shares and return the logits that they want."""
        answers: list[Logits | None] = [None] * len(shares)
        rows = _rows(shares)
        while one := list(islice(rows, self._rows)):
            wanted = [row for row, each in enumerate(one) if each.share is not None]
            for row, logits in zip(wanted, self._forward(one, wanted), strict=False):
                share = one[row].share
                if share is not None:
                    answers[share] = logits
        return answers

    def _forward(self, rows: Sequence[_Row], wanted: Sequence[int]) -> Logits:
        """Return the logits of the `wanted` rows, and then perhaps of others."""
        device = input_weight(self._model).device
        blank = [0] * ((self._rows or len(rows)) - len(rows))
        kept = [*wanted, *[0] * ((self._rows or max(len(wanted), 1)) - len(wanted))]
        keep = torch.tensor(kept, device=device)
        tokens = torch.tensor([[row.token for row in rows] + blank], device=device)
        positions = torch.tensor([[row.position for row in rows] + blank], device=device)
        running = Pass(
            spans=self._spans(rows),
            places=torch.tensor([self._place(row) for row in rows], device=device),
            stored=self.stored,
            by_row=self._rows is not None,
        )
        options: dict[str, Any] = {"logits_to_keep": keep} if self._keeps else {}
        with torch.inference_mode(), running.running():
            logits: Tensor = self._model(
                input_ids=tokens,
                position_ids=positions,
                use_cache=False,
                return_dict=True,
                **options,
            ).logits[0]
            found: Logits = (logits if self._keeps else logits[keep]).float().cpu().numpy()
        return found

    def _place(self, row: _Row) -> int:
        block, offset = divmod(row.position, self._block_tokens)
        return row.table.blocks[block] * self._block_tokens + offset

    def _spans(self, rows: Sequence[_Row]) -> list[Span]:
        spans: list[Span] = []
        before: BlockTable | None = None
        for number, row in enumerate(rows):
            if row.table is before:
                spans[-1].rows += 1
                continue
            before = row.table
            size = self._block_tokens
            runs = [(first * size, count * size) for first, count in row.table.runs]
            spans.append(Span(first_row=number, rows=1, seen=row.position, runs=runs))
        return spans


@dataclass(slots=True)
class _Row:
    """One token of one sequence."""

    token: int
    position: int
    table: BlockTable
    share: int | None  # the one whose logits are this row's


def _rows(shares: Sequence[Share]) -> Iterator[_Row]:
    for number, share in enumerate(shares):
        strand = _packed(share.strand)
        last = len(share.token_ids) - 1
        for index, token in enumerate(share.token_ids):
            wanted = number if share.wants_logits and index == last else None
            yield _Row(token, strand.seen + index, strand.table, wanted)


def _packed(strand: Strand) -> PackedStrand:
    if not isinstance(strand, PackedStrand):
        raise TypeError(f"{type(strand).__name__} is not of this decoder")
    return strand
