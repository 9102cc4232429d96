"""The asynchronous client: one connection to a router, one method per call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, Unpack

from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk.control.v1.control_service_pb2_grpc import ControlServiceStub
from brisk.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from brisk_client import channel, replies, requests
from brisk_client.connection import Connection
from brisk_client.endpoint import resolve_endpoint
from brisk_client.errors import StreamBrokenError
from brisk_client.explanation import Explanation
from brisk_client.requests import Message, SamplingOptions, ScaleOptions, Tool
from brisk_client.results import (
    ClusterView,
    Deployment,
    DeploymentDetail,
    ImportProgress,
    Instance,
    ModelInfo,
    Tokenized,
)
from brisk_client.stream import AsyncStream, EventCall, ProgressCallback

GENERATE_TIMEOUT_S = 300.0
CONTROL_TIMEOUT_S = 30.0
IMPORT_TIMEOUT_S = 3_600.0

ImportCallback = Callable[[ImportProgress], None]


class AsyncClient:
    """A client for one cluster; use it in one event loop, as a context manager or with `close`.

    `endpoint` is "host:port" of a router; left out, `BRISK_ENDPOINT`, else the cluster that
    `brisk up` runs on this machine, else 127.0.0.1:7480. `timeout_s` replaces the default
    deadlines (5 minutes for an answer, 30 s for a control call, an hour for an import). All calls
    raise BriskError; cancelling one cancels the work behind it.
    """

    def __init__(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> None:
        self._connection = Connection(resolve_endpoint(endpoint), timeout_s=timeout_s)

    @property
    def endpoint(self) -> str:
        """Return the router's address."""
        return self._connection.endpoint

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; answers under way end. Idempotent."""
        await self._connection.close()

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
    ) -> AsyncStream:
        """Return the continuation of `prompt`, a text or token ids, as a stream.

        Nothing is sent before the stream is read. With `want_progress` the stream's `events()`
        tell how a cold start goes; `on_progress` is called with each of them.
        """
        chosen_id = channel.parse_request_id(request_id or channel.new_request_id())
        request = requests.generate(
            model,
            prompt,
            sampling,
            request_id=chosen_id,
            want_progress=want_progress or on_progress is not None,
        )

        def start(remaining_s: float) -> EventCall:
            stub = InferenceServiceStub(self._connection.open())
            return stub.Generate(request, timeout=remaining_s, metadata=channel.metadata(chosen_id))

        return self._stream(start, chosen_id, timeout_s, on_progress, request.choices)

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
    ) -> AsyncStream:
        """Return the next turn of a conversation as a stream; see `generate`.

        The chat template shows `tools`, objects of OpenAI's form, to the model; what it calls
        comes as it writes it, as text.
        """
        chosen_id = channel.parse_request_id(request_id or channel.new_request_id())
        request = requests.chat(
            model,
            messages,
            sampling,
            tools=tools,
            request_id=chosen_id,
            want_progress=want_progress or on_progress is not None,
        )

        def start(remaining_s: float) -> EventCall:
            stub = InferenceServiceStub(self._connection.open())
            return stub.Chat(request, timeout=remaining_s, metadata=channel.metadata(chosen_id))

        return self._stream(start, chosen_id, timeout_s, on_progress, request.choices)

    async def tokenize(
        self,
        model: str,
        prompt: str | Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        timeout_s: float | None = None,
    ) -> Tokenized:
        """Return what a model makes of a text or a conversation, starting it if it is at zero."""
        request = requests.tokenize(model, prompt, tools)
        reply = await self._connection.unary(
            lambda opened: InferenceServiceStub(opened).Tokenize,
            request,
            timeout_s=self._connection.deadline_s(timeout_s, GENERATE_TIMEOUT_S),
        )
        return replies.tokenized(reply)

    async def import_model(
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
        request = requests.import_model(source, name, as_is=as_is)
        message = await self._connection.last(
            lambda opened: ControlServiceStub(opened).Import,
            request,
            lambda reply: _tell(on_progress, reply.progress),
            timeout_s=self._connection.deadline_s(timeout_s, IMPORT_TIMEOUT_S),
        )
        if not message.HasField("model"):
            raise StreamBrokenError("the import ended without a model")
        return replies.model_info(message.model)

    async def deploy(
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
        """Make a model available under `name` and return the deployment.

        `source` is a folder or URL to import first, as `import_model` takes it, with its `as_is`;
        `model` is an imported model's name. `keep_alive_s` is how long an idle instance stays:
        0 not at all, math.inf for ever, left out 5 minutes.
        How many instances there are, and whose requests go first, is in `ScaleOptions`.
        Replaces a deployment of the same name. Cancelling leaves the deployments as they were.
        """
        request = requests.deploy(
            name=name,
            source=source,
            model=model,
            revision=revision,
            keep_alive_s=keep_alive_s,
            slots=slots,
            context_tokens_max=context_tokens_max,
            as_is=as_is,
            scale=scale,
        )
        message = await self._connection.last(
            lambda opened: ControlServiceStub(opened).Deploy,
            request,
            lambda reply: _tell(on_progress, reply.progress),
            timeout_s=self._connection.deadline_s(timeout_s, IMPORT_TIMEOUT_S),
        )
        if not message.HasField("deployment"):
            raise StreamBrokenError("the deploy call ended without a deployment")
        return replies.deployment(message.deployment)

    async def delete(
        self, name: str, *, keep_files: bool = False, timeout_s: float | None = None
    ) -> None:
        """Remove a deployment; what it is answering ends well first. Raises NotFoundError."""
        request = control_pb2.DeleteRequest(name=name, keep_files=keep_files)
        await self._connection.unary(
            lambda opened: ControlServiceStub(opened).Delete,
            request,
            timeout_s=self._connection.deadline_s(timeout_s, CONTROL_TIMEOUT_S),
            retry=False,  # a second attempt could report the first one's success as NOT_FOUND
        )

    async def list_models(self, *, timeout_s: float | None = None) -> tuple[Deployment, ...]:
        """Return all deployments, those at zero included, sorted by name."""
        request = control_pb2.ListModelsRequest()
        reply = await self._connection.unary(
            lambda opened: ControlServiceStub(opened).ListModels,
            request,
            timeout_s=self._connection.deadline_s(timeout_s, CONTROL_TIMEOUT_S),
        )
        return tuple(replies.deployment(entry) for entry in reply.deployments)

    async def get_model(self, name: str, *, timeout_s: float | None = None) -> DeploymentDetail:
        """Return one deployment and its instances. Raises NotFoundError naming near matches."""
        request = control_pb2.GetModelRequest(name=name)
        reply = await self._connection.unary(
            lambda opened: ControlServiceStub(opened).GetModel,
            request,
            timeout_s=self._connection.deadline_s(timeout_s, CONTROL_TIMEOUT_S),
        )
        return replies.deployment_detail(reply)

    async def nodes(self, *, timeout_s: float | None = None) -> ClusterView:
        """Return all nodes with their workers, and who leads."""
        request = control_pb2.ListNodesRequest()
        reply = await self._connection.unary(
            lambda opened: ControlServiceStub(opened).ListNodes,
            request,
            timeout_s=self._connection.deadline_s(timeout_s, CONTROL_TIMEOUT_S),
        )
        return replies.cluster_view(reply)

    async def instances(self, *, timeout_s: float | None = None) -> tuple[Instance, ...]:
        """Return the instances of all deployments."""
        request = control_pb2.ListInstancesRequest()
        reply = await self._connection.unary(
            lambda opened: ControlServiceStub(opened).ListInstances,
            request,
            timeout_s=self._connection.deadline_s(timeout_s, CONTROL_TIMEOUT_S),
        )
        return tuple(replies.instance(entry) for entry in reply.instances)

    async def explain(self, name: str, *, timeout_s: float | None = None) -> Explanation:
        """Return why a start went where it went, by a request's id, a placement's or an instance's.

        Raises NotFoundError: the scheduler keeps the newest few thousand, and only requests that
        it was asked about.
        """
        request = control_pb2.ExplainRequest(id=name)
        reply = await self._connection.unary(
            lambda opened: ControlServiceStub(opened).Explain,
            request,
            timeout_s=self._connection.deadline_s(timeout_s, CONTROL_TIMEOUT_S),
        )
        return replies.explanation(reply)

    def _stream(
        self,
        start: Callable[[float], EventCall],
        request_id: str,
        timeout_s: float | None,
        on_progress: ProgressCallback | None,
        choices: int,
    ) -> AsyncStream:
        return AsyncStream(
            start,
            self._connection,
            timeout_s=self._connection.deadline_s(timeout_s, GENERATE_TIMEOUT_S),
            request_id=request_id,
            choices=choices,
            on_progress=on_progress,
        )


def _tell(on_progress: ImportCallback | None, progress: control_pb2.ImportProgress) -> None:
    if on_progress is not None:
        on_progress(replies.import_progress(progress))
