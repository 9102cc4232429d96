"""Which sequence has which blocks of a key/value cache: shared, kept, free. Pure, no tensors.

A block holds the keys and values of some tokens in a row. Each is in exactly one state:

    free ──open, extend──▶ held by n sequences ──close──▶ kept, if its content is known, else free
                                  ▲                         │
                                  └──── found by open ──────┴── oldest first, when room is needed

A full block is known by the digest of its tokens and of all before them. A sequence that begins
with the same tokens holds the same block instead of computing it again. A sequence's blocks lie in
a row where possible: then its keys are read in place, without gathering them.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

_TAKEN: Final = 0  # held or kept
_FREE: Final = 1
_HOPED: Final = 2  # free, but a sequence beside it will want it soon

_ROW_MIN: Final = 8  # blocks worth having in a row
_DIGEST_BYTES: Final = 16


class BlockTable:
    """One sequence's blocks, in the order of its tokens. Changed by its pool only."""

    __slots__ = ("blocks", "digests", "found_tokens", "hoped", "noted", "runs")

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.runs: list[tuple[int, int]] = []  # the same, as (first block, blocks in a row)
        self.digests: list[bytes] = []  # of the full blocks, as far as known
        self.noted = 0  # blocks whose content is known, here or elsewhere
        self.found_tokens = 0  # their keys were there already when the table was opened
        self.hoped = range(0)


class BlockPool:
    """All blocks of one instance. Owned by its device's thread."""

    def __init__(self, blocks: int, block_tokens: int, *, shares_prefixes: bool) -> None:
        self.block_tokens = block_tokens
        self._shares_prefixes = shares_prefixes
        self._states = bytearray([_FREE]) * blocks
        self._free = blocks  # those hoped for among them
        self._holders = [0] * blocks
        self._known: dict[bytes, int] = {}
        self._digests: list[bytes | None] = [None] * blocks
        self._kept: OrderedDict[int, None] = OrderedDict()  # the oldest first
        self._open: set[BlockTable] = set()

    @property
    def blocks(self) -> int:
        """Return how many there are."""
        return len(self._states)

    @property
    def held(self) -> int:
        """Return how many sequences hold, each counted once."""
        return self.blocks - self._free - len(self._kept)

    @property
    def kept(self) -> int:
        """Return how many nobody holds, but whose content is still known."""
        return len(self._kept)

    def open(self, tokens: Sequence[int], tokens_max: int) -> BlockTable | None:
        """Return a table with room for `tokens`, or None while there is not enough.

        At least one token is left to be computed. `tokens_max` is what the sequence may grow to: a
        hint for where to put it. Others that are open keep a block each to grow into.
        """
        table = BlockTable()
        found = self._find(table, tokens)
        lacking = self._blocks_for(len(tokens)) - len(found)
        revived = sum(self._holders[block] == 0 for block in found)
        if lacking + len(self._open) > self._free + len(self._kept) - revived:
            return None
        for block in found:
            self._hold(table, block)
        table.noted = len(found)
        table.found_tokens = len(found) * self.block_tokens
        self._open.add(table)
        self._grow(table, lacking, self._blocks_for(tokens_max) - len(found))
        return table

    def extend(self, table: BlockTable, tokens: int) -> bool:
        """Give `table` room for `tokens` in all; without room return False, changing nothing."""
        lacking = self._blocks_for(tokens) - len(table.blocks)
        if lacking > self._free + len(self._kept):
            return False
        if lacking > 0:
            self._grow(table, lacking, max(lacking, _ROW_MIN))
        return True

    def filled(self, table: BlockTable, tokens: Sequence[int]) -> None:
        """Note that the keys of `tokens`, all from the first, are in the table's blocks now."""
        if not self._shares_prefixes:
            return
        full = len(tokens) // self.block_tokens
        self._digest(table, tokens, full)
        for block, digest in zip(
            table.blocks[table.noted : full], table.digests[table.noted : full], strict=True
        ):
            if digest not in self._known:
                self._known[digest] = block
                self._digests[block] = digest
        table.noted = max(table.noted, full)

    def close(self, table: BlockTable, *, forget: bool = False) -> None:
        """Give all its blocks back; `forget` their content, if it is not to be trusted."""
        self._open.discard(table)
        self._give_up_hope(table)
        for block in reversed(table.blocks):  # the end of a sequence is evicted before its start
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if forget or self._digests[block] is None:
                self._release(block)
            else:
                self._kept[block] = None
        table.blocks.clear()
        table.runs.clear()

    def audit_idle(self) -> None:
        """Raise RuntimeError if somebody holds a block. For when there is no sequence; cheap."""
        if self._open or self.held:
            raise RuntimeError(f"{self.held} blocks are held, by {len(self._open)} sequences")

    def audit(self) -> None:
        """Raise RuntimeError unless the books add up, block by block."""
        holders = [0] * self.blocks
        for table in self._open:
            for block in table.blocks:
                holders[block] += 1
            if [first + i for first, count in table.runs for i in range(count)] != table.blocks:
                raise RuntimeError("a table's runs are not its blocks")
        if holders != self._holders:
            raise RuntimeError("blocks are not held by those who should hold them")
        for block, state in enumerate(self._states):
            is_kept, digest = block in self._kept, self._digests[block]
            if (state == _TAKEN) != (holders[block] > 0 or is_kept):
                raise RuntimeError(f"block {block} is neither free nor in use")
            if is_kept and (holders[block] or digest is None):
                raise RuntimeError(f"block {block} is kept for nothing")
            if digest is not None and self._known.get(digest) != block:
                raise RuntimeError(f"block {block} cannot be found")
        if self._free != self.blocks - self._states.count(_TAKEN):
            raise RuntimeError("free blocks do not add up")
        if len(self._known) != sum(digest is not None for digest in self._digests):
            raise RuntimeError("a block is known that is not there")

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _find(self, table: BlockTable, tokens: Sequence[int]) -> list[int]:
        """Return the known blocks that `tokens` begin with, the last token left out."""
        if not self._shares_prefixes:
            return []
        self._digest(table, tokens, (len(tokens) - 1) // self.block_tokens)
        found: list[int] = []
        for digest in table.digests:
            block = self._known.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def _digest(self, table: BlockTable, tokens: Sequence[int], blocks: int) -> None:
        """Let the table know the digests of the first `blocks` blocks of `tokens`."""
        digests, size = table.digests, self.block_tokens
        for index in range(len(digests), blocks):
            content = array("q", tokens[index * size : (index + 1) * size]).tobytes()
            before = digests[-1] if digests else b""
            digests.append(blake2b(before + content, digest_size=_DIGEST_BYTES).digest())

    def _hold(self, table: BlockTable, block: int) -> None:
        self._holders[block] += 1
        self._kept.pop(block, None)
        first, count = table.runs[-1] if table.runs else (0, 0)
        if count and first + count == block:
            table.runs[-1] = (first, count + 1)
        else:
            table.runs.append((block, 1))
        table.blocks.append(block)

    def _grow(self, table: BlockTable, count: int, hoped: int) -> None:
        """Add `count` blocks, of which enough are free or kept; `hoped` would do for ever."""
        if self._free < count:
            self._evict(max(count - self._free, _ROW_MIN))  # often one sequence's: a row
        for done in range(count):
            block = table.blocks[-1] + 1 if table.blocks else self.blocks
            if block >= self.blocks or self._states[block] == _TAKEN:
                block = self._settle(table, max(hoped - done, count - done))
            self._states[block] = _TAKEN
            self._free -= 1
            self._hold(table, block)

    def _settle(self, table: BlockTable, hoped: int) -> int:
        """Return where a free row begins, of `hoped` blocks if possible, and lay claim to it."""
        size = hoped
        while size > 0:
            start = self._states.find(bytes([_FREE]) * size)
            if start >= 0:
                self._give_up_hope(table)
                table.hoped = range(start, start + size)
                self._states[start : start + size] = bytes([_HOPED]) * size
                return start
            size //= 2
        return self._states.rfind(_HOPED)  # from the end of what somebody hopes for

    def _give_up_hope(self, table: BlockTable) -> None:
        for block in table.hoped:
            if self._states[block] == _HOPED:
                self._states[block] = _FREE
        table.hoped = range(0)

    def _evict(self, count: int) -> None:
        """Free the `count` kept blocks that were used the longest ago, or all."""
        for _ in range(min(count, len(self._kept))):
            block, _ = self._kept.popitem(last=False)
            self._release(block)

    def _release(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._known[digest]
            self._digests[block] = None
        self._states[block] = _FREE
        self._free += 1
