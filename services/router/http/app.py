"""The paths of the OpenAI-compatible endpoint and what each one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from services.common.clock import wall_clock
from services.common.deadline import Deadline
from services.common.errors import (
    BriskError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from services.common.names import ModelName, parse_model_name
from services.router.front import Front, generate, tokenize
from services.router.http.answers import Envelope, StreamedAnswer, WholeAnswer
from services.router.http.body import Bodies
from services.router.http.endpoint import Call, Endpoint, Handler, no_such_path, while_connected
from services.router.http.orders import Order, parse_chat, parse_completion, parse_tokenize
from services.router.http.shapes import ChatShape, CompletionShape, Shape, spelled
from services.router.job import Job
from services.router.metrics import RequestMeter
from services.router.ports import Catalog, ModelCard

_CATALOG_S_MAX: Final = 30.0  # an election takes a few seconds
_RETRY_AFTER_S: Final = 1.0
_OWNER: Final = "brisk"


class OpenAiFace:
    """Turns requests into jobs and answers into OpenAI's objects."""

    def __init__(self, front: Front, catalog: Catalog, bodies: Bodies) -> None:
        self._front = front
        self._catalog = catalog
        self._bodies = bodies

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        paths: dict[str, dict[str, Handler]] = {
            "/health": {"GET": _health},
            "/ready": {"GET": self._ready},
            "/v1/models": {"GET": self._models},
            "/v1/models/{model:path}": {"GET": self._model},
            "/v1/chat/completions": {"POST": self._generation(parse_chat, ChatShape())},
            "/v1/completions": {"POST": self._generation(parse_completion, CompletionShape())},
            "/tokenize": {"POST": self._tokenize},
        }
        routes = [
            Route(path, Endpoint(path.replace(":path", ""), handlers))
            for path, handlers in paths.items()
        ]
        return Router(routes, redirect_slashes=False, default=no_such_path)

    async def _ready(self, call: Call) -> None:
        """Answer 200 if a request would be let in."""
        if self._front.farewell.is_leaving:
            raise UnavailableError(
                "this router is shutting down",
                reason=Reason.SHUTTING_DOWN,
                retry_after_s=_RETRY_AFTER_S,
            )
        await call.reply.json({"status": "ready"})

    async def _models(self, call: Call) -> None:
        """List the models."""
        deadline = Deadline.after(_CATALOG_S_MAX)
        async with while_connected(call.receive), self._front.farewell.stream(deadline):
            cards = await self._catalog.models(deadline)
        await call.reply.json({"object": "list", "data": [_model_object(card) for card in cards]})

    async def _model(self, call: Call) -> None:
        """Describe one model."""
        name = _existing(str(call.parameters["model"]))
        deadline = Deadline.after(_CATALOG_S_MAX)
        async with while_connected(call.receive), self._front.farewell.stream(deadline):
            card = await self._catalog.model(name, deadline)
        await call.reply.json(_model_object(card))

    async def _tokenize(self, call: Call) -> None:
        """Turn a prompt into tokens."""
        order = parse_tokenize(await self._bodies.json(call))
        deadline = Deadline.after(self._front.request_s_default)
        async with while_connected(call.receive):
            tokenized = await tokenize(self._front, lambda: order.job(call.request_id, deadline))
        names = [spelled(piece) for piece in tokenized.pieces] if order.wants_names else None
        await call.reply.json(
            {
                "count": len(tokenized.token_ids),
                "max_model_len": tokenized.context_tokens_max,
                "tokens": list(tokenized.token_ids),
                "token_strs": names,
            }
        )

    def _generation(self, parse: Callable[[Any], Order], shape: Shape) -> Handler:
        async def handle(call: Call) -> None:
            body = await self._bodies.json(call)
            try:
                order = parse(body)
            except BriskError as error:
                RequestMeter().failed(error.reason)  # counted as a gRPC request is
                raise
            async with while_connected(call.receive):
                answer = _answer(call, order, shape)
                async with answer:
                    await generate(self._front, lambda: self._job(call, order), answer)
            await answer.end()

        return handle

    def _job(self, call: Call, order: Order) -> Job:
        return order.job(call.request_id, Deadline.after(self._front.request_s_default))


def _answer(call: Call, order: Order, shape: Shape) -> WholeAnswer | StreamedAnswer:
    envelope = Envelope(
        answer_id=shape.prefix + call.request_id,
        created_s=int(wall_clock().timestamp()),
        model=order.model,
    )
    if order.is_streamed:
        return StreamedAnswer(call.reply, shape, envelope, wants_usage=order.wants_usage)
    return WholeAnswer(call.reply, shape, envelope)


def _existing(given: str) -> ModelName:
    """Return a name that a model may have. Raises NotFoundError: no other can exist."""
    try:
        return parse_model_name(given)
    except InvalidArgumentError as error:
        raise NotFoundError(error.message, reason=Reason.MODEL_NOT_FOUND) from error


async def _health(call: Call) -> None:
    """Answer 200 as long as the process lives."""
    await call.reply.json({"status": "ok"})


def _model_object(card: ModelCard) -> dict[str, object]:
    """Return OpenAI's model object, with what Brisk adds behind it."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created_at_s,
        "owned_by": _OWNER,
        "state": str(card.state),
        "instances_ready": card.instances_ready,
        "instances_loading": card.instances_loading,
        "max_model_len": card.context_tokens_max or None,
    }
