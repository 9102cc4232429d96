"""`brisk` from the first command to the last: up, deploy, run, look, down, and nothing left."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from brisk_client.local.leftovers import Traces
from brisk_client.local.paths import DataFolder
from brisk_client.local.state import ClusterState, read_state
from brisk_client.local.sync import LocalCluster

from tests.integration.cluster.conftest import Deploy, until
from tests.integration.cluster.programs import (
    ROOT,
    brisk,
    ended,
    environment,
    processes_of,
    start,
)
from tests.models import DEMO_MODEL

UP = ("up", "--port", "0", "--device", "cpu:0=64MiB")


def traces_of(state: ClusterState, folder: Path) -> Traces:
    traces = Traces.begin()
    traces.folder = folder
    redis = set() if state.redis_pid is None else {state.redis_pid}
    traces.pids |= {state.pid, *redis, *(service.pid for service in state.services)}
    traces.addresses |= {
        address
        for service in state.services
        for address in (service.address, service.metrics, service.http)
        if address
    }
    traces.sockets.add(folder / "run" / "redis.sock")
    return traces


async def test_an_operators_day(tmp_path: Path) -> None:
    env = environment(tmp_path)
    up = await brisk(*UP, "--detach", "--json", env=env)
    assert up.code == 0, up.err
    state = read_state(DataFolder.at(tmp_path))
    assert state is not None
    assert json.loads(up.out)["endpoint"] == state.endpoint
    assert json.loads(up.out)["http_endpoint"] == state.http_endpoint != state.endpoint
    traces = traces_of(state, tmp_path)
    assert len(traces.leftovers()) >= len(traces.pids)  # the check itself can see them

    second = await brisk(*UP, "--detach", env=env)
    assert second.code == 1
    assert "brisk down" in second.err

    deployed = await brisk("deploy", "licence", "--from", str(DEMO_MODEL), env=env)
    assert deployed.code == 0, deployed.err
    assert "1.5M parameters" in deployed.out
    cold = await brisk("run", "licence", "You may copy", "-n", "8", "-t", "0", "-v", env=env)
    assert cold.code == 0, cold.err
    assert "cold start" in cold.err
    warm = await brisk("run", "licence", "-n", "8", "-t", "0", "-v", env=env, stdin="You may copy")
    assert "warm start" in warm.err
    assert warm.out == cold.out
    chat = await brisk("chat", "licence", "-n", "4", "-t", "0", env=env, stdin="You may\n")
    assert chat.code == 0, chat.err
    assert chat.out.strip()

    (instance,) = json.loads((await brisk("ps", "--json", env=env)).out)
    assert (instance["deployment"], instance["state"]) == ("licence", "ready")
    (listed,) = json.loads((await brisk("ls", "--json", env=env)).out)
    assert listed["instances_ready"] == 1
    status = json.loads((await brisk("status", "--json", env=env)).out)
    assert status["endpoint"] == state.endpoint
    assert status["local"]["pid"] == state.pid
    missing = await brisk("run", "licenze", "x", env=env)
    assert missing.code == 3
    assert "licence" in missing.err

    down = await brisk("down", env=env)
    assert (down.code, down.out) == (0, "stopped\n")
    assert traces.leftovers() == []
    assert processes_of(tmp_path) == []
    assert (await brisk("ls", env=env)).code == 4
    assert (await brisk("down", env=env)).code == 0


async def test_deployments_survive_a_restart_and_ctrl_c_stops_cleanly(tmp_path: Path) -> None:
    env = environment(tmp_path)
    assert (await brisk(*UP, "--detach", env=env)).code == 0
    assert (await brisk("deploy", "kept", "--from", str(DEMO_MODEL), env=env)).code == 0
    assert (await brisk("down", env=env)).code == 0

    foreground = await start("-m", "brisk_client.cli", *UP, env=env)
    state = await running(tmp_path)
    traces = traces_of(state, tmp_path)
    (listed,) = json.loads((await brisk("ls", "--json", env=env)).out)
    assert listed["name"] == "kept"
    answer = await brisk("run", "kept", "You may copy", "-n", "4", env=env)
    assert answer.code == 0, answer.err
    foreground.send_signal(signal.SIGINT)
    stopped = await ended(foreground)
    assert stopped.code == 0
    assert "stopped" in stopped.err
    assert "serving" in stopped.err  # the services' logs were shown
    assert "Traceback" not in stopped.err
    assert traces.leftovers() == []
    assert processes_of(tmp_path) == []
    assert read_state(DataFolder.at(tmp_path)) is None


async def running(data_dir: Path) -> ClusterState:
    folder = DataFolder.at(data_dir)

    async def is_up() -> bool:
        state = read_state(folder)
        return state is not None and state.is_running

    await until(is_up, "the cluster is up", within_s=120)
    state = read_state(folder)
    assert state is not None
    return state


@pytest.mark.parametrize("times", [1, 2])
async def test_ctrl_c_during_the_start_stops_cleanly(tmp_path: Path, times: int) -> None:
    foreground = await start("-m", "brisk_client.cli", *UP, env=environment(tmp_path))

    async def has_begun() -> bool:
        return (tmp_path / "logs" / "worker.log").exists()

    await until(has_begun, "the worker is being started")
    for _ in range(times):
        foreground.send_signal(signal.SIGINT)
    stopped = await ended(foreground)
    assert stopped.code == 130, stopped.err
    assert processes_of(tmp_path) == []
    assert not (tmp_path / "run" / "redis.sock").exists()


async def test_killing_the_launcher_takes_everything_with_it(tmp_path: Path) -> None:
    env = environment(tmp_path)
    assert (await brisk(*UP, "--detach", env=env)).code == 0
    state = await running(tmp_path)
    os.kill(state.pid, signal.SIGKILL)

    async def all_gone() -> bool:
        return processes_of(tmp_path) == []

    await until(all_gone, "the services end with their launcher", within_s=60)
    assert (await brisk("down", env=env)).code == 0  # the stale state file fools nobody
    assert (await brisk("ls", env=env)).code == 4


async def test_a_port_that_is_taken_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        up = await brisk("up", "--detach", "--port", port, env=environment(tmp_path))
    assert up.code == 1
    assert "BRISK_ROUTER_LISTEN" in up.err
    assert port in up.err
    assert "Traceback" not in up.err
    assert processes_of(tmp_path) == []


async def test_a_redis_that_does_not_answer_is_named_with_its_setting(tmp_path: Path) -> None:
    env = environment(tmp_path, BRISK_REDIS_URL="redis://:hidden@127.0.0.1:1/0")
    up = await brisk(*UP, "--detach", env=env)
    assert up.code == 1
    assert "BRISK_REDIS_URL" in up.err
    assert "hidden" not in up.err
    assert "Traceback" not in up.err
    assert processes_of(tmp_path) == []


async def test_an_external_redis_is_used_and_left_alone(tmp_path: Path, redis_url: str) -> None:
    env = environment(tmp_path, BRISK_REDIS_URL=redis_url)
    up = await brisk(*UP, "--detach", "--json", env=env)
    assert up.code == 0, up.err
    assert json.loads(up.out)["redis_pid"] is None
    assert not (tmp_path / "run" / "redis.sock").exists()
    assert (await brisk("down", env=env)).code == 0
    assert processes_of(tmp_path) == []


async def test_ctrl_c_cancels_a_run(
    cluster: LocalCluster, deploy: Deploy, client: object, tmp_path: Path
) -> None:
    name = await deploy()
    env = environment(tmp_path, BRISK_ENDPOINT=cluster.router_address)
    arguments = ("run", name, "Hello", "-n", "250", "--ignore-eos")
    process = await start("-m", "brisk_client.cli", *arguments, env=env)
    assert process.stdout is not None
    await process.stdout.read(1)
    workers = [state.pid for state in cluster.services if state.kind == "worker"]
    try:
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)  # so that the answer cannot end before we interrupt it
        process.send_signal(signal.SIGINT)
        stopped = await ended(process)
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    assert stopped.code == 130
    assert "Traceback" not in stopped.err


async def test_the_examples_run(
    cluster: LocalCluster, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    env = environment(tmp_path, BRISK_ENDPOINT=cluster.router_address)
    prompt = "You may copy"
    quick = await ended(
        await start(ROOT / "examples" / "quickstart.py", DEMO_MODEL, prompt, env=env)
    )
    assert quick.code == 0, quick.err
    assert quick.out.startswith(prompt)
    assert len(quick.out) > len(prompt) + 20
    stream = await ended(
        await start(ROOT / "examples" / "stream.py", "quickstart", prompt, env=env)
    )
    assert stream.code == 0, stream.err
    assert len(stream.out) > 20
    assert "warm start" in stream.err
    unknown = await ended(await start(ROOT / "examples" / "stream.py", "nothing", "x", env=env))
    assert unknown.code == 1
    assert "MODEL_NOT_FOUND" in unknown.err
    assert (await brisk("rm", "quickstart", env=env)).code == 0


async def test_a_relative_folder_works_from_any_place(
    cluster: LocalCluster, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(folder_of("llama"), tmp_path / "here" / "model")
    env = environment(tmp_path, BRISK_ENDPOINT=cluster.router_address)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "brisk_client.cli", "deploy", "relative", "--from", "model"),
        env=env,
        cwd=tmp_path / "here",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    deployed = await ended(process)
    assert deployed.code == 0, deployed.err
    assert (await brisk("rm", "relative", env=env)).code == 0
