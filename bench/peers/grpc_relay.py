"""The floor for any gRPC router: a relay that knows nothing and passes bytes on.

`python -m bench.peers.grpc_relay HOST:PORT` prints the port that it took and relays every call
with one request and a stream of answers to HOST:PORT, until it is stopped.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import uvloop


class Relay(grpc.GenericRpcHandler):
    """Takes any method and forwards it under its own name."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Forward to `channel`."""
        self._channel = channel

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return the handler of one call."""
        forward: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            call.method
        )

        async def relay(
            request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
        ) -> AsyncIterator[bytes]:
            async for answer in forward(request, timeout=context.time_remaining()):
                yield answer

        return grpc.unary_stream_rpc_method_handler(relay)


async def main(backend: str) -> None:
    """Relay to `backend` from a port of the kernel's choice until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    async with grpc.aio.insecure_channel(backend) as channel:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Relay(channel),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        await stop.wait()
        await server.stop(grace=None)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
