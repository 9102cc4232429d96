"""Events, settings and actions as JSON and back, exactly: a log line is enough to decide again.

The form follows the types: a dataclass is an object by its fields, a named tuple a list. Whoever
decodes needs the type, so nothing in the text can name a class that is not expected there.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from services.common import errors
from services.common.errors import BriskError
from services.scheduler.actions import Action
from services.scheduler.events import Event

_ERRORS: Final = {
    each.__name__: each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, BriskError)
}
_EVENTS: Final = {each.__name__: each for each in get_args(Event)}

T = TypeVar("T")


def encode(value: object) -> Any:  # noqa: PLR0911 - a form for each type
    """Return `value` as what JSON knows."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: encode(getattr(value, name)) for name in _fields(type(value))}
    if isinstance(value, tuple | list):
        return [encode(each) for each in value]
    if isinstance(value, frozenset):
        return sorted(encode(each) for each in value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, BriskError):
        return {
            "class": type(value).__name__,
            "message": value.message,
            "reason": value.reason,
            "retry_after_s": value.retry_after_s,
            "metadata": dict(value.metadata),
        }
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def encode_event(event: Event) -> dict[str, Any]:
    """Return an event with its kind."""
    return {"is": type(event).__name__, **encode(event)}


def decode_event(fields: Mapping[str, Any]) -> Event:
    """Return the event that was encoded. Raises ValueError, KeyError or TypeError if it is none."""
    rest = dict(fields)
    kind = _EVENTS.get(rest.pop("is", ""))
    if kind is None:
        raise ValueError("no kind of event that we know")
    return cast("Event", decode(kind, rest))


def encode_actions(done: tuple[Action, ...]) -> list[Any]:
    """Return actions with their kinds, to be compared."""
    return [{"is": type(each).__name__, **encode(each)} for each in done]


def decode(kind: type[T], value: Any) -> T:
    """Return the value of type `kind` that was encoded; raises like `decode_event`."""
    return cast("T", _decode(kind, value))


def _decode(hint: Any, value: Any) -> Any:  # noqa: PLR0911 - a form for each type
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _decode(_only(hint), value)
    if origin is tuple:
        return tuple(_decode(get_args(hint)[0], each) for each in value)
    if origin is frozenset:
        return frozenset(_decode(get_args(hint)[0], each) for each in value)
    if hint is BriskError:
        return _error(value)
    if hint is datetime:
        return datetime.fromisoformat(value)
    if hint is float:
        return float(value)
    if isinstance(hint, type):
        if issubclass(hint, Enum):
            return hint(value)
        if dataclasses.is_dataclass(hint):
            hints = _hints(hint)
            return hint(**{name: _decode(hints[name], each) for name, each in value.items()})
        if issubclass(hint, tuple):
            kinds = _hints(hint).values()
            return hint(*(_decode(kind, each) for kind, each in zip(kinds, value, strict=True)))
    return value


def _only(hint: Any) -> Any:
    """Return X of `X | None`: events know no other unions."""
    (kind,) = (each for each in get_args(hint) if each is not type(None))
    return kind


def _error(value: Mapping[str, Any]) -> BriskError:
    return _ERRORS[value["class"]](
        value["message"],
        reason=value["reason"],
        retry_after_s=value["retry_after_s"],
        metadata=value["metadata"],
    )


@cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(each.name for each in dataclasses.fields(kind))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
