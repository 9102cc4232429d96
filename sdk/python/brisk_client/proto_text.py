"""Protobuf descriptors as the text of a .proto file. Reflection carries no comments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)

_SCALARS: Final = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def spelled(symbol: ServiceDescriptor | MethodDescriptor | Descriptor | EnumDescriptor) -> str:
    """Return the definition of `symbol`."""
    match symbol:
        case ServiceDescriptor():
            return _block(f"service {symbol.full_name}", map(_method, symbol.methods))
        case MethodDescriptor():
            return _method(symbol)
        case EnumDescriptor():
            values = (f"{value.name} = {value.number};" for value in symbol.values)
            return _block(f"enum {symbol.full_name}", values)
        case _:
            return _message(symbol)


def _method(method: MethodDescriptor) -> str:
    takes = ("stream " if method.client_streaming else "") + method.input_type.full_name
    gives = ("stream " if method.server_streaming else "") + method.output_type.full_name
    return f"rpc {method.name}({takes}) returns ({gives});"


def _message(message: Descriptor) -> str:
    lines: list[str] = []
    shown: set[str] = set()
    for field in message.fields:
        group = field.containing_oneof
        if group is None or _is_optional(field):
            lines.append(_field(field))
        elif group.name not in shown:
            shown.add(group.name)
            lines.append(_block(f"oneof {group.name}", map(_field, group.fields)))
    return _block(f"message {message.full_name}", lines)


def _field(field: FieldDescriptor) -> str:
    label = "optional " if _is_optional(field) else ""
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        kind = f"map<{_kind(key)}, {_kind(value)}>"
    else:
        label = "repeated " if field.is_repeated else label
        kind = _kind(field)
    return f"{label}{kind} {field.name} = {field.number};"


def _is_optional(field: FieldDescriptor) -> bool:
    """Return whether the field says `optional`: protobuf gives it a oneof of its own."""
    group = field.containing_oneof
    return group is not None and len(group.fields) == 1 and group.name == f"_{field.name}"


def _kind(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        return field.message_type.full_name
    if field.enum_type is not None:
        return field.enum_type.full_name
    return _SCALARS[field.type]


def _block(head: str, lines: Iterable[str]) -> str:
    body = "\n".join(f"  {line}" for part in lines for line in part.splitlines())
    return f"{head} {{\n{body}\n}}" if body else f"{head} {{}}"
