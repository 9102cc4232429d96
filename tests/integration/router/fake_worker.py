"""Workers on the wire: gRPC around the fakes, and a cable that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from brisk.common.v1 import model_pb2
from brisk.worker.v1 import worker_service_pb2 as worker_pb2
from brisk.worker.v1 import worker_service_pb2_grpc as worker_grpc

from services.common.deadline import Deadline
from services.common.errors import FailedPreconditionError, Reason
from services.common.placement import Route
from services.common.server import INTERNAL_LIMITS, create_server
from services.common.wire_sequence import prompt_from_proto, sampling_from_proto
from services.router.job import make_job
from tests.fakes.workers import FakeWorker, tokenize

MODEL = "opt-125m"


async def until(is_true: Callable[[], object]) -> None:
    """Wait for another process; the test's timeout is the limit."""
    while not is_true():  # noqa: ASYNC110 - what it waits for has no event here
        await asyncio.sleep(0.005)


def request_id_of(context: Any) -> str:
    """Return the request id that a call carries."""
    return str(dict(context.invocation_metadata())["x-request-id"])


class FakeWorkerServicer(worker_grpc.WorkerServiceServicer):
    """Instances behind one address."""

    def __init__(self) -> None:
        self.instances: dict[str, FakeWorker] = {}
        self.requests: list[worker_pb2.GenerateRequest] = []
        self.seconds: list[float] = []
        self.request_ids: list[str] = []
        self.cancelled = asyncio.Semaphore(0)  # a permit for each stream its caller gave up

    async def Generate(  # noqa: N802 - gRPC's name
        self, request: worker_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[worker_pb2.GenerateResponse]:
        self.requests.append(request)
        self.seconds.append(context.time_remaining())
        self.request_ids += [
            str(v) for k, v in context.invocation_metadata() if k == "x-request-id"
        ]
        instance = self.instances.get(request.instance_id)
        if instance is None:
            raise FailedPreconditionError("no such instance", reason=Reason.INSTANCE_GONE)
        job = make_job(
            request_id=request.request_id,
            model=MODEL,
            prompt=prompt_from_proto(request.prompt),
            sampling=sampling_from_proto(request.sampling),
            deadline=Deadline.after(600.0),
            want_progress=False,
        )
        sent = read = 0
        try:
            async for message in instance.generate(job):
                chunk = message.chunk
                sent += len(chunk.token_ids)
                read += len(message.prompt_tokens.ids)
                usage = None
                if chunk.finish_reason:
                    usage = model_pb2.Usage(prompt_tokens=read, completion_tokens=sent)
                yield worker_pb2.GenerateResponse(
                    chunk=model_pb2.TokenChunk(
                        first_index=chunk.first_index,
                        token_ids=chunk.token_ids,
                        text="x" * len(chunk.token_ids),
                        finish_reason=model_pb2.FinishReason.ValueType(chunk.finish_reason),
                        usage=usage,
                    ),
                    prompt_tokens=model_pb2.TokenIds(ids=message.prompt_tokens.ids),
                )
        except asyncio.CancelledError:
            self.cancelled.release()
            raise

    async def Tokenize(  # noqa: N802 - gRPC's name
        self, request: worker_pb2.TokenizeRequest, context: Any
    ) -> worker_pb2.TokenizeResponse:
        if request.instance_id not in self.instances:
            raise FailedPreconditionError("no such instance", reason=Reason.INSTANCE_GONE)
        token_ids = tokenize(prompt_from_proto(request.prompt))
        return worker_pb2.TokenizeResponse(
            token_ids=token_ids, pieces=[bytes([each]) for each in token_ids], context_tokens_max=64
        )

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        raise NotImplementedError

    def Load(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        raise NotImplementedError

    async def Unload(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        raise NotImplementedError

    async def Describe(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        raise NotImplementedError


@dataclass(slots=True, kw_only=True)
class RunningWorker:
    """A worker that listens."""

    servicer: FakeWorkerServicer
    address: str

    def hold(self, instance: FakeWorker, *, slots: int = 4, model: str = MODEL) -> Route:
        """Have an instance and return its route."""
        self.servicer.instances[instance.name] = instance
        return self.route(instance.name, slots=slots, model=model)

    def route(self, instance_id: str, *, slots: int = 4, model: str = MODEL) -> Route:
        """Return a route to an instance, there or not."""
        return Route(
            instance_id=instance_id,
            deployment=model,
            worker_address=self.address,
            worker_id=f"w-{self.address}",
            slots=slots,
        )


@asynccontextmanager
async def run_worker() -> AsyncIterator[RunningWorker]:
    """Run a worker in this process; leaving the block cuts all its calls."""
    server = create_server(
        "127.0.0.1:0", limits=INTERNAL_LIMITS, reflection=False, service_names=()
    )
    servicer = FakeWorkerServicer()
    worker_grpc.add_WorkerServiceServicer_to_server(servicer, server.server)
    await server.start_serving()
    try:
        yield RunningWorker(servicer=servicer, address=server.address)
    finally:
        await server.server.stop(None)


class Cable:
    """A TCP connection to a worker that can be cut, as a killed process cuts its own."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def __aenter__(self) -> Cable:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    @property
    def address(self) -> str:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, far_writer}
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.transport.abort()
