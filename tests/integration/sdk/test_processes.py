"""Child processes: ready or a clear error, stopped in time or killed aloud, nothing left behind."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from brisk_client.local import redis as local_redis
from brisk_client.local.errors import GaveUpError, MissingError, StartError
from brisk_client.local.leftovers import members_of_session
from brisk_client.local.paths import DataFolder
from brisk_client.local.process import Command
from brisk_client.local.redis import choose_server, find_binary
from brisk_client.local.spec import ClusterSpec, nodes_of, redis_command
from brisk_client.local.state import process_started
from brisk_client.local.supervisor import Supervisor
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

GOOD = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
facts = {"id": "s-1", "grpc": "127.0.0.1:1", "metrics": "127.0.0.1:2", "pid": os.getpid()}
print(json.dumps({"level": "info", "message": "serving"}), flush=True)
with open(sys.argv[1] + ".tmp", "w") as file:
    json.dump(facts, file)
os.replace(sys.argv[1] + ".tmp", sys.argv[1])
while True:
    time.sleep(60)
"""
DEAF = GOOD.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
PARENT = GOOD.replace(
    "print(json", "import subprocess; child = subprocess.Popen(['sleep', '600'])\nprint(json"
)
BROKEN = "import sys; sys.exit('the reason')"
SILENT = "import time; time.sleep(600)"


def command(
    folder: Path, program: str, *, name: str = "service", ready_s_max: float = 20.0
) -> Command:
    ready_file = folder / f"{name}.json"
    return Command(
        name=name,
        kind="service",
        arguments=(sys.executable, "-c", program, str(ready_file)),
        environment=dict(os.environ),
        log_file=folder / f"{name}.log",
        ready_file=ready_file,
        ready_s_max=ready_s_max,
        stop_s_max=0.5 if program is DEAF else 20.0,
    )


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
async def supervisor(notices: list[str]) -> AsyncIterator[Supervisor]:
    made = Supervisor(lambda _name, _line: None, notices.append)
    yield made
    await made.stop(("service", "redis"))
    assert made.traces.leftovers() == []


async def test_a_service_is_up_when_its_ready_file_says_so(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    await supervisor.start([command(tmp_path, GOOD)])
    (state,) = supervisor.services
    assert (state.service_id, state.address) == ("s-1", "127.0.0.1:1")
    assert process_started(state.pid) is not None
    await supervisor.stop(("service",))
    assert process_started(state.pid) is None
    assert not (tmp_path / "service.json").exists()


async def test_a_ready_file_of_an_earlier_run_is_not_believed(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    stale = {"id": "old", "grpc": "h:1", "metrics": "h:2", "pid": os.getpid()}
    (tmp_path / "service.json").write_text(json.dumps(stale))
    await supervisor.start([command(tmp_path, GOOD)])
    assert supervisor.services[0].service_id == "s-1"


async def test_a_ready_file_of_another_process_is_not_believed(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    other = GOOD.replace("os.getpid()", "1")
    with pytest.raises(StartError, match="not ready"):
        await supervisor.start([command(tmp_path, other, ready_s_max=1.0)])
    assert supervisor.services == ()


async def test_an_early_end_is_told_with_code_and_last_words(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    with pytest.raises(StartError, match=r"(?s)service ended with exit code 1.*the reason.*log"):
        await supervisor.start([command(tmp_path, BROKEN)])
    assert "the reason" in (tmp_path / "service.log").read_text()


async def test_a_service_that_never_gets_ready_is_not_waited_for_for_ever(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    with pytest.raises(StartError, match=r"not ready within 0\.3 s"):
        await supervisor.start([command(tmp_path, SILENT, ready_s_max=0.3)])


async def test_one_failure_ends_the_whole_start(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="broken"):
        await supervisor.start(
            [command(tmp_path, SILENT, name="silent"), command(tmp_path, BROKEN, name="broken")]
        )


async def test_a_deaf_service_is_killed_and_that_is_said(
    supervisor: Supervisor, tmp_path: Path, notices: list[str]
) -> None:
    await supervisor.start([command(tmp_path, DEAF)])
    await supervisor.stop(("service",))
    assert "service did not stop within 0.5 s: killed" in notices
    assert supervisor.traces.leftovers() == []


async def test_what_a_service_started_itself_ends_with_it(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    await supervisor.start([command(tmp_path, PARENT)])
    (state,) = supervisor.services
    assert len(members_of_session(state.pid)) == 2
    await supervisor.stop(("service",))
    assert members_of_session(state.pid) == []


async def test_a_service_that_dies_is_started_again(
    supervisor: Supervisor, tmp_path: Path, notices: list[str]
) -> None:
    await supervisor.start([command(tmp_path, GOOD)])
    changes: list[int] = []
    supervisor.keep(lambda again: again, lambda: changes.append(1))
    (state,) = supervisor.services
    os.kill(state.pid, signal.SIGKILL)
    assert await supervisor.wait_exit(state.pid, 10) == -signal.SIGKILL
    successor = await supervisor.wait_restarted("service", state.pid, 20)
    assert process_started(successor.pid) is not None
    assert changes == [1]
    assert any("starting it again" in text for text in notices)


async def test_one_that_keeps_dying_ends_the_cluster(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brisk_client.local.restart.PAUSE_FIRST_S", 0.001)
    await supervisor.start([command(tmp_path, GOOD)])
    (state,) = supervisor.services
    supervisor.keep(lambda _again: command(tmp_path, BROKEN), lambda: None)
    os.kill(state.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        with pytest.raises(GaveUpError, match=r"(?s)too often.*the reason"):
            await supervisor.failed()


async def test_a_start_that_is_cancelled_leaves_nothing(
    supervisor: Supervisor, tmp_path: Path, notices: list[str]
) -> None:
    starting = asyncio.create_task(supervisor.start([command(tmp_path, SILENT)]))
    await asyncio.wait({starting}, timeout=0.05)
    assert "starting service" in notices
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await supervisor.stop(("service",))
    assert supervisor.traces.leftovers() == []


def test_children_die_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio
from brisk_client.local.supervisor import Supervisor
from tests.integration.sdk.test_processes import GOOD, command
from pathlib import Path

async def main():
    made = Supervisor(lambda *_: None, lambda *_: None)
    await made.start([command(Path({str(tmp_path)!r}), GOOD)])
    print(made.services[0].pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        descriptor = os.pidfd_open(pid)
        launcher.kill()
    try:
        _wait_gone(descriptor)
    finally:
        os.close(descriptor)


def _wait_gone(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 10)[0], "the child outlived its launcher"


async def test_redis_runs_privately_and_keeps_its_data(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    folder = DataFolder.at(tmp_path)
    folder.create()
    spec = ClusterSpec(folder=folder, nodes=nodes_of(None), router_port=0)
    for expected in (None, "kept"):
        server = await choose_server(folder)
        await supervisor.start([redis_command(spec, server)])
        async with Redis.from_url(server.url, decode_responses=True) as redis:
            assert await redis.get("key") == expected
            await redis.set("key", "kept")
            assert (await redis.config_get("port"))["port"] == "0"
        once = Retry(NoBackoff(), 0)
        async with Redis(unix_socket_path=str(server.socket), retry=once) as stranger:
            with pytest.raises(Exception, match=r"(?i)auth"):
                await stranger.ping()
        assert server.socket.stat().st_mode & 0o077 == 0
        await supervisor.stop(("redis",))
        server.remove_socket()
        assert not server.socket.exists()


async def test_a_deep_data_folder_gets_a_short_socket(tmp_path: Path) -> None:
    folder = DataFolder.at(tmp_path / ("deep" * 30))
    folder.create()
    server = await choose_server(folder)
    assert len(str(server.socket)) < 100
    server.remove_socket()
    assert not server.socket.parent.exists()


def fake_server(folder: Path, version: str) -> None:
    binary = folder / "redis-server"
    binary.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0:0'\n")
    binary.chmod(0o755)


async def test_a_server_on_the_path_is_preferred_if_it_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake_server(tmp_path, "7.0.15")
    assert await find_binary() == tmp_path / "redis-server"
    fake_server(tmp_path, "6.2.14")
    assert (await find_binary()).name == "valkey-server"
    monkeypatch.setattr(local_redis, "_bundled", lambda: None)
    with pytest.raises(MissingError, match=r"6\.2.*BRISK_REDIS_URL"):
        await find_binary()
