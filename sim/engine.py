"""Decoding on one device: batches that slow one another down, without an event for each token.

Every instance has a count of tokens that each of its sequences has decoded since it began; it runs
at a speed that depends on the batch and on how many instances share the device. A sequence is done
when the count reaches what it was when the sequence joined, plus its length. So only joining and
leaving are events. A prefill takes its own time and does not slow the batch down; engines cut
prefills in pieces for that.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from sim.agenda import Agenda
from sim.request import Request
from sim.shapes import Pace


@dataclass(slots=True, eq=False)
class Decoder:
    """The sequences of one instance."""

    pace: Pace
    prefilling: dict[str, Request] = field(default_factory=dict)
    decoding: dict[str, float] = field(default_factory=dict)  # by request: the count when it joined
    ends: list[tuple[float, int, Request]] = field(default_factory=list)
    count: float = 0.0  # tokens decoded by each sequence since the beginning
    counted_s: float = 0.0
    speed: float = 0.0
    version: int = 0  # of the next end that was put on the agenda

    @property
    def sequences(self) -> int:
        """Return how many sequences it has."""
        return len(self.prefilling) + len(self.decoding)


class Engine:
    """One device's decoders."""

    __slots__ = ("_agenda", "_ended", "_first", "_joined", "_serving", "decoders")

    def __init__(
        self,
        agenda: Agenda,
        first: Callable[[Request], None],
        ended: Callable[[str, Request], None],
    ) -> None:
        self._agenda = agenda
        self._first = first  # called at a first token
        self._ended = ended  # called with the instance at a last token
        self._joined = 0
        self._serving = 0  # decoders with sequences: they share the device
        self.decoders: dict[str, Decoder] = {}

    def add(self, instance_id: str, pace: Pace) -> None:
        """Let an instance take sequences."""
        self.decoders[instance_id] = Decoder(pace=pace, counted_s=self._agenda.now_s)

    def remove(self, instance_id: str) -> list[Request]:
        """Take an instance out; return the sequences that it had."""
        decoder = self.decoders[instance_id]
        self._settle(decoder)
        had = list(decoder.prefilling.values())
        for _, _, request in sorted(decoder.ends, key=lambda each: each[1]):
            if request.key in decoder.decoding:
                self._note(decoder, request)
                had.append(request)
        if decoder.sequences:
            self._share(-1)
        decoder.version += 1
        del self.decoders[instance_id]
        return had

    def begin(self, instance_id: str, request: Request) -> None:
        """Prefill a sequence with what its client has, then decode what is left."""
        decoder = self.decoders[instance_id]
        if not decoder.sequences:
            self._share(1)
        decoder.prefilling[request.key] = request
        tokens = request.arrival.prompt_tokens + request.done
        took_s = decoder.pace.prefill_s(tokens) * max(1, self._serving)
        self._agenda.later(took_s, self._prefilled, instance_id, decoder, request)

    def join(self, instance_id: str, request: Request) -> None:
        """Decode a sequence whose prefill was done meanwhile, as after a migration."""
        decoder = self.decoders[instance_id]
        if not decoder.sequences:
            self._share(1)
        self._decode(instance_id, decoder, request)

    def leave(self, instance_id: str, request: Request) -> None:
        """Stop a sequence; it keeps what it has decoded."""
        decoder = self.decoders[instance_id]
        if request.key in decoder.prefilling:
            del decoder.prefilling[request.key]
        else:
            self._settle(decoder)
            self._note(decoder, request)
            del decoder.decoding[request.key]
        self._left(instance_id, decoder)

    def tokens(self, instance_id: str, request: Request) -> int:
        """Return how many tokens a sequence has by now, prompt and all."""
        decoder = self.decoders[instance_id]
        joined = decoder.decoding.get(request.key)
        decoded = 0
        if joined is not None:
            ran_s = self._agenda.now_s - decoder.counted_s
            decoded = int(decoder.count + decoder.speed * ran_s - joined)
        return request.arrival.prompt_tokens + request.done + decoded

    def _prefilled(self, instance_id: str, decoder: Decoder, request: Request) -> None:
        if self.decoders.get(instance_id) is not decoder or (
            decoder.prefilling.get(request.key) is not request
        ):
            return  # it went elsewhere meanwhile
        del decoder.prefilling[request.key]
        request.done += 1
        request.left -= 1
        self._first(request)
        if request.left <= 0:
            self._left(instance_id, decoder)
            self._ended(instance_id, request)
        else:
            self._decode(instance_id, decoder, request)

    def _decode(self, instance_id: str, decoder: Decoder, request: Request) -> None:
        self._settle(decoder)
        decoder.decoding[request.key] = decoder.count
        self._joined += 1
        heapq.heappush(decoder.ends, (decoder.count + request.left, self._joined, request))
        self._schedule(instance_id, decoder)

    def _left(self, instance_id: str, decoder: Decoder) -> None:
        if decoder.sequences:
            self._settle(decoder)
            self._schedule(instance_id, decoder)
        else:
            decoder.version += 1
            decoder.speed = 0.0
            decoder.ends.clear()
            self._share(-1)

    def _share(self, change: int) -> None:
        """One instance more or less computes: all others change their speed."""
        self._serving += change
        for instance_id, decoder in self.decoders.items():
            if decoder.decoding:
                self._settle(decoder)
                self._schedule(instance_id, decoder)

    def _settle(self, decoder: Decoder) -> None:
        now_s = self._agenda.now_s
        decoder.count += decoder.speed * (now_s - decoder.counted_s)
        decoder.counted_s = now_s

    def _note(self, decoder: Decoder, request: Request) -> None:
        """Write down what a sequence has decoded; one token is always left to be decoded."""
        decoded = int(decoder.count - decoder.decoding[request.key])
        decoded = max(0, min(decoded, request.left - 1))
        request.done += decoded
        request.left -= decoded

    def _schedule(self, instance_id: str, decoder: Decoder) -> None:
        decoder.version += 1
        batch = len(decoder.decoding)
        if not batch:
            decoder.speed = 0.0
            return
        decoder.speed = 1.0 / (decoder.pace.decode_s(batch) * max(1, self._serving))
        ends = decoder.ends
        while ends[0][2].key not in decoder.decoding:
            heapq.heappop(ends)
        left_s = max(0.0, ends[0][0] - decoder.count) / decoder.speed
        self._agenda.later(left_s, self._end, instance_id, decoder, decoder.version)

    def _end(self, instance_id: str, decoder: Decoder, version: int) -> None:
        if decoder.version != version:
            return
        request = heapq.heappop(decoder.ends)[2]
        self._settle(decoder)
        del decoder.decoding[request.key]
        request.done += request.left
        request.left = 0
        self._left(instance_id, decoder)
        self._ended(instance_id, request)
