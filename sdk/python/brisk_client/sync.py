"""The synchronous client: the same calls as `AsyncClient`, over one background event loop.

Kept by hand; a test compares the two signatures. It must not be used from the background loop
itself, and may be used from any number of threads.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

from brisk_client.client import AsyncClient, ImportCallback
from brisk_client.explanation import Explanation
from brisk_client.loop_thread import LoopThread
from brisk_client.requests import Message, SamplingOptions, ScaleOptions, Tool
from brisk_client.results import (
    Chunk,
    ClusterView,
    Completion,
    Deployment,
    DeploymentDetail,
    FinishReason,
    Instance,
    ModelInfo,
    Progress,
    StartReport,
    Tokenized,
    Usage,
)
from brisk_client.stream import AsyncStream, ProgressCallback

T = TypeVar("T")


class Stream:
    """An answer under way; get one from `Client.generate` or `.chat`. Leaving it cancels it."""

    def __init__(self, inner: AsyncStream, loop: LoopThread) -> None:
        self._inner = inner
        self._loop = loop

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Chunk]:
        return self._iterate(self._inner.__aiter__)

    def events(self) -> Iterator[Progress | Chunk]:
        """Return an iterator over progress (if it was asked for) and chunks."""
        return self._iterate(self._inner.events)

    @property
    def request_id(self) -> str:
        """Return the id under which the services log this request."""
        return self._inner.request_id

    @property
    def start(self) -> StartReport | None:
        """Return how the request got to its first token; None before the first chunk."""
        return self._inner.start

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return why the answer ended; None before the last chunk."""
        return self._inner.finish_reason

    @property
    def usage(self) -> Usage | None:
        """Return the token counts; None before the last chunk."""
        return self._inner.usage

    def result(self) -> Completion:
        """Read to the end and return the whole answer, the first one if several were asked for."""
        return self._loop.run(self._inner.result())

    def results(self) -> tuple[Completion, ...]:
        """Read to the end and return all answers."""
        return self._loop.run(self._inner.results())

    def text(self) -> str:
        """Read to the end and return the text."""
        return self.result().text

    def cancel(self) -> None:
        """End the request now. Safe to call repeatedly and from any thread."""
        self._loop.call(self._inner.cancel)

    def _iterate(self, make: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        iterator = make()

        async def following() -> T | None:
            return await anext(iterator, None)

        try:
            while (item := self._loop.run(following())) is not None:
                yield item
        finally:
            self.cancel()


class Client:
    """A client for one cluster; see `AsyncClient` for the arguments. Close it after use."""

    def __init__(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> None:
        self._inner = AsyncClient(endpoint, timeout_s=timeout_s)
        self._loop = LoopThread("brisk-client")

    @property
    def endpoint(self) -> str:
        """Return the router's address."""
        return self._inner.endpoint

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the background thread. Idempotent."""
        if self._loop.is_open:
            self._loop.run(self._inner.close())
            self._loop.close()

    def generate(
        self,
        model: str,
        prompt: str | Sequence[int],
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
        want_progress: bool = False,
        on_progress: ProgressCallback | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Return the continuation of `prompt`; `on_progress` runs in the background thread."""
        inner = self._inner.generate(
            model,
            prompt,
            request_id=request_id,
            timeout_s=timeout_s,
            want_progress=want_progress,
            on_progress=on_progress,
            **sampling,
        )
        return Stream(inner, self._loop)

    def chat(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        request_id: str | None = None,
        timeout_s: float | None = None,
        want_progress: bool = False,
        on_progress: ProgressCallback | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Return the next turn of a conversation; see `generate`."""
        inner = self._inner.chat(
            model,
            messages,
            tools=tools,
            request_id=request_id,
            timeout_s=timeout_s,
            want_progress=want_progress,
            on_progress=on_progress,
            **sampling,
        )
        return Stream(inner, self._loop)

    def tokenize(
        self,
        model: str,
        prompt: str | Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        timeout_s: float | None = None,
    ) -> Tokenized:
        """Return what a model makes of a text or a conversation, starting it if it is at zero."""
        return self._loop.run(self._inner.tokenize(model, prompt, tools=tools, timeout_s=timeout_s))

    def import_model(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        as_is: bool = False,
        on_progress: ImportCallback | None = None,
        timeout_s: float | None = None,
    ) -> ModelInfo:
        """Bring a Hugging Face folder into the store and return what was published.

        Its weights are written in the stored form, one safetensors file laid out for loading;
        with `as_is` they keep their files. `source` is a folder, or a URL that the store managers
        fetch: s3://BUCKET/PREFIX, http(s)://HOST/FOLDER, hf://OWNER/NAME[@REVISION] or file://.
        """
        return self._loop.run(
            self._inner.import_model(
                source, name=name, as_is=as_is, on_progress=on_progress, timeout_s=timeout_s
            )
        )

    def deploy(
        self,
        name: str | None = None,
        *,
        source: str | os.PathLike[str] | None = None,
        model: str | None = None,
        revision: str | None = None,
        keep_alive_s: float | None = None,
        slots: int | None = None,
        context_tokens_max: int | None = None,
        as_is: bool = False,
        on_progress: ImportCallback | None = None,
        timeout_s: float | None = None,
        **scale: Unpack[ScaleOptions],
    ) -> Deployment:
        """Make a model available under `name` and return the deployment."""
        return self._loop.run(
            self._inner.deploy(
                name,
                source=source,
                model=model,
                revision=revision,
                keep_alive_s=keep_alive_s,
                slots=slots,
                context_tokens_max=context_tokens_max,
                as_is=as_is,
                on_progress=on_progress,
                timeout_s=timeout_s,
                **scale,
            )
        )

    def delete(
        self, name: str, *, keep_files: bool = False, timeout_s: float | None = None
    ) -> None:
        """Remove a deployment; what it is answering ends well first."""
        self._loop.run(self._inner.delete(name, keep_files=keep_files, timeout_s=timeout_s))

    def list_models(self, *, timeout_s: float | None = None) -> tuple[Deployment, ...]:
        """Return all deployments, those at zero included, sorted by name."""
        return self._loop.run(self._inner.list_models(timeout_s=timeout_s))

    def get_model(self, name: str, *, timeout_s: float | None = None) -> DeploymentDetail:
        """Return one deployment and its instances."""
        return self._loop.run(self._inner.get_model(name, timeout_s=timeout_s))

    def nodes(self, *, timeout_s: float | None = None) -> ClusterView:
        """Return all nodes with their workers, and who leads."""
        return self._loop.run(self._inner.nodes(timeout_s=timeout_s))

    def instances(self, *, timeout_s: float | None = None) -> tuple[Instance, ...]:
        """Return the instances of all deployments."""
        return self._loop.run(self._inner.instances(timeout_s=timeout_s))

    def explain(self, name: str, *, timeout_s: float | None = None) -> Explanation:
        """Return why a start went where it went; see `AsyncClient.explain`."""
        return self._loop.run(self._inner.explain(name, timeout_s=timeout_s))
