"""Who uses which model. A lease keeps a model's files in place for as long as its stream is open.

Leases are promises of this process to its callers' open streams, so they live in memory: when
either side dies, the stream ends, and the lease with it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from services.common.errors import (
    FailedPreconditionError,
    Reason,
    ResourceExhaustedError,
)
from services.common.model import ModelRef

HOLDER_CHARS_MAX: Final = 128
_RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One promise."""

    lease_id: str
    ref: ModelRef  # with its revision
    holder: str  # for the log


class LeaseBook:
    """All leases held now. One owner: the event loop."""

    def __init__(self, *, leases_max: int) -> None:
        self._leases_max = leases_max
        self._leases: dict[str, Lease] = {}
        self._count: Counter[ModelRef] = Counter()

    def __len__(self) -> int:
        return len(self._leases)

    def grant(self, lease: Lease) -> None:
        """Enter `lease`. Raises ResourceExhaustedError (QUEUE_FULL) beyond the limit."""
        if lease.lease_id in self._leases:
            raise ValueError(f"lease {lease.lease_id} is held already")
        if len(self._leases) >= self._leases_max:
            raise ResourceExhaustedError(
                f"at most {self._leases_max} leases at a time, all held",
                reason=Reason.QUEUE_FULL,
                retry_after_s=_RETRY_S,
            )
        self._leases[lease.lease_id] = lease
        self._count[lease.ref] += 1

    def end(self, lease_id: str) -> Lease | None:
        """Strike the lease out and return it, or None if it is not held."""
        lease = self._leases.pop(lease_id, None)
        if lease is not None:
            self._count[lease.ref] -= 1
            if not self._count[lease.ref]:
                del self._count[lease.ref]
        return lease

    def count(self, ref: ModelRef) -> int:
        """Return how many leases the model has."""
        return self._count[ref]

    def check_free(self, ref: ModelRef) -> None:
        """Raise FailedPreconditionError (MODEL_LEASED) if anyone uses the model."""
        if held := self.count(ref):
            raise FailedPreconditionError(
                f'model "{ref.name}" at {ref.revision} is in use: {held} leases are held',
                reason=Reason.MODEL_LEASED,
                metadata={"leases": str(held)},
            )
