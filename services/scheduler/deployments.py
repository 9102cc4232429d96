"""The deployments as they are stored: one JSON text each, written by the leader only.

The field MARK counts the writes. It tells a store that is empty from one that was lost with all of
Redis, and tells schedulers that stand by when their copy is out of date: after a loss of Redis
whoever leads next writes back what it knows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypedDict

from services.common.errors import BriskError, UnavailableError
from services.common.log import get_logger
from services.common.model import ModelInfo, ModelRef
from services.common.names import parse_model_name
from services.scheduler.deployment import Deployment, Spec
from services.scheduler.ports import Records

log = get_logger(__name__)

MARK: Final = "@"  # no deployment's name, and sorts before them all
_SCHEMA: Final = 1
_TRIES_MAX: Final = 3
_PAUSE_S: Final = 0.1


class Deployments:
    """The deployments as this process knows them, and their durable form."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._known: dict[str, Deployment] = {}
        self._mark: str | None = None  # None: nothing was ever read

    @property
    def known(self) -> Mapping[str, Deployment]:
        """The deployments by name."""
        return self._known

    async def load(self, epoch: int) -> None:
        """Read everything as the new leader; after a loss of Redis, write it back.

        Raises UnavailableError, or FailedPreconditionError (STALE_EPOCH).
        """
        fields = dict(await self._records.read())
        mark = fields.pop(MARK, None)
        if mark is None and not fields and self._mark is not None:
            log.error("stored deployments are lost, writing them back", count=len(self._known))
            for deployment in self._known.values():
                await self._records.put(epoch, deployment.name, to_json(deployment))
        else:
            self._known = decode(fields)
        await self._count(epoch)

    async def follow(self) -> None:
        """Bring the copy of one who stands by up to date. Raises UnavailableError."""
        mark = await self._records.mark()
        if mark is not None and mark != self._mark:
            fields = dict(await self._records.read())
            if (mark := fields.pop(MARK, None)) is not None:
                self._known, self._mark = decode(fields), mark
                log.debug("deployments followed", count=len(self._known))

    async def put(self, epoch: int, deployment: Deployment) -> None:
        """Store one. Raises like `load`; then it may have been stored all the same."""
        text = to_json(deployment)
        await _insist(lambda: self._records.put(epoch, deployment.name, text))
        self._known[deployment.name] = deployment
        await self._count_quietly(epoch)

    async def remove(self, epoch: int, name: str) -> None:
        """Remove one; raises like `put`."""
        await _insist(lambda: self._records.delete(epoch, name))
        self._known.pop(name, None)
        await self._count_quietly(epoch)

    async def _count_quietly(self, epoch: int) -> None:
        """Count a write that has happened; that others learn of it late undoes nothing."""
        try:
            await self._count(epoch)
        except BriskError as error:
            log.warning("write not counted", reason=error.reason)

    async def _count(self, epoch: int) -> None:
        writes = 0
        if self._mark is not None:
            before = json.loads(self._mark)
            writes = before["writes"] + 1 if before["epoch"] == epoch else 0
        mark = json.dumps({"epoch": epoch, "schema": _SCHEMA, "writes": writes}, sort_keys=True)
        await self._records.put(epoch, MARK, mark)
        self._mark = mark


async def _insist(write: Callable[[], Awaitable[None]]) -> None:
    """Write, again if Redis does not answer: writing the same twice does no harm."""
    for attempt in range(_TRIES_MAX):
        try:
            await write()
        except UnavailableError:
            if attempt == _TRIES_MAX - 1:
                raise
            await asyncio.sleep(_PAUSE_S)
        else:
            return


def decode(fields: Mapping[str, str]) -> dict[str, Deployment]:
    """Parse what is stored; what cannot be understood is left out, loudly, and left alone."""
    known: dict[str, Deployment] = {}
    for name, text in sorted(fields.items()):
        try:
            known[name] = from_json(name, text)
        except (ValueError, KeyError, TypeError, BriskError) as error:
            problem = f"{type(error).__name__}: {error}"  # its traceback would tell no more
            log.error("stored deployment not understood", deployment=name, problem=problem)  # noqa: TRY400
    return known


def to_json(deployment: Deployment) -> str:
    """Return the stored form."""
    model, spec = deployment.model, deployment.spec
    fields = {
        "schema": _SCHEMA,
        "created_at": deployment.created_at.isoformat(),
        "model": {
            "name": model.ref.name,
            "revision": model.ref.revision,
            "architecture": model.architecture,
            "dtype": model.dtype,
            "weight_bytes": model.weight_bytes,
            "parameters": model.parameters,
            "context_tokens_max": model.context_tokens_max,
            "kv_bytes_per_token": model.kv_bytes_per_token,
        },
        "spec": {
            "keep_alive_s": spec.keep_alive_s,
            "slots": spec.slots,
            "context_tokens_max": spec.context_tokens_max,
            "priority": spec.priority,
            "min_replicas": spec.min_replicas,
            "max_replicas": spec.max_replicas,
            "target_concurrency": spec.target_concurrency,
            "max_queue": spec.max_queue,
            "learns_keep_alive": spec.learns_keep_alive,
        },
    }
    return json.dumps(fields, sort_keys=True)


def from_json(name: str, text: str) -> Deployment:
    """Parse a stored form. Raises ValueError, KeyError, TypeError or BriskError if it is none.

    A schema that is not ours is refused: guessing at what a newer version meant loses it.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict) or fields.get("schema") != _SCHEMA:
        raise ValueError("unknown schema of a deployment")
    model, spec = fields["model"], fields["spec"]
    ref = ModelRef(name=parse_model_name(_text(model, "name")), revision=_text(model, "revision"))
    keep_alive_s = spec["keep_alive_s"]
    return Deployment(
        name=parse_model_name(name),
        model=ModelInfo(
            ref=ref,
            architecture=_text(model, "architecture"),
            dtype=_text(model, "dtype"),
            weight_bytes=_count(model, "weight_bytes"),
            parameters=_count(model, "parameters"),
            context_tokens_max=_count(model, "context_tokens_max"),
            kv_bytes_per_token=_count(model, "kv_bytes_per_token"),
        ),
        spec=Spec(
            keep_alive_s=None if keep_alive_s is None else float(keep_alive_s),
            slots=_count(spec, "slots"),
            context_tokens_max=_count(spec, "context_tokens_max"),
            **_scale(spec),
        ),
        created_at=datetime.fromisoformat(_text(fields, "created_at")),
    )


class _Scale(TypedDict):
    """What of a specification earlier versions did not write."""

    priority: int
    min_replicas: int
    max_replicas: int
    target_concurrency: int | None
    max_queue: int | None
    learns_keep_alive: bool


def _scale(spec: Mapping[str, Any]) -> _Scale:
    priority = spec.get("priority", 0)
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise TypeError("priority is not a number")
    learns = spec.get("learns_keep_alive", False)
    if not isinstance(learns, bool):
        raise TypeError("learns_keep_alive is neither true nor false")
    return _Scale(
        priority=priority,
        min_replicas=_count({"min_replicas": 0, **spec}, "min_replicas"),
        max_replicas=_count({"max_replicas": 1, **spec}, "max_replicas"),
        target_concurrency=_optional(spec, "target_concurrency"),
        max_queue=_optional(spec, "max_queue"),
        learns_keep_alive=learns,
    )


def _optional(fields: Mapping[str, Any], key: str) -> int | None:
    return None if fields.get(key) is None else _count(fields, key)


def _text(fields: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := fields[key], str):
        raise TypeError(f"{key} is not a text")
    return value


def _count(fields: Mapping[str, Any], key: str) -> int:
    if not isinstance(value := fields[key], int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{key} is not a count")
    return value
