"""Scheduler processes with a real Redis, and clients that call them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc
from brisk.common.v1 import model_pb2, placement_pb2
from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk.control.v1 import control_service_pb2_grpc as control_grpc
from brisk.scheduler.v1 import scheduler_service_pb2 as pb2
from brisk.scheduler.v1 import scheduler_service_pb2_grpc as pb2_grpc

from services.common.channel import open_channel
from services.common.errors import BriskError, UnavailableError
from services.common.status import from_rpc_error

START_S_MAX = 30.0
CALL_S = 20.0
_numbers = count()


@dataclass(slots=True, kw_only=True)
class Acquired:
    """What one Acquire call heard."""

    progress: list[model_pb2.StartProgress] = field(default_factory=list)
    granted: pb2.Granted | None = None
    error: BriskError | None = None

    @property
    def instance_id(self) -> str:
        """Return the granted instance."""
        assert self.granted is not None, self.error
        return self.granted.route.instance_id


@dataclass(slots=True, kw_only=True)
class Scheduler:
    """One `python -m services.scheduler`, and a channel to it."""

    process: asyncio.subprocess.Process
    address: str
    metrics_address: str
    log_path: Path
    channel: grpc.aio.Channel

    @property
    def stub(self) -> pb2_grpc.SchedulerServiceAsyncStub:
        """Return SchedulerService."""
        return pb2_grpc.SchedulerServiceStub(self.channel)

    @property
    def control(self) -> control_grpc.ControlServiceAsyncStub:
        """Return ControlService."""
        return control_grpc.ControlServiceStub(self.channel)

    @property
    def log(self) -> str:
        """All that it has logged so far."""
        return self.log_path.read_text(encoding="utf-8")

    async def metrics(self) -> str:
        """Return what Prometheus would read."""
        return await asyncio.to_thread(self._metrics)

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics") as answer:
            return str(answer.read().decode())

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(how)
        async with asyncio.timeout(START_S_MAX):
            return await self.process.wait()

    def acquire(
        self, request_id: str, deployment: str, *excluded: str
    ) -> grpc.aio.UnaryStreamCall[pb2.AcquireRequest, pb2.AcquireResponse]:
        """Begin an Acquire call."""
        request = pb2.AcquireRequest(
            request_id=request_id, deployment=deployment, excluded_instance_ids=excluded
        )
        return self.stub.Acquire(request, timeout=CALL_S)

    async def acquired(self, request_id: str, deployment: str, *excluded: str) -> Acquired:
        """Make an Acquire call to its end."""
        return await heard(self.acquire(request_id, deployment, *excluded))

    async def release(self, request_id: str) -> None:
        """Give a grant back."""
        await self.stub.Release(pb2.ReleaseRequest(request_id=request_id), timeout=CALL_S)

    async def deploy(self, path: str, name: str = "", **spec: Any) -> control_pb2.Deployment:
        """Deploy a folder; raise BriskError."""
        request = control_pb2.DeployRequest(
            name=name, source_path=path, spec=control_pb2.DeploymentSpec(**spec)
        )
        return await self.deployed(request)

    async def deployed(self, request: control_pb2.DeployRequest) -> control_pb2.Deployment:
        """Make a Deploy call to its end; raise BriskError."""
        try:
            async for response in self.control.Deploy(request, timeout=CALL_S):
                if response.HasField("deployment"):
                    return response.deployment
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        raise AssertionError("the stream ended without a deployment")

    async def models(self) -> list[str]:
        """Return the names of all deployments."""
        request = control_pb2.ListModelsRequest()
        response = await self.control.ListModels(request, timeout=CALL_S)
        return [each.name for each in response.deployments]

    async def instances(self) -> list[placement_pb2.Instance]:
        """Return all instances."""
        request = control_pb2.ListInstancesRequest()
        return list((await self.control.ListInstances(request, timeout=CALL_S)).instances)

    async def workers(self) -> list[str]:
        """Return the ids of the workers that it knows."""
        response = await self.control.ListNodes(control_pb2.ListNodesRequest(), timeout=CALL_S)
        return [worker.worker_id for node in response.nodes for worker in node.workers]

    async def leads(self) -> bool:
        """Whether it leads."""
        try:
            await self.models()
        except grpc.aio.AioRpcError as error:
            if isinstance(from_rpc_error(error), UnavailableError):
                return False
            raise
        return True


async def heard(
    call: grpc.aio.UnaryStreamCall[pb2.AcquireRequest, pb2.AcquireResponse],
) -> Acquired:
    """Listen to an Acquire call to its end."""
    acquired = Acquired()
    try:
        async for response in call:
            assert acquired.granted is None, "the grant is the last message"
            if response.HasField("granted"):
                acquired.granted = response.granted
            else:
                acquired.progress.append(response.progress)
    except grpc.aio.AioRpcError as error:
        acquired.error = from_rpc_error(error)
    return acquired


async def until(holds: Callable[[], Any], *, within_s: float = 15.0) -> None:
    """Wait until `holds`, a plain or an async function, says so."""
    async with asyncio.timeout(within_s):
        while True:
            answer = holds()
            if await answer if asyncio.iscoroutine(answer) else answer:
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def run_scheduler(
    redis_url: str, folder: Path, *, is_log_checked: bool = True, **settings: object
) -> AsyncIterator[Scheduler]:
    """Run a scheduler for the block. It must never log a traceback."""
    number = next(_numbers)
    ready = folder / f"scheduler-{number}.ready"
    log_path = folder / f"scheduler-{number}.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BRISK_")}
    environment |= {
        "BRISK_REDIS_URL": redis_url,
        "BRISK_SCHEDULER_READY_FILE": str(ready),
        "BRISK_SCHEDULER_ANNOUNCE_S": "0.05",
        "BRISK_SCHEDULER_DRAIN_S": "5",
        "BRISK_SCHEDULER_LOG_LEVEL": "debug",
    }
    environment |= {f"BRISK_SCHEDULER_{k.upper()}": str(v) for k, v in settings.items()}
    with log_path.open("w", encoding="utf-8") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.scheduler", env=environment, stderr=log
        )
    try:
        async with asyncio.timeout(START_S_MAX):
            while not ready.exists():
                assert process.returncode is None, log_path.read_text(encoding="utf-8")
                await asyncio.sleep(0.02)
        facts = json.loads(ready.read_text(encoding="utf-8"))
        async with open_channel(facts["grpc"]) as channel:
            yield Scheduler(
                process=process,
                address=facts["grpc"],
                metrics_address=facts["metrics"],
                log_path=log_path,
                channel=channel,
            )
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if is_log_checked:
            log_text = log_path.read_text(encoding="utf-8")
            assert "Traceback" not in log_text, log_text
