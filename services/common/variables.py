"""Which environment variables that begin with BRISK_ exist; a slip in a name is refused.

A variable that nothing reads is worse than a wrong one: the service runs, but not as it was told.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.common.errors import ConfigError
from services.common.keys import ServiceKind
from services.common.names import near_matches

PREFIX: Final = "BRISK_"
# What others of ours read; a service may be started where they are set.
NOT_OF_SERVICES: Final = frozenset(
    {
        "BRISK_CUDA_DRIVER",  # brisk_native: the driver's library
        "BRISK_DATA_DIR",  # `brisk up`: where it keeps everything
        "BRISK_ENDPOINT",  # SDK and CLI: the router
    }
)
_NATIVE: Final = "BRISK_NATIVE_"  # brisk_native and its build


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownVariables:
    """The variables that a service reads, and those that its neighbours read."""

    own_prefix: str  # "BRISK_ROUTER_"
    own_fields: frozenset[str]  # upper case, as are the next two
    shared_fields: frozenset[str]  # BRISK_<FIELD>
    common_fields: frozenset[str]  # BRISK_<SERVICE>_<FIELD>, whatever the service

    def refuse_unknown(self) -> None:
        """Raise ConfigError for the first variable set that nothing reads, with a near match.

        What another service's variables are called is its own business.
        """
        for name in sorted(os.environ):
            if name.upper().startswith(PREFIX) and not self._is_known(name):
                near = self._nearest(name)
                hint = f"; did you mean {near}?" if near else ""
                raise ConfigError(name, f"unknown setting{hint}")

    def _is_known(self, name: str) -> bool:
        if name.startswith(self.own_prefix):
            return name.removeprefix(self.own_prefix) in self.own_fields
        if name in NOT_OF_SERVICES or name.removeprefix(PREFIX) in self.shared_fields:
            return name.startswith(PREFIX)
        return name.startswith((_NATIVE, *_service_prefixes()))

    def _nearest(self, name: str) -> str | None:
        """Compare without what all names have in common: else any two would look alike."""
        if name.upper().startswith(self.own_prefix):
            return _nearest(name, self.own_prefix, self.own_fields)
        candidates = set(self.shared_fields)
        candidates |= {each.removeprefix(PREFIX) for each in NOT_OF_SERVICES}
        own = self.own_prefix.removeprefix(PREFIX)
        candidates |= {own + field for field in self.own_fields}
        for prefix in _service_prefixes():
            candidates |= {prefix.removeprefix(PREFIX) + field for field in self.common_fields}
        return _nearest(name, PREFIX, candidates)


def _nearest(name: str, prefix: str, candidates: Iterable[str]) -> str | None:
    near = near_matches(name[len(prefix) :], candidates, at_most=1)
    return prefix + near[0] if near else None


def _service_prefixes() -> tuple[str, ...]:
    return tuple(f"{PREFIX}{kind.upper()}_" for kind in ServiceKind)
