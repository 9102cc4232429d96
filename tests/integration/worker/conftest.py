"""One worker and one store manager for the tests that leave them as they were."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from brisk.worker.v1 import worker_service_pb2_grpc as pb2_grpc

from tests.fakes.redis_server import run_redis
from tests.integration.worker.house import Cluster, connect, run_cluster
from tests.models import make_model

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes a model of a kind (tests.models.KINDS), once per run."""

    @cache
    def make(kind: str) -> Path:
        return make_model(tmp_path_factory.mktemp("models") / kind, kind)

    return make


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a node that a module's tests share, with a Redis of its own."""
    with (
        run_redis() as redis,
        run_cluster(tmp_path_factory.mktemp("node"), redis.url) as cluster,
    ):
        yield cluster


@pytest.fixture
async def stub(cluster: Cluster) -> AsyncIterator[pb2_grpc.WorkerServiceAsyncStub]:
    """Return a client of the shared worker."""
    async with connect(cluster.worker.grpc) as stub:
        yield stub
