"""The node's memory: one copy for all workers, used in place, through crashes of either side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import brisk_native
import grpc
import pytest
from brisk.common.v1 import model_pb2
from brisk.storage.v1 import storage_service_pb2 as storage_pb2
from brisk.storage.v1 import storage_service_pb2_grpc as storage_grpc
from brisk.worker.v1 import worker_service_pb2 as pb2

from tests.fakes.redis_server import run_redis
from tests.integration.worker.house import (
    NODE,
    Cluster,
    Process,
    connect,
    launch,
    load_request,
    run_cluster,
    text_of,
)
from tests.models import DEMO_MODEL

pytestmark = pytest.mark.skipif(
    brisk_native.IMPLEMENTATION != "native", reason="the arena needs the compiled loader"
)
ARENA_BYTES = 64 << 20
GREEDY = model_pb2.SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPT = model_pb2.Prompt(text="You may copy and distribute the")


@dataclass(slots=True)
class Node:
    """A node with an arena and two workers; the store manager can be started again."""

    cluster: Cluster
    second: Process
    folder: Path
    redis_url: str
    stack: ExitStack

    async def stored(self) -> tuple[storage_pb2.StoredModel, storage_pb2.ArenaState]:
        """Return what the store manager says of the one model, and of its memory."""
        async with grpc.aio.insecure_channel(self.cluster.storemgr.grpc) as channel:
            stub = storage_grpc.StorageServiceStub(channel)
            response = await stub.Describe(storage_pb2.DescribeRequest(), timeout=30)
        (model,) = response.models
        return model, response.arena

    async def evict(self) -> None:
        """Have nothing in memory."""
        async with grpc.aio.insecure_channel(self.cluster.storemgr.grpc) as channel:
            model = model_pb2.ModelRef(name="demo")
            request = storage_pb2.EvictRequest(model=model)
            await storage_grpc.StorageServiceStub(channel).Evict(request, timeout=30)

    def start_second(self) -> None:
        """Start the second worker."""
        settings = {"redis_url": self.redis_url, "node_id": NODE, "devices": "cpu:0=64MiB"}
        self.second = launch("worker", self.folder / "second", settings)
        self.stack.callback(self.second.end)
        self.second.wait_ready()

    def restart_storemgr(self) -> None:
        """Start a store manager on the folder of one that is gone."""
        settings = {
            "redis_url": self.redis_url,
            "node_id": NODE,
            "data_dir": str(self.folder / "data"),
            "arena_bytes": str(ARENA_BYTES),
        }
        fresh = launch("storemgr", self.folder, settings)
        self.stack.callback(fresh.end)
        fresh.wait_ready()
        self.cluster.storemgr = fresh


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("arena")
    with ExitStack() as stack:
        redis = stack.enter_context(run_redis())
        cluster = stack.enter_context(run_cluster(folder, redis.url, arena_bytes=str(ARENA_BYTES)))
        node = Node(cluster, cluster.worker, folder, redis.url, stack)
        node.start_second()
        yield node


@pytest.fixture
async def demo(node: Node) -> AsyncIterator[model_pb2.ModelInfo]:
    """Return the demo model; whatever the test loaded is gone afterwards."""
    yield await node.cluster.import_model(DEMO_MODEL, "demo")
    for process in (node.cluster.worker, node.second):
        async with connect(process.grpc) as stub:
            await stub.Unload(pb2.UnloadRequest(instance_id="i", leader_epoch=1), timeout=30)
    await node.evict()


async def start(process: Process, info: model_pb2.ModelInfo) -> pb2.Loaded:
    """Load the demo to the end of the stream: who leaves before has it undone."""
    request = load_request(info, "i", context_tokens_max=512)
    async with connect(process.grpc) as stub:
        responses = [response async for response in stub.Load(request, timeout=60)]
    return responses[-1].loaded


async def text(process: Process) -> str:
    request = pb2.GenerateRequest(request_id="r", instance_id="i", prompt=PROMPT, sampling=GREEDY)
    async with connect(process.grpc) as stub:
        return await text_of(stub, request)


async def test_two_workers_share_one_copy_that_is_read_once(
    node: Node, demo: model_pb2.ModelInfo
) -> None:
    first = await start(node.cluster.worker, demo)
    assert (first.start.source, first.bytes_read > 0) == (model_pb2.TIER_SSD, True)
    model, arena = await node.stored()
    assert model.dram_bytes >= demo.weight_bytes
    assert model.in_use
    assert model.leases == 0
    used = arena.size_bytes - arena.free_bytes
    second = await start(node.second, demo)
    assert (second.start.source, second.bytes_read) == (model_pb2.TIER_DRAM, 0)
    _, arena = await node.stored()
    assert arena.size_bytes - arena.free_bytes == arena.in_use_bytes == used
    assert await text(node.cluster.worker) == await text(node.second) != ""
    for process in (node.cluster.worker, node.second):
        read = [each for each in process.events() if each.get("message") == "read"][-1]
        assert read["bytes_mapped"] == model.dram_bytes
        assert read["bytes_copied"] == 0


async def test_what_a_dead_worker_had_mapped_is_free_at_once(
    node: Node, demo: model_pb2.ModelInfo
) -> None:
    await start(node.second, demo)
    assert (await node.stored())[0].in_use
    node.second.popen.kill()
    node.second.popen.wait()
    model, arena = await node.stored()
    assert not model.in_use
    assert arena.in_use_bytes == 0
    await asyncio.to_thread(node.start_second)


async def test_instances_outlive_the_store_manager_and_its_successor_adopts_them(
    node: Node, demo: model_pb2.ModelInfo
) -> None:
    await start(node.cluster.worker, demo)
    before = await text(node.cluster.worker)
    (model, arena) = await node.stored()
    node.cluster.storemgr.popen.kill()
    node.cluster.storemgr.popen.wait()
    assert await text(node.cluster.worker) == before
    node.restart_storemgr()
    async with asyncio.timeout(30):
        while not (adopted := await node.stored())[0].dram_bytes:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)
    assert (adopted[0].dram_bytes, adopted[0].in_use) == (model.dram_bytes, True)
    assert adopted[1].free_bytes == arena.free_bytes
    assert adopted[1].in_use_bytes == arena.in_use_bytes
    assert await text(node.cluster.worker) == before
    async with grpc.aio.insecure_channel(node.cluster.storemgr.grpc) as channel:
        stub = storage_grpc.StorageServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Evict(storage_pb2.EvictRequest(model=demo.ref), timeout=30)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
