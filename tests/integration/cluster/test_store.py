"""`brisk store`: an operator sees what nodes have in memory and on disk, and decides what stays."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import brisk_native
import pytest
from brisk_client import AsyncClient, SamplingOptions, Tier
from brisk_client.cli.app import execute
from brisk_client.local.sync import LocalCluster

from tests.integration.cluster.conftest import Deploy, residents, until

MODEL = "llama"  # its name in the store is its folder's, whatever it is deployed as
SHORT = SamplingOptions(max_tokens=4, temperature=0.0, ignore_eos=True)
pytestmark = pytest.mark.skipif(
    brisk_native.IMPLEMENTATION != "native", reason="the arena needs the compiled loader"
)


class Operator:
    """Runs `brisk store` against the cluster."""

    def __init__(self, cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
        self._endpoint = cluster.router_address
        self._capsys = capsys

    async def run(self, *arguments: str, code: int = 0) -> str:
        """Return what a command prints; of one that fails, what it complains."""
        command = ["store", *arguments, "--endpoint", self._endpoint]
        ended = await asyncio.to_thread(execute, command)
        said = self._capsys.readouterr()
        assert ended == code, said.err
        return said.out if code == 0 else said.err

    async def model(self, name: str) -> dict[str, object]:
        """Return what `ls` says of one model."""
        listed = json.loads(await self.run("ls", "--json"))
        (found,) = (each for each in listed if each["name"] == name)
        return dict(found)


@pytest.fixture
def operator(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(cluster, capsys)


async def test_a_model_is_brought_kept_and_removed_by_hand(
    operator: Operator, deploy: Deploy
) -> None:
    await deploy(MODEL)
    assert (await operator.model(MODEL))["dram_bytes"] == 0
    assert await operator.run("prefetch", MODEL) == f"{MODEL} is in memory on local\n"
    assert await operator.run("pin", MODEL, "--node", "local") == f"{MODEL} is pinned on local\n"
    found = await operator.model(MODEL)
    assert found["pinned"]
    assert not found["in_use"]
    assert 0 < int(str(found["dram_bytes"])) <= int(str(found["file_bytes"]))
    assert "pinned" in await operator.run("ls")
    await operator.run("unpin", MODEL)
    done = json.loads(await operator.run("evict", MODEL, "--json"))
    assert done == {"model": MODEL, "nodes": ["local"]}
    found = await operator.model(MODEL)
    assert (found["pinned"], found["dram_bytes"]) == (False, 0)


async def test_what_serves_is_in_use_and_its_next_start_comes_from_memory(
    operator: Operator, deploy: Deploy, client: AsyncClient
) -> None:
    name = await deploy(MODEL, keep_alive_s=0.0)
    first = (await client.generate(name, "Hello", **SHORT).result()).start
    assert first is not None
    assert first.source is Tier.SSD

    async def is_gone() -> bool:
        return await residents(client, name) == 0

    await until(is_gone, "the idle instance leaves")
    second = (await client.generate(name, "Hello", **SHORT).result()).start
    assert second is not None
    assert (second.cold, second.source) == (True, Tier.DRAM)
    kept = await deploy(MODEL, keep_alive_s=60.0)
    await client.generate(kept, "Hello", **SHORT).result()
    assert (await operator.model(MODEL))["in_use"]
    refused = await operator.run("evict", MODEL, code=1)
    assert "in use in memory" in refused


async def test_df_tells_sizes_and_what_the_disk_gives(operator: Operator, deploy: Deploy) -> None:
    await deploy(MODEL)
    await operator.run("prefetch", MODEL)
    (node,) = json.loads(await operator.run("df", "--json"))
    assert node["node_id"] == "local"
    assert node["arena_bytes"] == 64 << 20
    assert 0 <= node["arena_free_bytes"] < node["arena_bytes"]
    assert node["disk_free_bytes"] > 0
    assert node["bytes_per_second"] > 0
    text = await operator.run("df")
    assert "64.0 MiB" in text
    assert "local" in text


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def put_aside(aside: Path) -> None:
    (aside / "broken--0a1b").mkdir()
    (aside / "broken--0a1b" / "weights").write_bytes(bytes(100_000))


async def test_stored_models_are_verified_and_damaged_ones_deleted_on_demand(
    operator: Operator, deploy: Deploy, cluster: LocalCluster
) -> None:
    await deploy(MODEL)
    assert await operator.run("verify", MODEL) == f"{MODEL} is sound on local\n"
    aside = cluster.spec.folder.node("local", only=True) / "store" / "quarantine"
    put_aside(aside)
    (swept,) = json.loads(await operator.run("gc", "--json"))
    assert swept["models"] == 1
    assert swept["freed_bytes"] >= 100_000
    assert is_empty(aside)


async def test_unknown_models_and_nodes_are_told(operator: Operator) -> None:
    assert "is not in the store" in await operator.run("evict", "no-such-model", code=3)
    assert "there is no node 'moon'; known: local" in await operator.run(
        "ls", "--node", "moon", code=3
    )
