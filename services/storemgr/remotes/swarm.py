"""Several who have the same file, read at once, fastest first; any of them may be lost.

Each read goes to the one that would be done with it first: by what it has brought so far, and how
much it is asked for already. What it brings is held against the known checksums here, so that a
fault is laid at the right door. One that fails too often in a row is not asked again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from services.common.clock import monotonic_s
from services.common.errors import BriskError
from services.common.log import get_logger
from services.storemgr.remotes.assembly import Assembly, first_damaged
from services.storemgr.remotes.fetch import Supply
from services.storemgr.remotes.refusals import PassingError

log = get_logger(__name__)

_FAULTS_MAX: Final = 2  # in a row
_WEIGHT: Final = 0.3  # of the latest read in the moving estimate


class Member:
    """One who has the file, and how it has done. Guarded by the swarm's lock."""

    def __init__(self, name: str, supply: Supply, rank: int) -> None:
        self.name = name  # for the log
        self.supply = supply
        self.rank = rank  # who is asked first while nothing is known
        self.seconds_per_byte: float | None = None
        self.waiting_bytes = 0
        self.faults = 0
        self.brought_bytes = 0
        self.last_error: BriskError | None = None

    @property
    def is_lost(self) -> bool:
        """Return whether it is not to be asked again."""
        return self.last_error is not None or self.faults >= _FAULTS_MAX

    def faultiness(self) -> tuple[bool, int]:
        """Return what is less the better it has done."""
        return self.last_error is not None, self.faults

    def done_after(self, size: int, guess: float) -> float:
        """Return when it would be done with `size` more bytes; `guess` stands in for its speed."""
        return (self.waiting_bytes + size) * (self.seconds_per_byte or guess)

    def learn(self, size: int, elapsed_s: float) -> None:
        """Take in how long a read took."""
        latest = elapsed_s / max(1, size)
        known = self.seconds_per_byte
        self.seconds_per_byte = latest if known is None else known + _WEIGHT * (latest - known)
        self.brought_bytes += size
        self.faults = 0


class Swarm:
    """Implements fetch.Supply with all of its members."""

    def __init__(self, members: Sequence[Member]) -> None:
        if not members:
            raise ValueError("a swarm needs a member")
        self.members = tuple(members)
        self._lock = threading.Lock()

    def fill(self, assembly: Assembly, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; see fetch.Supply. One member that fails is replaced by another at once."""
        tried: set[Member] = set()
        while True:
            member = self._choose(tried, len(buffer))
            tried.add(member)
            begun_s = monotonic_s()
            try:
                member.supply.fill(assembly, offset, buffer)
                if first_damaged(assembly, offset, buffer) is not None:
                    raise PassingError("a chunk arrived damaged")  # noqa: TRY301 - it is one
            except (PassingError, BriskError) as error:
                self._failed(member, error, len(buffer))
                if not self._others(tried):
                    raise
            except BaseException:
                self._settle(member, len(buffer))
                raise
            else:
                with self._lock:
                    member.learn(len(buffer), monotonic_s() - begun_s)
                self._settle(member, len(buffer))
                return

    def _choose(self, tried: set[Member], size: int) -> Member:
        with self._lock:
            able = [each for each in self.members if not each.is_lost and each not in tried]
            if not able:  # all have failed: the one with the fewest faults is asked once more
                able = [
                    min(self.members, key=lambda each: (each.last_error is not None, each.faults))
                ]
            known = [each.seconds_per_byte for each in able if each.seconds_per_byte is not None]
            guess = min(known, default=1.0)  # a newcomer is taken for as fast as the best
            chosen = min(able, key=lambda each: (each.done_after(size, guess), each.rank))
            chosen.waiting_bytes += size
            return chosen

    def _others(self, tried: set[Member]) -> bool:
        with self._lock:
            return any(not each.is_lost and each not in tried for each in self.members)

    def _failed(self, member: Member, error: PassingError | BriskError, size: int) -> None:
        self._settle(member, size)
        with self._lock:
            was_lost = member.is_lost
            member.faults += 1
            if isinstance(error, BriskError):
                member.last_error = error
            lost = member.is_lost and not was_lost
        if lost:
            log.warning("source lost", source=member.name, problem=str(error))

    def _settle(self, member: Member, size: int) -> None:
        with self._lock:
            member.waiting_bytes -= size
