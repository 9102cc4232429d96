"""What grpcurl would do works: `buf curl`, which speaks the same protocol, lists and calls all."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from brisk_client.local.sync import LocalCluster

from tests.integration.cluster.conftest import Deploy

ROOT = Path(__file__).parents[3]
BUF = ROOT / ".tools" / "node_modules" / ".bin" / "buf"
CALLS = {
    "router": ("brisk.control.v1.ControlService/ListNodes", "leaderId"),
    "scheduler": ("grpc.health.v1.Health/Check", "status"),
    "worker": ("brisk.worker.v1.WorkerService/Describe", "state"),
    "storemgr": ("brisk.storage.v1.StorageService/Describe", "nodeId"),
}

pytestmark = pytest.mark.skipif(
    shutil.which("npm") is None, reason="buf comes through npm, which is not here"
)


async def run(*command: str | Path) -> str:
    """Run a program to its end and return what it printed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def curl(*arguments: str) -> str:
    """Call `buf curl`, which `make lint-proto` also installs."""
    if not BUF.exists():
        await run("make", "-C", ROOT, "lint-proto")
    return await run(BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments)


@pytest.mark.parametrize("kind", sorted(CALLS))
async def test_each_service_is_listed_and_called(cluster: LocalCluster, kind: str) -> None:
    base = f"http://{cluster.process(kind).address}"
    method, field = CALLS[kind]
    service = method.partition("/")[0]
    assert service in (await curl("--list-services", base)).split()
    assert method in (await curl("--list-methods", base)).split()
    assert field in json.loads(await curl("-d", "{}", f"{base}/{method}"))


async def test_tokens_stream(cluster: LocalCluster, deploy: Deploy) -> None:
    name = await deploy("llama")
    request = {
        "model": name,
        "prompt": {"tokens": {"ids": [5, 6, 7]}},
        "sampling": {"temperature": 0, "maxTokens": "5", "ignoreEos": True},
    }
    url = f"http://{cluster.router_address}/brisk.inference.v1.InferenceService/Generate"
    out = await curl("-d", json.dumps(request), url)
    decoder, at, events = json.JSONDecoder(), 0, []
    while at < len(out.rstrip()):
        event, at = decoder.raw_decode(out, at)
        at += len(out[at:]) - len(out[at:].lstrip())
        events.append(event["chunk"])
    assert sum(len(chunk["tokenIds"]) for chunk in events) == 5
    assert events[-1]["finishReason"] == "FINISH_REASON_LENGTH"
