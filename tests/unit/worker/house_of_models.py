"""Real decoders with sequences on them, step by step, without threads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.worker.ports import Decoder, Share, Strand
from services.worker.roster import Roster
from services.worker.sampler import Logits
from tests.unit.worker.doubles import ListSink, job

KV_BYTES = 1 << 22


class ModelHouse:
    """A roster over a real decoder. Nothing happens but by `step`."""

    def __init__(self, decoder: Decoder) -> None:
        self.roster = Roster(decoder)
        self.begun = 0

    def begin(self, prompt: Sequence[int], tokens: int) -> ListSink:
        self.begun += 1
        sink = ListSink()
        self.roster.begin(
            job(f"s{self.begun}", tuple(prompt), tokens=tokens, sink=sink), self.begun
        )
        return sink

    def step(self) -> bool:
        turns = self.roster.plan()
        for each in turns:
            self.roster.run(each)
        return bool(turns)

    def finish(self) -> None:
        while self.step():
            pass


def shown(decoder: Decoder, parts: Sequence[Sequence[int]]) -> Logits:
    """Show a decoder one sequence in parts, alone; return the logits behind the last."""
    tokens = sum(len(part) for part in parts)
    strand = decoder.open(parts[0], tokens)
    assert strand is not None
    logits: Logits | None = None
    for part in parts:
        logits = show(decoder, [(strand, part)])[0]
    strand.close()
    assert logits is not None
    return logits


def show(decoder: Decoder, shares: Sequence[tuple[Strand, Sequence[int]]]) -> list[Logits]:
    """Take one step; return the logits of all shares."""
    for strand, tokens in shares:
        assert decoder.extend(strand, strand.seen + len(tokens))
    answers = decoder.step(
        [Share(strand=strand, token_ids=tokens, wants_logits=True) for strand, tokens in shares]
    )
    return [np.array(answer) for answer in answers]
