"""A real router process with a real Redis, and a scheduler and workers around it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from brisk.common.v1 import model_pb2
from brisk.control.v1 import control_service_pb2_grpc as control_grpc
from brisk.inference.v1 import inference_service_pb2 as pb2
from brisk.inference.v1 import inference_service_pb2_grpc as pb2_grpc

from services.common.channel import open_channel
from services.common.errors import BriskError
from services.common.placement import Route
from services.common.status import from_rpc_error
from tests.fakes.workers import continuation
from tests.integration.router.fake_scheduler import RunningScheduler, run_scheduler
from tests.integration.router.fake_worker import MODEL, RunningWorker, run_worker, until

SEED = 5
PROMPT = "hi"
START_S_MAX = 30.0


def expected(length: int, prompt: str = PROMPT) -> list[int]:
    """Return what an undisturbed stream of `ask` gives."""
    return continuation(tuple(prompt.encode()), SEED, length)


def ask(tokens: int = 8, **fields: Any) -> pb2.GenerateRequest:
    """Return a request for `tokens` tokens of MODEL."""
    sampling = model_pb2.SamplingParams(seed=SEED, max_tokens=tokens)
    request = pb2.GenerateRequest(
        model=MODEL, prompt=model_pb2.Prompt(text=PROMPT), sampling=sampling
    )
    request.MergeFrom(pb2.GenerateRequest(**fields))
    return request


@dataclass(slots=True)
class Answer:
    """What a client got of one stream."""

    tokens: list[int] = field(default_factory=list)
    progress: list[model_pb2.StartProgress] = field(default_factory=list)
    start: model_pb2.StartReport | None = None
    last: model_pb2.TokenChunk | None = None
    error: BriskError | None = None

    def take(self, response: pb2.GenerateResponse | pb2.ChatResponse) -> None:
        """Add one message."""
        if response.HasField("progress"):
            assert not self.tokens, "progress comes before tokens"
            self.progress.append(response.progress)
            return
        assert response.HasField("start") == (not self.tokens), "the report is on the first chunk"
        assert response.chunk.first_index == len(self.tokens)
        if response.HasField("start"):
            self.start = response.start
        self.tokens += response.chunk.token_ids
        self.last = response.chunk


class Stream:
    """A request under way, read message by message."""

    def __init__(
        self, call: grpc.aio.UnaryStreamCall[pb2.GenerateRequest, pb2.GenerateResponse]
    ) -> None:
        self.call = call
        self.answer = Answer()
        self._responses = aiter(call)

    async def next(self) -> None:
        """Take one message."""
        self.answer.take(await anext(self._responses))

    async def rest(self) -> Answer:
        """Take the rest and return all."""
        try:
            async for response in self._responses:
                self.answer.take(response)
        except grpc.aio.AioRpcError as error:
            self.answer.error = from_rpc_error(error)
        return self.answer


@dataclass(slots=True, kw_only=True)
class RouterProcess:
    """`python -m services.router`."""

    process: asyncio.subprocess.Process
    address: str
    metrics_address: str
    http_address: str
    log_path: Path
    is_leaving: bool = False

    @property
    def log(self) -> str:
        """All that it has logged so far."""
        return self.log_path.read_text(encoding="utf-8")

    def metrics(self) -> str:
        """Return what Prometheus would read."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics") as answer:
            return str(answer.read().decode())

    def terminate(self) -> None:
        """Ask it to leave, once: a second signal would mean now."""
        if not self.is_leaving and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        self.is_leaving = True

    async def ended(self) -> int:
        """Return its exit code."""
        return await self.process.wait()


@asynccontextmanager
async def run_router(
    redis_url: str, folder: Path, *, is_log_checked: bool = True, **settings: object
) -> AsyncIterator[RouterProcess]:
    """Run a router for the block. It must leave in order and never log a traceback."""
    ready = folder / "router.ready"
    log_path = folder / "router.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BRISK_")}
    environment |= {
        "BRISK_REDIS_URL": redis_url,
        "BRISK_ROUTER_LISTEN": "127.0.0.1:0",
        "BRISK_ROUTER_HTTP_LISTEN": "127.0.0.1:0",
        "BRISK_ROUTER_READY_FILE": str(ready),
        "BRISK_ROUTER_ANNOUNCE_S": "0.05",
        "BRISK_ROUTER_DRAIN_S": "5",
    }
    environment |= {f"BRISK_ROUTER_{k.upper()}": str(v) for k, v in settings.items()}
    with log_path.open("w", encoding="utf-8") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.router", env=environment, stderr=log
        )
    try:
        async with asyncio.timeout(START_S_MAX):
            while not ready.exists():
                assert process.returncode is None, log_path.read_text(encoding="utf-8")
                await asyncio.sleep(0.01)
        facts = json.loads(ready.read_text(encoding="utf-8"))
        router = RouterProcess(
            process=process,
            address=facts["grpc"],
            metrics_address=facts["metrics"],
            http_address=facts.get("http", ""),
            log_path=log_path,
        )
        yield router
        router.terminate()
        assert await router.ended() == 0
        if is_log_checked:
            assert "Traceback" not in router.log, router.log
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class House:
    """Everything around one router, and a client of it."""

    def __init__(
        self, router: RouterProcess, leader: RunningScheduler, worker: RunningWorker
    ) -> None:
        self.router = router
        self.leader = leader
        self.scheduler = leader.scheduler
        self.worker = worker
        self.channel = open_channel(router.address)
        self.inference = pb2_grpc.InferenceServiceStub(self.channel)
        self.control = control_grpc.ControlServiceStub(self.channel)

    async def serve(self, *routes: Route) -> None:
        """Publish routes and wait until the router knows them."""
        await self.scheduler.publish(*routes)
        await self.knows(len(self.scheduler.ready))

    async def knows(self, routes: int) -> None:
        """Wait until the router's table has so many routes."""
        await self.shows(f"brisk_routes {float(routes)}")

    async def shows(self, line: str) -> None:
        """Wait until the router's metrics have a line."""
        await until(lambda: line in self.router.metrics())

    async def generate(self, request: pb2.GenerateRequest, **options: Any) -> Answer:
        """Run a request to its end."""
        return await Stream(self.inference.Generate(request, **options)).rest()

    async def begin(self, request: pb2.GenerateRequest) -> Stream:
        """Start a request and return it with its first message taken."""
        stream = Stream(self.inference.Generate(request))
        await stream.next()
        return stream


@asynccontextmanager
async def run_house(redis_url: str, folder: Path, **settings: Any) -> AsyncIterator[House]:
    """Run everything, the scheduler leading and watched."""
    async with AsyncExitStack() as stack:
        leader = await stack.enter_async_context(run_scheduler())
        await leader.lead(redis_url)
        worker = await stack.enter_async_context(run_worker())
        router = await stack.enter_async_context(run_router(redis_url, folder, **settings))
        house = House(router, leader, worker)
        stack.push_async_callback(house.channel.close)
        await until(lambda: leader.scheduler.watchers)
        yield house
