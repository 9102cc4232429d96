"""Attention for packed sequences: each attends to its own keys, wherever their blocks lie.

A model of transformers calls `attend` in each layer, by way of its attention interface. What the
rows of the present forward pass belong to is not among the arguments that every architecture hands
through, so it is found in a context variable: one `Pass`, set for the time of the forward.

Keys and values are stored token by token, [tokens, heads, size], so that blocks in a row are read
in place, as a view. Blocks that are scattered are gathered first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME: Final = "brisk"  # of this attention, among those of transformers

_pass: ContextVar[Pass | None] = ContextVar("brisk_pass", default=None)


class UnknownAttentionError(Exception):
    """A layer asks for attention of a kind that is not known here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How a layer attends."""

    window: int | None  # a token sees itself and the `window - 1` before it; None: all
    softcap: float | None
    has_sinks: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What a layer stores for a token, and how it attends."""

    heads: int
    key_size: int
    value_size: int
    element_bytes: int
    kind: Kind

    @property
    def bytes_per_token(self) -> int:
        """Return the bytes of a token's keys and values."""
        return self.heads * (self.key_size + self.value_size) * self.element_bytes


class KeyValues:
    """The keys and values of all layers, for so many tokens. Memory is touched when written."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self.shapes: dict[int, LayerShape] = {}

    def of(self, layer: int, key: Tensor, value: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, made like those given ([1, heads, rows, size])."""
        stored = self._stores.get(layer)
        if stored is None:
            heads = key.shape[1]
            stored = (
                key.new_empty((self._tokens, heads, key.shape[-1])),
                value.new_empty((self._tokens, heads, value.shape[-1])),
            )
            self._stores[layer] = stored
            self.shapes[layer] = LayerShape(
                heads=heads,
                key_size=key.shape[-1],
                value_size=value.shape[-1],
                element_bytes=key.element_size(),
                kind=kind,
            )
        return stored


@dataclass(slots=True, kw_only=True, eq=False)
class Span:
    """Rows of a pass that belong to one sequence: its tokens from `seen` on."""

    first_row: int
    rows: int
    seen: int
    runs: Sequence[tuple[int, int]]  # where its tokens are stored: (first place, places in a row)
    masks: dict[tuple[int | None, torch.dtype, torch.device], Tensor] = field(default_factory=dict)
    found: dict[int, tuple[slice, ...]] = field(default_factory=dict)  # by the first token

    def pieces(self, start: int) -> tuple[slice, ...]:
        """Return where the sequence's tokens from `start` on are stored, its rows included."""
        found = self.found.get(start)
        if found is None:
            found = self.found[start] = tuple(self._find(start, self.seen + self.rows))
        return found

    def _find(self, start: int, stop: int) -> Iterator[slice]:
        token = 0
        for place, count in self.runs:
            low, high = max(start, token), min(stop, token + count)
            if low < high:
                yield slice(place + low - token, place + high - token)
            token += count


@dataclass(slots=True, kw_only=True, eq=False)
class Pass:
    """What the rows of one forward pass belong to."""

    spans: Sequence[Span]
    places: Tensor  # where each row's keys go, for as many rows as the spans have
    stored: KeyValues
    by_row: bool  # each row by itself, so that its result depends on its own sequence alone

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have `attend` work on this pass for the block."""
        token = _pass.set(self)
        try:
            yield
        finally:
            _pass.reset(token)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    is_causal: bool | None = None,
    **_others: object,
) -> tuple[Tensor, None]:
    """Store the rows' keys and values, and return what each row takes from its own sequence.

    `query` is [1, heads, rows, size]; the answer is [1, rows, heads, size], zeros for rows that
    belong to no sequence. Raises UnknownAttentionError.
    """
    running = _pass.get()
    if running is None:
        raise RuntimeError("attention to packed sequences outside of a pass")
    sees_all = is_causal is False or getattr(module, "is_causal", True) is False
    if position_bias is not None or sees_all or query.shape[0] != 1:
        raise UnknownAttentionError("a layer attends in a way that is not known here")
    kind = Kind(window=sliding_window, softcap=softcap, has_sinks=s_aux is not None)
    keys, values = running.stored.of(_layer_of(module), key, value, kind)
    rows = running.places.shape[0]
    places = running.places.to(key.device)
    keys.index_copy_(0, places, key[0, :, :rows].transpose(0, 1))
    values.index_copy_(0, places, value[0, :, :rows].transpose(0, 1))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer = _Layer(keys, values, kind, scale, s_aux)
    answer = layer.each_row if running.by_row else layer.all_rows
    # [rows, heads of keys, heads that share them, size]
    by_row = query[0].transpose(0, 1)
    grouped = by_row.view(len(by_row), keys.shape[1], -1, by_row.shape[-1])
    answers = [
        answer(span, grouped[span.first_row : span.first_row + span.rows]) for span in running.spans
    ]
    if rows < query.shape[2]:
        blank = (query.shape[2] - rows, *grouped.shape[1:-1], values.shape[-1])
        answers.append(query.new_zeros(blank))
    return torch.cat(answers).flatten(1, 2).unsqueeze(0), None


AttentionInterface.register(NAME, attend)


@dataclass(slots=True)
class _Layer:
    """One layer's stored keys and values during a pass."""

    keys: Tensor
    values: Tensor
    kind: Kind
    scale: float
    sinks: Tensor | None

    def all_rows(self, span: Span, query: Tensor) -> Tensor:
        """Return what the rows of `query` take; shapes as in `attend`."""
        start = self._first_seen(span.seen)
        key, value = _read(self.keys, span, start), _read(self.values, span, start)
        if span.rows == 1:
            return self._row(query, key, value)
        mask, is_causal = self._mask(span, start, query)
        # Those that share keys are side by side in the first dimension; keys are not copied.
        groups = query.shape[2]
        sinks = None if self.sinks is None else self._shared_sinks(query).permute(2, 1, 0, 3)
        answer = self._attention(
            query.permute(2, 1, 0, 3),
            key.expand(groups, -1, -1, -1),
            value.expand(groups, -1, -1, -1),
            mask,
            is_causal=is_causal,
            sinks=sinks,
        )
        return answer.permute(2, 1, 0, 3)

    def each_row(self, span: Span, query: Tensor) -> Tensor:
        """Return the same, by one calculation of the same kind for each row."""
        # From the first key on and always copied: how they lie in memory is the same each time.
        key = _read(self.keys, span, 0, in_place=False)
        value = _read(self.values, span, 0, in_place=False)
        answers = []
        for row in range(span.rows):
            seen = slice(self._first_seen(span.seen + row), span.seen + row + 1)
            own = query[row : row + 1].contiguous()
            answers.append(self._row(own, key[:, :, seen], value[:, :, seen]))
        return torch.cat(answers)

    def _row(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return what one row takes that sees all of `key`."""
        sinks = None if self.sinks is None else self._shared_sinks(query)
        return self._attention(query, key, value, None, is_causal=False, sinks=sinks)

    def _shared_sinks(self, query: Tensor) -> Tensor:
        """Return the sinks as [1, heads of keys, heads that share them, 1]."""
        if self.sinks is None:
            raise RuntimeError("there are no sinks")
        return self.sinks.view(1, *query.shape[1:3], 1)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        is_causal: bool,
        sinks: Tensor | None,
    ) -> Tensor:
        if self.kind.softcap is None and sinks is None:
            return scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=self.scale, is_causal=is_causal
            )
        scores = torch.matmul(query, key.transpose(2, 3)) * self.scale
        if self.kind.softcap is not None:
            scores = torch.tanh(scores / self.kind.softcap) * self.kind.softcap
        if mask is not None:
            scores = scores + mask
        if sinks is not None:
            scores = torch.cat((scores, sinks.expand(*scores.shape[:-1], 1)), dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return torch.matmul(weights[..., : key.shape[2]], value)

    def _first_seen(self, token: int) -> int:
        """Return the first token that `token` sees."""
        return 0 if self.kind.window is None else max(0, token + 1 - self.kind.window)

    def _mask(self, span: Span, start: int, query: Tensor) -> tuple[Tensor | None, bool]:
        """Return what to add to the scores of several rows, or that they are simply causal."""
        stop = span.seen + span.rows
        is_plain = self.kind.softcap is None and self.sinks is None
        if span.seen == 0 and self._first_seen(stop - 1) == 0 and is_plain:
            return None, True
        name = (self.kind.window, query.dtype, query.device)
        mask = span.masks.get(name)
        if mask is None:
            rows = torch.arange(span.seen, stop, device=query.device)[:, None]
            columns = torch.arange(start, stop, device=query.device)[None]
            hidden = columns > rows
            if self.kind.window is not None:
                hidden |= columns <= rows - self.kind.window
            mask = query.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
            span.masks[name] = mask
        return mask, False


def _read(store: Tensor, span: Span, start: int, *, in_place: bool = True) -> Tensor:
    """Return a span's tokens from `start` on as [1, heads, tokens, size]."""
    pieces = span.pieces(start)
    if in_place and len(pieces) == 1:
        _, heads, size = store.shape
        shape = (1, heads, span.seen + span.rows - start, size)
        strides = (heads * size, size, heads * size, 1)
        return store.as_strided(shape, strides, pieces[0].start * heads * size)
    return torch.cat([store[piece] for piece in pieces]).transpose(0, 1).unsqueeze(0)


def _layer_of(module: torch.nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise UnknownAttentionError("a layer does not say which one it is")
    return layer
