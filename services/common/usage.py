"""What a service says to `--help`: what it is, and its settings, read off its config class."""

from __future__ import annotations

import textwrap
from typing import Final, Literal, get_args, get_origin

import annotated_types
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from services.common.config import ServiceConfig

_WIDTH: Final = 100
_INDENT: Final = "      "


def usage(config_class: type[ServiceConfig]) -> str:
    """Return the whole text. Settings of the service's own come after those of all services."""
    service = config_class.service
    fields = config_class.model_fields
    general = [name for name in fields if name in ServiceConfig.model_fields]
    own = [name for name in fields if name not in ServiceConfig.model_fields]
    head = (
        f"usage: python -m services.{service} [--help]\n\n{config_class.purpose}\n\n"
        "All settings come from the environment. Of two variables, the first one wins; the second\n"
        "one is read by all services. Whatever is malformed or unknown is refused.\n"
    )
    return head + "".join(
        f"\n{title}\n" + "".join(_setting(config_class, name) for name in names)
        for title, names in (("Every service:", general), (f"The {service}:", own))
        if names
    )


def _setting(config_class: type[ServiceConfig], name: str) -> str:
    field = config_class.model_fields[name]
    variables = config_class.prefix() + name.upper()
    if name in config_class.shared:
        variables += f", BRISK_{name.upper()}"
    said = " ".join((field.description or "").split())
    facts = "; ".join(filter(None, (_default(field), _allowed(field))))
    text = textwrap.fill(
        f"{said} {facts}.".lstrip(),
        _WIDTH,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_on_hyphens=False,
    )
    return f"  {variables}\n{text}\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "Required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "Default: unset"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()  # the default is no secret
    return f"Default: {str(value).lower() if isinstance(value, bool) else _plain(value)}"


def _allowed(field: FieldInfo) -> str:
    """Return what values there are, if the type says so."""
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(field.annotation)))
    if field.annotation is bool:
        return "true or false"
    low, high = "", ""
    for limit in field.metadata:
        match limit:
            case annotated_types.Ge(at_least):
                low = _plain(at_least)
            case annotated_types.Gt(above):
                low = f"above {_plain(above)}"
            case annotated_types.Le(at_most):
                high = _plain(at_most)
            case _:
                pass
    return f"{low} to {high}" if low and high else ""


def _plain(number: object) -> str:
    return f"{number:.15g}" if isinstance(number, float) else str(number)
