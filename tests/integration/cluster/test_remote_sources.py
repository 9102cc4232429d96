"""`brisk deploy --from s3://…` on a running cluster: fetched, checked, deployed, and it answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from brisk_client import AsyncClient, ImportProgress, InvalidRequestError, NotFoundError
from brisk_client.local.sync import LocalCluster

from tests.fakes.s3_server import S3Server, s3_running
from tests.integration.cluster.programs import brisk, environment
from tests.integration.conftest import run_cluster


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_running() as server:
        yield server


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Iterator[LocalCluster]:
    """Run a cluster whose store manager knows the S3 server."""
    folder = tmp_path_factory.mktemp("far")
    with run_cluster(folder, "cpu:0=64MiB", drain_s=10.0, **s3.environment) as made:
        yield made


async def test_a_model_is_deployed_from_a_bucket_and_answers(
    far: LocalCluster, s3: S3Server, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    url = s3.upload(folder_of("sharded-llama"), "models", "far/llama")
    env = environment(tmp_path, BRISK_ENDPOINT=far.router_address)
    deployed = await brisk("deploy", "far", "--from", url, "--as-is", "--json", env=env)
    assert deployed.code == 0, deployed.err
    assert json.loads(deployed.out)["model"]["name"] == "llama"
    answer = await brisk("run", "far", "Hello", "-n", "4", "-t", "0", env=env)
    assert answer.code == 0, answer.err
    # The same tensors as from the folder itself.
    local = await brisk("deploy", "near", "--from", str(folder_of("sharded-llama")), env=env)
    assert local.code == 0, local.err
    assert (await brisk("run", "near", "Hello", "-n", "4", "-t", "0", env=env)).out == answer.out


async def test_progress_tells_where_the_bytes_come_from(
    far: LocalCluster, s3: S3Server, folder_of: Callable[[str], Path]
) -> None:
    url = s3.upload(folder_of("opt"), "models", "far/opt")
    seen: list[ImportProgress] = []
    async with AsyncClient(far.router_address) as client:
        model = await client.import_model(url, on_progress=seen.append)
    assert model.name == "opt"
    assert {progress.origin for progress in seen} == {"s3"}
    assert seen[-1].bytes_done == seen[-1].bytes_total


async def test_what_cannot_be_had_is_refused_with_a_reason(far: LocalCluster) -> None:
    async with AsyncClient(far.router_address) as client:
        with pytest.raises(NotFoundError) as missing:
            await client.deploy("x", source="s3://no-such-bucket/x")
        assert missing.value.reason == "SOURCE_NOT_FOUND"
        with pytest.raises(InvalidRequestError) as inside:
            await client.deploy("x", source="http://127.0.0.1:1/x")
        assert inside.value.reason == "SOURCE_NOT_ALLOWED"
        with pytest.raises(InvalidRequestError) as unsound:
            await client.deploy("x", source="ftp://host/x")
        assert unsound.value.reason == "INVALID_SOURCE"
        assert await client.list_models() is not None
