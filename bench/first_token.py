"""Ways to the first token of a warm request, each timed from the call to that token.

Every way reads its answer to the end, so that nothing of one request is left when the next begins.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from brisk.common.v1.model_pb2 import Prompt, SamplingParams, TokenChunk
from brisk.inference.v1.inference_service_pb2 import GenerateRequest as RouterRequest
from brisk.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from brisk.worker.v1.worker_service_pb2 import GenerateRequest as WorkerRequest
from brisk.worker.v1.worker_service_pb2_grpc import WorkerServiceStub

from services.common.channel import open_channel

PROMPT = "You may copy and distribute the Program in object code or executable form"
TOKENS = 4
CALL_S_MAX = 30.0


class NoTokenError(Exception):
    """A way answered without a token, so that there is nothing to time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the ways lead: three addresses as "host:port", and what to ask for there."""

    worker: str
    relay: str
    router: str
    instance_id: str
    deployment: str


class GrpcWays:
    """The ways to one instance over gRPC. Make, use and close it in one event loop."""

    def __init__(self, places: Places) -> None:
        """Open the channels; the first calls connect them."""
        self._places, self._number = places, 0
        addresses = (places.worker, places.relay, places.router)
        self._channels = tuple(open_channel(address) for address in addresses)
        self._worker, self._relay = (WorkerServiceStub(one) for one in self._channels[:2])
        self._router = InferenceServiceStub(self._channels[2])

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()

    async def by_worker(self) -> float:
        """Return the milliseconds to the first token straight from the worker."""
        request = self._worker_request()
        return await _first_ms(lambda: self._worker.Generate(request, timeout=CALL_S_MAX))

    async def by_relay(self) -> float:
        """Return the milliseconds to the first token through the relay."""
        request = self._worker_request()
        return await _first_ms(lambda: self._relay.Generate(request, timeout=CALL_S_MAX))

    async def by_router(self) -> float:
        """Return the milliseconds to the first token through the router."""
        request = RouterRequest(
            request_id=self._request_id(),
            model=self._places.deployment,
            prompt=Prompt(text=PROMPT),
            sampling=_sampling(),
        )
        return await _first_ms(lambda: self._router.Generate(request, timeout=CALL_S_MAX))

    def _worker_request(self) -> WorkerRequest:
        return WorkerRequest(
            request_id=self._request_id(),
            instance_id=self._places.instance_id,
            prompt=Prompt(text=PROMPT),
            sampling=_sampling(),
        )

    def _request_id(self) -> str:
        self._number += 1
        return f"bench-{self._number}"


def _sampling() -> SamplingParams:
    return SamplingParams(temperature=0.0, seed=1, max_tokens=TOKENS, ignore_eos=True)


class _Answer(Protocol):
    @property
    def chunk(self) -> TokenChunk: ...


async def _first_ms(call: Callable[[], AsyncIterable[_Answer]]) -> float:
    """Return the milliseconds from `call` to its first token. Raises NoTokenError, AioRpcError."""
    first_ms = None
    started_s = perf_counter()
    async for answer in call():
        if first_ms is None and answer.chunk.token_ids:
            first_ms = (perf_counter() - started_s) * 1e3
    if first_ms is None:
        raise NoTokenError("a stream ended without a token")
    return first_ms


class HttpWay:
    """The way to an OpenAI-compatible server on loopback, on one connection that is kept."""

    def __init__(self, port: int, model: str) -> None:
        """Ask the server at `port` for `model`; the first call connects."""
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_S_MAX)
        message = {"role": "user", "content": PROMPT}
        body = {"model": model, "stream": True, "max_tokens": TOKENS, "messages": [message]}
        self._path, self._body = "/v1/chat/completions", json.dumps(body)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def first_ms(self) -> float:
        """Return the milliseconds to the first text. Raises NoTokenError, OSError."""
        headers = {"content-type": "application/json", "authorization": "Bearer none"}
        started_s = perf_counter()
        self._connection.request("POST", self._path, self._body, headers)
        answer = self._connection.getresponse()
        while line := answer.readline():
            if line.startswith(b"data: {") and _text(line):
                first_ms = (perf_counter() - started_s) * 1e3
                answer.read()
                return first_ms
        raise NoTokenError(f"status {answer.status} without a token")


def _text(line: bytes) -> str:
    choices = json.loads(line.removeprefix(b"data: "))["choices"]
    return str(choices[0]["delta"].get("content") or "") if choices else ""
