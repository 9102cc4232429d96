"""What every suite may use: a real Redis, empty for each test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports numpy or torch

import pytest
from redis import Redis

import services.common  # noqa: F401 - switches gRPC's fork handlers off before gRPC is imported
from tests.fakes.redis_server import RedisServer, run_redis

# A run in the background ignores Ctrl-C, and what it starts would too: some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for the whole run. A test that breaks its Redis runs its own."""
    with run_redis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Return the URL of an empty Redis."""
    with Redis.from_url(redis_server.url) as redis:
        redis.flushall()
    return redis_server.url
