"""A store manager as its own process, and models that are slow or large to import."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import brisk_native
import grpc
from brisk.storage.v1 import storage_service_pb2 as pb
from brisk.storage.v1 import storage_service_pb2_grpc as pb_grpc

from tests.broken_models import WEIGHTS, good_folder

START_S_MAX: Final = 60.0  # of a busy machine
STOP_S_MAX: Final = 30.0
SLOW_BYTES: Final = 512 << 30  # all holes: takes minutes to read and no room at all

Stub: TypeAlias = "pb_grpc.StorageServiceAsyncStub"

# Holes that take a second or two to read.
SECONDS_BYTES: Final = 8 << 30 if brisk_native.IMPLEMENTATION == "native" else 16 << 20


class NodeError(AssertionError):
    """The process did not do what the test needs."""


class Node:
    """One store manager. Its log lines arrive as they are written."""

    def __init__(self, data_dir: Path, redis_url: str, **settings: str) -> None:
        self.data_dir = data_dir
        self.redis_url = redis_url
        self.settings = settings
        self.address = ""
        self.lines: list[str] = []
        self._fresh: queue.Queue[str | None] = queue.Queue()

    def launch(self, *prefix: str) -> None:
        """Start the process; `prefix` is a command that runs it."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("BRISK_")
        }
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "services.storemgr"],
            env=environment
            | {
                "BRISK_STOREMGR_DATA_DIR": str(self.data_dir),
                "BRISK_REDIS_URL": self.redis_url,
                "BRISK_NODE_ID": "node-1",
                "BRISK_LOG_FORMAT": "json",
                "BRISK_STOREMGR_READY_FILE": str(self.ready_file),
                "BRISK_ANNOUNCE_S": "0",
                "BRISK_STOREMGR_ARENA_BYTES": "0",
            }
            | self.settings,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def start(self, *prefix: str) -> None:
        """Start the process and wait until it serves."""
        self.launch(*prefix)
        self.address = str(self.wait_for("serving")["address"])

    @property
    def ready_file(self) -> Path:
        """Where the process says that it is ready."""
        return self.data_dir.parent / "ready.json"

    @property
    def staging(self) -> Path:
        """Where models are put together."""
        return self.data_dir / "store" / "staging"

    def wait_for(self, message: str) -> dict[str, object]:
        """Return the next log line with `message`. Raises NodeError if the process ends first."""
        while True:
            line = self._fresh.get(timeout=START_S_MAX)
            if line is None:
                raise NodeError(f"no {message!r} in:\n{self.log}")
            if line.startswith("{"):
                event: dict[str, object] = json.loads(line)
                if event["message"] == message:
                    return event

    @property
    def log(self) -> str:
        """All that the process wrote so far."""
        return "".join(self.lines)

    def terminate(self) -> int:
        """Ask the process to stop and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End the process as a crash would, with no chance to clean up."""
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        """Return the exit code once the process has ended."""
        code = self.process.wait(STOP_S_MAX)
        self._reader.join()
        return code

    def close(self) -> None:
        """End the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def metrics(self) -> str:
        """Return what the process exports."""
        address = json.loads(self.ready_file.read_text())["metrics"]
        with urllib.request.urlopen(f"http://{address}/metrics") as answer:
            text: str = answer.read().decode()
        return text

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            self._fresh.put(line)
        self._fresh.put(None)


@contextmanager
def running(node: Node, *prefix: str) -> Iterator[Node]:
    """Run `node` for the block."""
    try:
        node.start(*prefix)
        yield node
    finally:
        node.close()


@asynccontextmanager
async def stub_of(node: Node) -> AsyncIterator[Stub]:
    """Give a client of `node`."""
    async with grpc.aio.insecure_channel(node.address) as channel:
        yield pb_grpc.StorageServiceStub(channel)


async def import_folder(
    stub: Stub, folder: Path, name: str = "", *, as_is: bool = False
) -> list[pb.ImportResponse]:
    """Import `folder` and return all that was answered."""
    request = pb.ImportRequest(source_path=str(folder), name=name, as_is=as_is)
    return [response async for response in stub.Import(request, timeout=60)]


async def describe(stub: Stub) -> pb.DescribeResponse:
    """Return the state of the store."""
    return await stub.Describe(pb.DescribeRequest(), timeout=30)


def slow_folder(folder: Path, size: int = SLOW_BYTES) -> Path:
    """Write a sound model whose weights take minutes to read, yet no room."""
    good_folder(folder)
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"weights": entry}).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    return folder


def names_in(folder: Path) -> set[str]:
    """Return what lies in `folder`."""
    return {path.name for path in folder.iterdir()}


def size_of(folder: Path) -> int:
    """Return the bytes of all files of `folder`."""
    return sum(path.stat().st_size for path in folder.iterdir())


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return the files of `folder`."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bytes_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return what would show that a file of `folder` was written: inode, size and time."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }
