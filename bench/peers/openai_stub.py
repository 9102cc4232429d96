"""A backend for HTTP proxies: speaks just enough of OpenAI's streaming API, and costs nothing.

`python -m bench.peers.openai_stub` prints the port that it took and serves until it is stopped.
"""

from __future__ import annotations

import asyncio
import json
import signal

import uvloop

TOKENS = 4
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


def _event(body: str) -> bytes:
    """Return one server-sent event as one HTTP chunk."""
    text = f"data: {body}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(text), text)


def _delta(content: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": content}}
    chunk = {
        "id": "chatcmpl-stub",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "stub",
        "choices": [{**choice, "finish_reason": finish}],
    }
    return _event(json.dumps(chunk))


_EVENTS = (
    *(_delta(f"word{number} ") for number in range(TOKENS)),
    _delta("", "stop"),
    _event("[DONE]"),
    b"0\r\n\r\n",
)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection: every POST gets the same short stream."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            await reader.readexactly(length)
            if not head.startswith(b"POST /v1/chat/completions"):
                writer.write(_NOT_FOUND)
                continue
            writer.write(_HEAD)
            for event in _EVENTS:
                writer.write(event)
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has left
    finally:
        writer.close()


async def main() -> None:
    """Serve on a port of the kernel's choice until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(main())
