"""What an answer must look like: `response_format` as OpenAI's, `structured_outputs` as vLLM's."""

from __future__ import annotations

import json
from typing import Any, Final

from services.common.constraint import Constraint, ConstraintKind
from services.common.errors import InvalidArgumentError
from services.router.http.errors import refuse
from services.router.http.fields import Fields

_ANY_OBJECT: Final = '{"type":"object"}'


def parse_constraint(fields: Fields) -> Constraint | None:
    """Take the arguments out of `fields`. Raises InvalidArgumentError naming the argument."""
    wanted = _response_format(fields), _structured_outputs(fields)
    given = [each for each in wanted if each is not None]
    if len(given) > 1:
        raise refuse(
            "structured_outputs", "give one of response_format and structured_outputs, not both"
        )
    return given[0] if given else None


def _response_format(fields: Fields) -> Constraint | None:
    given = fields.object("response_format")
    if given is None:
        return None
    kind = given.text("type")
    constraint = None
    match kind:
        case "text":
            pass
        case "json_object":
            constraint = Constraint(kind=ConstraintKind.JSON_SCHEMA, text=_ANY_OBJECT)
        case "json_schema":
            constraint = _named_schema(given)
        case _:
            raise given.wrong("type", 'must be "text", "json_object" or "json_schema"', kind)
    given.end()
    return constraint


def _named_schema(given: Fields) -> Constraint:
    described = given.object("json_schema")
    if described is None:
        raise given.missing("json_schema")
    described.skip(("name", "description"))
    described.flag("strict")  # it is always kept to
    schema = described.take("schema")
    if schema is None:
        raise described.missing("schema")
    described.end()
    return _made(ConstraintKind.JSON_SCHEMA, _as_text(schema), "response_format.json_schema.schema")


def _structured_outputs(fields: Fields) -> Constraint | None:
    given = fields.object("structured_outputs")
    if given is None:
        return None
    schema = given.take("json")
    texts = {
        ConstraintKind.JSON_SCHEMA: None if schema is None else _as_text(schema),
        ConstraintKind.REGEX: given.text("regex"),
        ConstraintKind.GRAMMAR: given.text("grammar"),
    }
    given.end()
    made = [(kind, text) for kind, text in texts.items() if text is not None]
    if len(made) != 1:
        raise refuse(
            "structured_outputs", "structured_outputs must have one of json, regex and grammar"
        )
    kind, text = made[0]
    name = "json" if kind is ConstraintKind.JSON_SCHEMA else str(kind)
    return _made(kind, text, f"structured_outputs.{name}")


def _as_text(schema: Any) -> str:
    """Return a schema as JSON text; one that is text already stays as it is."""
    return schema if isinstance(schema, str) else json.dumps(schema, separators=(",", ":"))


def _made(kind: ConstraintKind, text: str, parameter: str) -> Constraint:
    try:
        return Constraint(kind=kind, text=text)
    except InvalidArgumentError as error:
        metadata = {**error.metadata, "parameter": parameter}
        raise InvalidArgumentError(error.message, reason=error.reason, metadata=metadata) from error
