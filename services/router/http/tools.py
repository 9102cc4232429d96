"""Tools in a chat's body: what the model may call, what it called, and what came of it.

The chat template shows them to the model; its calls come back as it writes them, as text. So what
would need more than that, a call for certain or one at most, is refused.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic_core import from_json

from services.router.http.errors import refuse
from services.router.http.fields import Fields, shown

_CHOICES: Final = ("none", "auto")


def parse_tools(fields: Fields) -> tuple[str, ...]:
    """Take the arguments out of `fields`; return the tools to show to the model, each as JSON.

    Raises InvalidArgumentError naming the argument.
    """
    given = fields.list("tools") or []
    choice = fields.take("tool_choice")
    if choice is not None and choice not in _CHOICES:
        raise refuse(
            "tool_choice",
            'tool_choice must be "none" or "auto": that a tool is called cannot be guaranteed; '
            f"ask for a call's form with response_format. Given: {shown(choice)}",
        )
    if fields.flag("parallel_tool_calls") is False and given:
        raise refuse(
            "parallel_tool_calls",
            "parallel_tool_calls must be true: that the model calls one tool at most cannot be "
            "guaranteed",
        )
    for index, tool in enumerate(given):
        _check_tool(tool, f"tools[{index}]")
    return () if choice == "none" else tuple(map(_as_json, given))


def parse_tool_calls(fields: Fields) -> tuple[str, ...]:
    """Take `tool_calls` out of a message; their arguments become objects, as templates want."""
    given = fields.list("tool_calls") or []
    return tuple(_call(each, fields, index) for index, each in enumerate(given))


def _check_tool(tool: Any, path: str) -> None:
    if not isinstance(tool, dict):
        raise refuse(path, f"{path} must be an object. Given: {shown(tool)}")
    fields = Fields(tool, path + ".")
    if (kind := fields.text("type")) != "function":
        raise fields.wrong("type", 'must be "function"', kind)
    function = fields.object("function")
    if function is None:
        raise fields.missing("function")
    fields.end()
    if not function.text("name"):
        raise function.missing("name")
    function.text("description")
    function.object("parameters")
    if function.flag("strict"):
        raise refuse(
            f"{path}.function.strict",
            f"{path}.function.strict must be false: what the model calls with cannot be guaranteed",
        )
    function.end()


def _call(given: Any, message: Fields, index: int) -> str:
    path = f"tool_calls[{index}]"
    if not isinstance(given, dict):
        raise message.wrong("tool_calls", "must be a list of objects", given)
    fields = message.within(given, path)
    call_id, kind = fields.text("id"), fields.text("type")
    if kind not in (None, "function"):
        raise fields.wrong("type", 'must be "function"', kind)
    function = fields.object("function")
    if function is None:
        raise fields.missing("function")
    fields.end()
    name, arguments = function.text("name"), function.text("arguments")
    if not name:
        raise function.missing("name")
    function.end()
    try:
        values = from_json(arguments or "{}", cache_strings=False)
    except ValueError as error:
        raise function.wrong("arguments", "must be JSON text", arguments) from error
    if not isinstance(values, dict):
        raise function.wrong("arguments", "must be a JSON object, as text", arguments)
    called = {"type": "function", "function": {"name": name, "arguments": values}}
    return _as_json({"id": call_id, **called} if call_id else called)


def _as_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
