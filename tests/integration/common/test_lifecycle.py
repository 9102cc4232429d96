"""A service starts completely or says why not, and leaves with every token delivered."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from brisk.worker.v1 import worker_service_pb2 as pb2
from brisk.worker.v1 import worker_service_pb2_grpc as pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from services.common.channel import open_channel
from services.common.clock import monotonic_s
from services.common.keys import ServiceKind
from services.common.redis_client import connect
from services.common.registry import Registry
from tests.fakes.redis_server import run_redis

ROOT = Path(__file__).parents[3]
PATIENCE_S = 30.0  # a busy machine starts a process in seconds
TOKENS = 40


class Service:
    """A running process and what it said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def said(self, message: str) -> dict[str, Any]:
        """Read its log until `message`."""
        async with asyncio.timeout(PATIENCE_S):
            while line := await self._line():
                if line.startswith("{") and json.loads(line)["message"] == message:
                    return dict(json.loads(line))
        raise AssertionError(f"never said {message!r}:\n" + "".join(self.lines))

    async def exited(self) -> int:
        """Read its log to the end and return its exit code."""
        async with asyncio.timeout(PATIENCE_S):
            while await self._line():
                pass
            return await self.process.wait()

    @property
    def log(self) -> str:
        return "".join(self.lines)

    async def _line(self) -> str:
        assert self.process.stderr is not None
        line = (await self.process.stderr.readline()).decode()
        self.lines.append(line)
        return line


@asynccontextmanager
async def start(shared_redis_url: str, **settings: object) -> AsyncIterator[Service]:
    environment = {name: value for name, value in os.environ.items() if "BRISK_" not in name}
    environment |= {"BRISK_REDIS_URL": shared_redis_url, "BRISK_LOG_FORMAT": "json"}
    environment |= {f"BRISK_TINY_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.fakes.tiny_service"),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    service = Service(process)
    try:
        yield service
    finally:
        if process.returncode is None:
            process.kill()
        await service.exited()


async def tokens(stub: Any) -> list[int]:
    """Read a whole stream."""
    return [
        token
        async for response in stub.Generate(pb2.GenerateRequest())
        for token in response.chunk.token_ids
    ]


async def begun(stub: Any) -> tuple[asyncio.Task[list[int]], asyncio.Event]:
    """Start reading a stream and return when its first token has come."""
    first = asyncio.Event()

    async def read() -> list[int]:
        found = []
        async for response in stub.Generate(pb2.GenerateRequest()):
            found += list(response.chunk.token_ids)
            first.set()
        return found

    reading = asyncio.create_task(read())
    async with asyncio.timeout(PATIENCE_S):
        await first.wait()
    return reading, first


def stub_of(channel: grpc.aio.Channel) -> Any:
    return pb2_grpc.WorkerServiceStub(channel)


# --- Leaving ---


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_in_mid_stream_delivers_every_token_and_exits_0(
    redis_url: str, signum: signal.Signals
) -> None:
    async with start(redis_url) as service:
        address = (await service.said("serving"))["address"]
        async with open_channel(address) as channel:
            reading, _ = await begun(stub_of(channel))
            service.process.send_signal(signum)
            assert await reading == list(range(TOKENS))
        assert await service.exited() == 0
        assert "Traceback" not in service.log
        assert '"level": "error"' not in service.log


async def test_watchers_of_health_are_told_before_the_port_closes(redis_url: str) -> None:
    async with start(redis_url) as service:
        address = (await service.said("serving"))["address"]
        async with open_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            service.process.terminate()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await stub_of(channel).Describe(pb2.DescribeRequest(), timeout=5.0)  # announce_s
            assert await service.exited() == 0  # the watch did not hold it up for drain_s


async def test_a_stream_longer_than_the_drain_ends_as_unavailable(redis_url: str) -> None:
    async with start(redis_url, drain_s=0.2, pause_s=0.1, tokens=1000) as service:
        address = (await service.said("serving"))["address"]
        async with open_channel(address) as channel:
            reading, _ = await begun(stub_of(channel))
            service.process.terminate()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await reading
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await service.exited() == 0
        assert "Traceback" not in service.log


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)]
)
async def test_a_second_signal_ends_it_at_once(
    redis_url: str, first: signal.Signals, second: signal.Signals
) -> None:
    async with start(redis_url, pause_s=1.0) as service:
        address = (await service.said("serving"))["address"]
        async with open_channel(address) as channel:
            reading, _ = await begun(stub_of(channel))
            service.process.send_signal(first)
            await service.said("draining")
            sent_at_s = monotonic_s()
            service.process.send_signal(second)
            assert await service.exited() == -second
            assert monotonic_s() - sent_at_s < 5.0  # the stream had 39 s to go
            await asyncio.gather(reading, return_exceptions=True)


async def test_a_second_signal_ends_even_a_process_whose_loop_is_stuck(redis_url: str) -> None:
    async with start(redis_url, block_on_drain_s=60) as service:
        await service.said("serving")
        service.process.terminate()
        await service.said("event loop blocked")
        service.process.terminate()
        assert await service.exited() == -signal.SIGTERM


async def test_a_signal_before_it_serves_stops_it_cleanly(redis_url: str) -> None:
    async with start(redis_url, hang_at_start=1) as service:
        await service.said("hanging")
        service.process.terminate()
        assert await service.exited() == 0
        assert "stopped before serving" in service.log
        assert "Traceback" not in service.log


async def test_leaving_takes_little_time_and_takes_the_registration_along(redis_url: str) -> None:
    async with connect(SecretStr(redis_url)) as redis, start(redis_url, announce_s=0) as service:
        registry = Registry(redis)
        await service.said("registered")
        assert [f.service_id for f in await registry.list(ServiceKind.WORKER)] == ["tiny-1"]
        sent_at_s = monotonic_s()
        service.process.terminate()
        assert await service.exited() == 0
        assert monotonic_s() - sent_at_s < 3.0
        assert await registry.list(ServiceKind.WORKER) == ()


async def test_it_leaves_while_redis_is_gone_or_hangs() -> None:
    with run_redis() as server:
        async with start(server.url) as service:
            await service.said("registered")
            server.hang()
            service.process.terminate()
            assert await service.exited() == 0
            assert "Traceback" not in service.log


# --- Failing loops ---


@pytest.mark.parametrize(
    ("loop", "cause"),
    [
        ("raises", "OSError: the loop's own reason"),
        ("returns", "RuntimeError: background loop background ended by itself"),
    ],
)
async def test_a_loop_that_ends_drains_and_exits_1_with_its_cause(
    redis_url: str, loop: str, cause: str
) -> None:
    async with start(redis_url, loop=loop, loop_ends_on="describe") as service:
        address = (await service.said("serving"))["address"]
        async with open_channel(address) as channel:
            reading, _ = await begun(stub_of(channel))
            await stub_of(channel).Describe(pb2.DescribeRequest())
            assert await reading == list(range(TOKENS))
        assert await service.exited() == 1
        assert cause in service.log
        assert service.log.count("Traceback") == 1


# --- Refusing to start ---


async def refusal(shared_redis_url: str, **settings: object) -> str:
    async with start(shared_redis_url, **settings) as service:
        assert await service.exited() == 2
        assert "Traceback" not in service.log
        plain = [line for line in service.lines if line and not line.startswith("{")]
        (line,) = plain
        assert line.startswith("brisk tiny: refused to start: ")
        return line.removeprefix("brisk tiny: refused to start: ").rstrip("\n")


async def test_an_unknown_setting_is_refused(redis_url: str) -> None:
    line = await refusal(redis_url, tokenz=1)
    assert line == "BRISK_TINY_TOKENZ: unknown setting; did you mean BRISK_TINY_TOKENS?"


async def test_a_malformed_setting_is_refused(redis_url: str) -> None:
    line = await refusal(redis_url, drain_s="soon")
    assert line.startswith("BRISK_TINY_DRAIN_S: ")
    assert line.endswith("Given: 'soon'")


async def test_a_taken_port_is_refused(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert (await refusal(redis_url, listen=address)).startswith(
            f"BRISK_TINY_LISTEN: cannot listen on {address}"
        )
        assert (await refusal(redis_url, metrics_listen=address)).startswith(
            f"BRISK_TINY_METRICS_LISTEN: cannot listen on {address}"
        )


async def test_a_port_that_another_service_serves_on_is_refused(redis_url: str) -> None:
    async with start(redis_url) as service:
        address = (await service.said("serving"))["address"]
        assert "is taken" in await refusal(redis_url, listen=address)


async def test_a_redis_that_cannot_be_used_is_refused() -> None:
    unreachable = "redis://127.0.0.1:1/0"
    assert await refusal(unreachable) == "BRISK_REDIS_URL: Redis is unreachable"
    with run_redis(password="hunter2") as server:  # noqa: S106 - a test's
        wrong = server.url.replace("hunter2", "hunter3")
        line = await refusal(unreachable, redis_url=wrong)
        assert line == "BRISK_TINY_REDIS_URL: Redis refuses the user name or password"


# --- Being found ---


async def test_the_ready_file_tells_a_launcher_where_everything_is(
    redis_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "ready.json"
    async with start(redis_url, ready_file=path) as service:
        address = (await service.said("serving"))["address"]
        facts = json.loads(path.read_text())
        assert facts == {
            "service": "tiny",
            "id": "tiny-1",
            "grpc": address,
            "metrics": facts["metrics"],
            "pid": service.process.pid,
        }
        host, port = facts["metrics"].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b"brisk_event_loop_lag_seconds" in await reader.read()
        writer.close()
        await writer.wait_closed()
        service.process.terminate()
        assert await service.exited() == 0
        assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - a temporary folder


async def test_a_request_id_is_in_the_lines_of_its_request(redis_url: str) -> None:
    async with start(redis_url) as service:
        address = (await service.said("serving"))["address"]
        async with open_channel(address) as channel:
            metadata = (("x-request-id", "r-17"),)
            call = stub_of(channel).Generate(pb2.GenerateRequest(), metadata=metadata)
            await call.read()
            line = await service.said("counting")
            assert line["request_id"] == "r-17"


async def test_a_service_dies_with_its_launcher_if_it_is_asked_to(
    redis_url: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    launcher = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'tests.fakes.tiny_service'])\n"
        "child.wait()\n"
    )
    environment = os.environ | {
        "BRISK_REDIS_URL": redis_url,
        "BRISK_DIE_WITH_PARENT": "1",
        "BRISK_TINY_READY_FILE": str(ready),
        "BRISK_LOG_FORMAT": "json",
    }
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", launcher),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    service = Service(parent)  # they share a stderr
    await service.said("serving")
    child = json.loads(ready.read_text())["pid"]
    parent.kill()
    try:
        await service.said("stopped")
    except BaseException:
        os.kill(child, signal.SIGKILL)  # it did not die with its parent
        raise
    assert await service.exited() == -signal.SIGKILL
    assert not ready.exists()


async def test_others_hear_of_the_address_that_is_advertised(redis_url: str) -> None:
    async with (
        start(redis_url, advertise="localhost", tokens=3) as service,
        connect(SecretStr(redis_url)) as redis,
    ):
        address = (await service.said("serving"))["address"]
        host, _, port = address.rpartition(":")
        assert host == "localhost"
        await service.said("registered")
        (facts,) = await Registry(redis).list(ServiceKind.WORKER)
        assert facts.address == address
        assert facts.metrics_address.startswith("localhost:")
        assert facts.metrics_address != address
        async with open_channel(f"127.0.0.1:{port}") as channel:
            assert await tokens(pb2_grpc.WorkerServiceStub(channel)) == [0, 1, 2]


@pytest.mark.parametrize("kind", list(ServiceKind))
async def test_every_service_explains_itself_without_starting(kind: ServiceKind) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", f"services.{kind}", "--help"),
        cwd=ROOT,
        env=os.environ | {"BRISK_REDIS_URL": "redis://127.0.0.1:1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    assert f"BRISK_{kind.upper()}_LISTEN" in out.decode()


@pytest.mark.parametrize("kind", list(ServiceKind))
async def test_every_service_advertises_what_it_is_told(
    kind: ServiceKind, redis_url: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    own = f"BRISK_{kind.upper()}_"
    settings = {
        "BRISK_REDIS_URL": redis_url,
        "BRISK_ADVERTISE": "localhost",
        f"{own}LISTEN": "127.0.0.1:0",
        f"{own}READY_FILE": str(ready),
        "BRISK_ROUTER_HTTP_LISTEN": "127.0.0.1:0",
        "BRISK_STOREMGR_DATA_DIR": str(tmp_path / "data"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{kind}", cwd=ROOT, env=os.environ | settings
    )
    try:
        async with asyncio.timeout(PATIENCE_S), connect(SecretStr(redis_url)) as redis:
            while not (found := await Registry(redis).list(kind)) or not ready.exists():
                assert process.returncode is None
                await asyncio.sleep(0.05)
        (facts,) = found
        assert facts.address.startswith("localhost:")
        assert facts.metrics_address.startswith("localhost:")
        assert json.loads(ready.read_text())["grpc"] == facts.address
    finally:
        process.kill()
        await process.wait()
