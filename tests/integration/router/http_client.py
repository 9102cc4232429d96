"""A client that sends exactly the bytes it is told to, well-formed or not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error object; every failure must have one."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error


class Connection:
    """One TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        """Send a request."""
        sent = {"host": "test", "content-length": str(len(body))} | (headers or {})
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in sent.items())]
        await self.raw("\r\n".join((*lines, "", "")).encode() + body)

    async def raw(self, content: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(content)
        await self.writer.drain()

    async def head(self) -> HttpAnswer:
        """Read a response up to its body."""
        status_line, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.split(": ", 1) for line in lines if line)
        return HttpAnswer(int(status_line.split()[1]), headers, b"")

    async def answer(self) -> HttpAnswer:
        """Read a whole response."""
        head = await self.head()
        if "content-length" in head.headers:
            body = await self.reader.readexactly(int(head.headers["content-length"]))
        else:
            body = b"".join([part async for part in self.parts()])
        return HttpAnswer(head.status, head.headers, body)

    async def parts(self) -> AsyncIterator[bytes]:
        """Read the chunks of a body as they come."""
        while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def is_closed(self) -> bool:
        """Wait for the server to close; return False if it says something more."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Connection]:
    """Connect for the block; leaving it cuts the connection."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


async def ask(
    address: str,
    method: str,
    path: str,
    body: bytes | dict[str, Any] = b"",
    headers: dict[str, str] | None = None,
) -> HttpAnswer:
    """Send one request on a connection of its own and return the response."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    typed = {"content-type": "application/json"} if content else {}
    async with connect(address) as connection:
        await connection.send(method, path, content, typed | (headers or {}))
        return await connection.answer()
