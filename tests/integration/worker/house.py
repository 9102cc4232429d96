"""A real worker beside a real store manager and a real Redis, each its own process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from brisk.common.v1 import model_pb2, placement_pb2
from brisk.storage.v1 import storage_service_pb2 as storage_pb2
from brisk.storage.v1 import storage_service_pb2_grpc as storage_grpc
from brisk.worker.v1 import worker_service_pb2 as pb2
from brisk.worker.v1 import worker_service_pb2_grpc as pb2_grpc

from services.common.errors import BriskError
from services.common.status import from_rpc_error

NODE: Final = "node-a"
START_S_MAX: Final = 90.0  # importing torch on a busy machine
STOP_S_MAX: Final = 30.0
_POLL_S: Final = 0.02


@dataclass(slots=True, kw_only=True)
class Process:
    """A service's process and what its ready file says."""

    popen: subprocess.Popen[bytes]
    ready_file: Path
    log_file: Path
    grpc: str = ""
    metrics: str = ""
    service_id: str = ""

    def wait_ready(self) -> None:
        """Return when it serves."""
        limit_s = time.monotonic() + START_S_MAX
        while not self.ready_file.exists():
            if self.popen.poll() is not None or time.monotonic() > limit_s:
                raise AssertionError(f"did not start: {self.log()[-4000:]}")
            time.sleep(_POLL_S)
        facts = json.loads(self.ready_file.read_text())
        self.grpc, self.metrics = facts["grpc"], facts["metrics"]
        self.service_id = facts["id"]

    def log(self) -> str:
        """Return what it has written to stderr."""
        return self.log_file.read_text()

    def events(self) -> list[dict[str, object]]:
        """Return its log lines, parsed."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    async def scrape(self) -> str:
        """Return what it exports to Prometheus."""

        def fetch() -> str:
            with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as reply:
                return str(reply.read().decode())

        return await asyncio.to_thread(fetch)

    def terminate(self) -> None:
        """Ask it to end."""
        self.popen.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Return its exit code."""
        return self.popen.wait(STOP_S_MAX)

    def end(self) -> None:
        """End it, whatever it does."""
        if self.popen.poll() is None:
            self.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(STOP_S_MAX)
                return
            self.popen.kill()
            self.popen.wait()


def launch(service: str, folder: Path, settings: Mapping[str, str]) -> Process:
    """Start a service; `wait_ready` before using it."""
    folder.mkdir(parents=True, exist_ok=True)
    ready_file, log_file = folder / f"{service}.ready", folder / f"{service}.log"
    ready_file.unlink(missing_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("BRISK_")}
    own = {f"BRISK_{service.upper()}_{name.upper()}": value for name, value in settings.items()}
    own[f"BRISK_{service.upper()}_READY_FILE"] = str(ready_file)
    own["BRISK_LOG_FORMAT"] = "json"
    with log_file.open("wb") as log:
        popen = subprocess.Popen(
            [sys.executable, "-m", f"services.{service}"],
            env={**inherited, **own},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return Process(popen=popen, ready_file=ready_file, log_file=log_file)


@dataclass(slots=True, kw_only=True)
class Cluster:
    """A node: a store manager and a worker."""

    worker: Process
    storemgr: Process
    redis_url: str
    storemgr_folder: Path
    models: dict[str, model_pb2.ModelInfo] = field(default_factory=dict)

    async def import_model(self, folder: Path, name: str) -> model_pb2.ModelInfo:
        """Put a model into the node's store, once."""
        if name not in self.models:
            async with grpc.aio.insecure_channel(self.storemgr.grpc) as channel:
                stub = storage_grpc.StorageServiceStub(channel)
                request = storage_pb2.ImportRequest(source_path=str(folder), name=name)
                async for response in stub.Import(request):
                    if response.HasField("model"):
                        self.models[name] = response.model
        return self.models[name]


@contextmanager
def run_cluster(
    folder: Path, redis_url: str, *, arena_bytes: str = "0", **settings: str
) -> Iterator[Cluster]:
    """Run both services for the block. `settings` are the worker's."""
    shared = {"redis_url": redis_url, "node_id": NODE}
    own = {"data_dir": str(folder / "data"), "arena_bytes": arena_bytes}
    storemgr = launch("storemgr", folder, {**shared, **own})
    worker = launch("worker", folder, {"devices": "cpu:0=64MiB", **shared, **settings})
    try:
        storemgr.wait_ready()
        worker.wait_ready()
        yield Cluster(
            worker=worker,
            storemgr=storemgr,
            redis_url=redis_url,
            storemgr_folder=folder / "data",
        )
    finally:
        worker.end()
        storemgr.end()


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[pb2_grpc.WorkerServiceAsyncStub]:
    """Return a stub for a worker."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield pb2_grpc.WorkerServiceStub(channel)


def load_request(info: model_pb2.ModelInfo, instance: str, **fields: object) -> pb2.LoadRequest:
    """Return an order for `instance` with room for what a scheduler would give it."""
    slots = int(str(fields.pop("slots", 2)))
    context = int(str(fields.pop("context_tokens_max", 256)))
    memory = info.weight_bytes + slots * context * info.kv_bytes_per_token
    request = pb2.LoadRequest(
        instance_id=instance,
        deployment="tiny",
        model=info.ref,
        device_id="cpu:0",
        slots=slots,
        context_tokens_max=context,
        memory_bytes=memory,
        leader_epoch=1,
    )
    for name, value in fields.items():
        if name == "model":
            request.model.CopyFrom(value)  # type: ignore[arg-type]
        else:
            setattr(request, name, value)
    return request


async def load(
    stub: pb2_grpc.WorkerServiceAsyncStub, request: pb2.LoadRequest
) -> tuple[list[model_pb2.StartProgress], pb2.Loaded]:
    """Load to the end; return progress and how it went."""
    progress: list[model_pb2.StartProgress] = []
    async for response in stub.Load(request, timeout=60):
        if response.HasField("loaded"):
            return progress, response.loaded
        progress.append(response.progress)
    raise AssertionError("the load ended without `loaded`")


async def describe(stub: pb2_grpc.WorkerServiceAsyncStub) -> placement_pb2.WorkerState:
    """Return the worker's state."""
    return (await stub.Describe(pb2.DescribeRequest(), timeout=10)).state


async def until_state(
    stub: pb2_grpc.WorkerServiceAsyncStub, holds: Callable[[placement_pb2.WorkerState], bool]
) -> placement_pb2.WorkerState:
    """Return the first state that something holds for."""
    async with asyncio.timeout(30):
        while not holds(state := await describe(stub)):  # noqa: ASYNC110 - there is no watch
            await asyncio.sleep(_POLL_S)
    return state


async def text_of(stub: pb2_grpc.WorkerServiceAsyncStub, request: pb2.GenerateRequest) -> str:
    """Return the whole text of a sequence."""
    return "".join([each.chunk.text async for each in stub.Generate(request, timeout=60)])


async def refusal(call: AsyncIterable[object]) -> BriskError:
    """Return the error that ends a stream."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("was not refused")
