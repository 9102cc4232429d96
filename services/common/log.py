"""Logs: one JSON line per event on stderr, or coloured text on a terminal.

The message is a constant phrase, data goes in key-values. Whatever is bound with `bind_request_id`
is in every line of the same task, those of gRPC and redis-py included.
"""

from __future__ import annotations

import logging
import sys
from typing import Final, Literal

import structlog
from structlog.stdlib import BoundLogger
from structlog.typing import EventDict, Processor

from services.common.names import RequestId

LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

_REQUEST_ID: Final = "request_id"
_FIRST_KEYS: Final = ("timestamp", "level", "service", "message", _REQUEST_ID)


def get_logger(name: str) -> BoundLogger:
    """Return the logger of module `name`: `log.info("worker lost", worker=...)`."""
    logger: BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def bind_request_id(request_id: RequestId) -> None:
    """Put `request_id` in every later log line of this task and the tasks it starts."""
    structlog.contextvars.bind_contextvars(request_id=request_id)


def bound_request_id() -> RequestId | None:
    """Return the request id of this task, or None outside a request."""
    return structlog.contextvars.get_contextvars().get(_REQUEST_ID)


def configure_logging(service: str, *, level: LogLevel = "info", form: LogFormat = "auto") -> None:
    """Send our lines and those of all libraries to stderr; replaces any earlier set-up."""

    def name_service(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_service,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # modules take their logger before we are called
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared], processors=_renderers(form)
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "grpc", "redis"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))


def _renderers(form: LogFormat) -> list[Processor]:
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if form == "text" or (form == "auto" and sys.stderr.isatty()):
        # Plain: the default shows local variables, prompts among them, and keeps frames alive.
        plain = structlog.dev.plain_traceback
        colors = sys.stderr.isatty()
        return [strip, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    return [
        strip,
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        _order,
        structlog.processors.JSONRenderer(),
    ]


def _order(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Begin each line with what every line has, so that they can be read in a column."""
    return {key: event[key] for key in _FIRST_KEYS if key in event} | dict(event)
