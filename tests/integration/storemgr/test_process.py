"""The process: what it registers and exports, what makes it refuse to start, how it stops."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import brisk_native
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from redis.asyncio import Redis

from services.common.keys import ServiceKind
from services.common.registry import Registry
from tests.integration.storemgr.nodes import Node, NodeError, running

SERVICE = "brisk.storage.v1.StorageService"


async def test_a_store_manager_registers_under_its_node_and_leaves_when_it_stops(
    tmp_path: Path, redis_url: str
) -> None:
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        registry = Registry(redis)
        node = Node(tmp_path / "data", redis_url)
        with running(node):
            node.wait_for("registered")
            (facts,) = await registry.list(ServiceKind.STOREMGR)
            assert (facts.node_id, facts.address) == ("node-1", node.address)
            ready = json.loads(node.ready_file.read_text())
            assert ready["service"] == "storemgr"
            assert (ready["id"], ready["grpc"]) == (facts.service_id, facts.address)
            assert (ready["metrics"], ready["pid"]) == (facts.metrics_address, node.process.pid)
            assert await asyncio.to_thread(node.terminate) == 0
        assert await registry.list(ServiceKind.STOREMGR) == ()
        assert not node.ready_file.exists()
    assert "Traceback" not in node.log


async def test_health_and_reflection_know_the_service(node: Node) -> None:
    async with grpc.aio.insecure_channel(node.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection.ServerReflectionInfo(iter([request]))
        listed = (await call.read()).list_services_response.service
        assert SERVICE in {service.name for service in listed}
        call.cancel()


def test_the_loader_in_use_is_logged_and_exported(tmp_path: Path, redis_url: str) -> None:
    node = Node(tmp_path / "data", redis_url)
    node.launch()
    try:
        opened = node.wait_for("store opened")
        node.wait_for("serving")
        assert opened["loader"] == brisk_native.IMPLEMENTATION
        direct = str(opened["direct_io"]).lower()
        labels = f'direct_io="{direct}",implementation="{brisk_native.IMPLEMENTATION}"'
        assert f"brisk_storemgr_loader_info{{{labels}}} 1.0" in node.metrics()
    finally:
        node.close()


def refused(node: Node) -> str:
    """Start `node`, which must refuse, and return what it says at last."""
    node.launch()
    try:
        with pytest.raises(NodeError):
            node.wait_for("serving")
        assert node.wait() == 2
    finally:
        node.close()
    assert "Traceback" not in node.log
    return node.lines[-1]


def test_a_second_store_manager_on_one_folder_is_refused(
    node: Node, tmp_path: Path, redis_url: str
) -> None:
    second = Node(node.data_dir, redis_url, BRISK_STOREMGR_READY_FILE=str(tmp_path / "second"))
    assert refused(second) == (
        "brisk storemgr: refused to start: BRISK_STOREMGR_DATA_DIR: "
        "another store manager uses this folder\n"
    )
    assert node.process.poll() is None


def test_the_folder_is_free_again_after_a_crash(tmp_path: Path, redis_url: str) -> None:
    for _ in range(2):
        with running(Node(tmp_path / "data", redis_url)) as node:
            node.kill()


def test_a_data_folder_that_cannot_be_is_refused(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "file").touch()
    elsewhere = {"BRISK_STOREMGR_READY_FILE": str(tmp_path / "ready.json")}
    said = refused(Node(tmp_path / "file" / "data", redis_url, **elsewhere))
    assert "BRISK_STOREMGR_DATA_DIR: cannot be used: Not a directory" in said


def test_an_unreachable_redis_is_refused(tmp_path: Path) -> None:
    said = refused(Node(tmp_path / "data", "redis://127.0.0.1:1/0"))
    assert "BRISK_REDIS_URL" in said


def test_a_taken_port_is_refused(node: Node, tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "other").mkdir()
    other = Node(tmp_path / "other" / "data", redis_url, BRISK_STOREMGR_LISTEN=node.address)
    assert "BRISK_STOREMGR_LISTEN" in refused(other)
