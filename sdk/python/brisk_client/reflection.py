"""Talk to any gRPC server through its reflection service: list, describe, call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from brisk_client import channel
from brisk_client.errors import InvalidRequestError, NotFoundError, TimeLimit, from_rpc_error

Symbol = ServiceDescriptor | MethodDescriptor | Descriptor | EnumDescriptor


class _CallDetails(NamedTuple):
    """What grpc wants to know about an intercepted call."""

    method: str
    timeout: float | None
    metadata: object
    credentials: object
    wait_for_ready: bool | None
    compression: object


class _Deadline(grpc.StreamStreamClientInterceptor):
    """Gives reflection's own calls a deadline; the library sets none."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def intercept_stream_stream(self, continuation, client_call_details, request_iterator):  # type: ignore[no-untyped-def]
        """Pass the call on with our deadline."""
        details = _CallDetails(
            method=client_call_details.method,
            timeout=self._timeout_s,
            metadata=client_call_details.metadata,
            credentials=client_call_details.credentials,
            wait_for_ready=client_call_details.wait_for_ready,
            compression=client_call_details.compression,
        )
        return continuation(details, request_iterator)


class ReflectionClient:
    """A synchronous client for one server; use it with `with`. Raises BriskError."""

    def __init__(self, endpoint: str, *, timeout_s: float) -> None:
        self._endpoint = channel.parse_endpoint(endpoint)
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(self._endpoint, options=channel.OPTIONS)
        self._database = ProtoReflectionDescriptorDatabase(
            grpc.intercept_channel(self._channel, _Deadline(timeout_s))
        )
        self._pool = DescriptorPool(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def services(self) -> list[str]:
        """Return the full names of all services."""
        with self._errors():
            return sorted(self._database.get_services())

    def methods(self, service: str) -> list[str]:
        """Return the full names of a service's methods. Raises NotFoundError."""
        found = self.find(service)
        if not isinstance(found, ServiceDescriptor):
            raise InvalidRequestError(f"{service} is no service")
        return [method.full_name for method in found.methods]

    def find(self, name: str) -> Symbol:
        """Return the service, method, message or enum called `name`. Raises NotFoundError."""
        dotted = name.strip(".").replace("/", ".")
        finders = (
            self._pool.FindServiceByName,
            self._pool.FindMessageTypeByName,
            self._pool.FindEnumTypeByName,
            self._method,
        )
        with self._errors():
            for find in finders:
                try:
                    return find(dotted)
                except KeyError:
                    continue
        raise NotFoundError(
            f"{name[:200]} is not known at {self._endpoint}; `brisk grpc list` shows its services",
            reason="SYMBOL_NOT_FOUND",
        )

    def call(self, method: str, request_json: str) -> Iterator[str]:
        """Yield each reply as JSON text. Leaving the iterator cancels the call."""
        found = self.find(method)
        if not isinstance(found, MethodDescriptor):
            raise InvalidRequestError(f"{method} is no method; try SERVICE/METHOD")
        if found.client_streaming:
            raise InvalidRequestError(f"{method} takes a stream of requests: not supported here")
        request = self._request(found, request_json)
        reply_class = GetMessageClass(found.output_type)
        start = self._channel.unary_stream(
            f"/{found.containing_service.full_name}/{found.name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply_class.FromString,
        )
        with self._errors():
            call = start(
                request,
                timeout=self._timeout_s,
                metadata=tuple(channel.metadata(channel.new_request_id())),
            )
            try:
                for reply in call:
                    yield json_format.MessageToJson(
                        reply, descriptor_pool=self._pool, ensure_ascii=False
                    )
            finally:
                call.cancel()

    def _method(self, dotted: str) -> MethodDescriptor:
        service, _, name = dotted.rpartition(".")
        found: ServiceDescriptor = self._pool.FindServiceByName(service)
        return found.methods_by_name[name]

    def _request(self, method: MethodDescriptor, text: str) -> Message:
        request = GetMessageClass(method.input_type)()
        try:
            json_format.Parse(text, request, descriptor_pool=self._pool)
        except json_format.ParseError as exc:
            raise InvalidRequestError(f"not a {method.input_type.full_name}: {exc}") from exc
        return request

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as exc:
            limit = TimeLimit(seconds=self._timeout_s, is_over=False)
            raise from_rpc_error(exc, endpoint=self._endpoint, limit=limit) from exc
