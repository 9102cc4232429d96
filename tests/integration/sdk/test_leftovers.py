"""A port counts as left behind if a process of ours listens on it, and only then."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from brisk_client.local.leftovers import Traces

LISTENER = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()
"""
PARENT = f"""
import subprocess, sys
sys.exit(subprocess.run([sys.executable, "-c", {LISTENER!r}]).returncode)
"""
Listen = Callable[..., tuple[int, str]]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Start a program that listens and return its process id and the address."""
    processes: list[subprocess.Popen[str]] = []

    def start(program: str = LISTENER, **variables: str) -> tuple[int, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={"PATH": os.environ["PATH"], **variables},
        )
        processes.append(process)
        assert process.stdout is not None
        return process.pid, f"127.0.0.1:{int(process.stdout.readline())}"

    yield start
    for process in processes:
        process.communicate()  # the end of its input is its end


def test_a_strangers_listener_on_a_released_port_is_not_left_behind(
    listen: Listen, tmp_path: Path
) -> None:
    _, address = listen(BRISK_DATA_DIR=f"{tmp_path}-of-another")
    assert Traces(addresses={address}, folder=tmp_path).leftovers() == []


def test_a_process_that_we_started_and_that_still_listens_is_left_behind(
    listen: Listen,
) -> None:
    pid, address = listen()
    found = Traces(addresses={address}, pids={pid}).leftovers()
    assert found == [f"process {pid} runs", f"port {address} is open"]


def test_a_listener_in_the_session_of_a_process_of_ours_is_left_behind(listen: Listen) -> None:
    session, address = listen(PARENT)
    found = Traces(addresses={address}, pids={session}).leftovers()
    assert f"port {address} is open" in found


@pytest.mark.parametrize("below", ["", "/run/worker.json"])
def test_a_listener_that_knows_our_data_folder_is_left_behind(
    listen: Listen, tmp_path: Path, below: str
) -> None:
    _, address = listen(BRISK_WORKER_READY_FILE=f"{tmp_path}{below}")
    assert Traces(addresses={address}, folder=tmp_path).leftovers() == [f"port {address} is open"]
