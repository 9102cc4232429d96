"""Every Redis key there is; `docs/redis-schema.md` says what each one holds.

Keys that one script touches share a hash tag in braces, so that a cluster keeps them together.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

PREFIX: Final = "brisk:v1:"

LEADER_LEASE: Final = "brisk:v1:{leader}:lease"
LEADER_EPOCH: Final = "brisk:v1:{leader}:epoch"
DEPLOYMENTS: Final = "brisk:v1:{leader}:deployments"
SERVICES_CHANNEL: Final = "brisk:v1:services"  # pub/sub: a wake-up hint, never a fact


class ServiceKind(StrEnum):
    """The four kinds of processes."""

    ROUTER = "router"
    SCHEDULER = "scheduler"
    WORKER = "worker"
    STOREMGR = "storemgr"


def service_key(kind: ServiceKind, service_id: str) -> str:
    """Return the key of one process's registration."""
    return f"{PREFIX}service:{kind.value}:{service_id}"


def service_pattern(kind: ServiceKind) -> str:
    """Return the pattern that all registrations of a kind match."""
    return f"{PREFIX}service:{kind.value}:*"
