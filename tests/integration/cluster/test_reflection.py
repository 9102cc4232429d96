"""Operators can list, describe and call every service by reflection, on every address."""

import asyncio
import json

import pytest
from brisk_client.cli.app import execute
from brisk_client.local.sync import LocalCluster

SERVICES = {
    "router": ["brisk.control.v1.ControlService", "brisk.inference.v1.InferenceService"],
    "scheduler": ["brisk.scheduler.v1.SchedulerService"],
    "worker": ["brisk.worker.v1.WorkerService"],
    "storemgr": ["brisk.storage.v1.StorageService"],
}
CALLS = {
    "router": ("brisk.control.v1.ControlService/ListNodes", "{}", "leaderId"),
    "scheduler": ("brisk.scheduler.v1.SchedulerService/Release", '{"requestId": "x"}', ""),
    "worker": ("brisk.worker.v1.WorkerService/Describe", "{}", "state"),
    "storemgr": ("brisk.storage.v1.StorageService/Describe", "{}", "nodeId"),
}


@pytest.mark.parametrize("kind", sorted(SERVICES))
async def test_each_service_is_listed_described_and_called(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    address = ("--address", cluster.process(kind).address)

    async def grpc(*arguments: str) -> str:
        assert await asyncio.to_thread(execute, ["grpc", *arguments, *address]) == 0
        return capsys.readouterr().out

    listed = (await grpc("list")).splitlines()
    assert set(listed) >= {*SERVICES[kind], "grpc.health.v1.Health"}
    for service in SERVICES[kind]:
        methods = (await grpc("list", service)).splitlines()
        assert methods
        definition = await grpc("describe", service)
        for method in methods:
            assert f"rpc {method.rpartition('.')[2]}(" in definition
            assert method.rpartition(".")[2] in await grpc("describe", method)
    method, data, field = CALLS[kind]
    reply = json.loads(await grpc("call", method, "-d", data))
    assert field in reply if field else reply == {}
    for service in ("", *SERVICES[kind]):
        health = await grpc(
            "call", "grpc.health.v1.Health/Check", "-d", f'{{"service":"{service}"}}'
        )
        assert json.loads(health)["status"] == "SERVING"


async def test_a_failed_call_is_told_with_its_code(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("grpc", "call", "brisk.control.v1.ControlService/GetModel", "-d", '{"name": "nothing"}'),
        *("--address", cluster.router_address),
    ]
    assert await asyncio.to_thread(execute, arguments) == 3
    assert "nothing" in capsys.readouterr().err
