"""What integration tests share: one real cluster for the whole run, models, and a client.

The cluster costs some seconds to start (its workers import torch), so tests share it; a test
that kills or starves something runs a cluster of its own through `run_cluster`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brisk_client import AsyncClient
from brisk_client.local.sync import LocalCluster

from tests.models import make_model

DEVICES = ("cpu:0=64MiB", "cpu:1=64MiB")
DEADLINE_S = 60.0


@contextmanager
def run_cluster(
    folder: Path,
    *devices: str,
    drain_s: float = 10.0,
    **environment: str,
) -> Iterator[LocalCluster]:
    """Run a cluster of its own for a test; nothing of it may be left afterwards."""
    cluster = LocalCluster(
        folder,
        devices=devices or DEVICES,
        router_port=0,
        drain_s=drain_s,
        environment={"BRISK_STOREMGR_ARENA_BYTES": str(64 << 20)} | environment,
    )
    with cluster:
        yield cluster
    assert cluster.traces.leftovers() == []


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Run a cluster of two small CPU devices, for tests that leave it as they found it."""
    with run_cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
async def client(cluster: LocalCluster) -> AsyncIterator[AsyncClient]:
    """Return a client of the shared cluster."""
    async with AsyncClient(cluster.router_address, timeout_s=DEADLINE_S) as made:
        yield made


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a tiny model of some kind, made once."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def find(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_model(root / kind, kind)
        return made[kind]

    return find
