"""The services' JSON log lines in colour, for `brisk up` in the foreground."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

from brisk_client.local.logs import parse_line

_COLOURS: Final = {
    "router": "cyan",
    "scheduler": "magenta",
    "worker": "green",
    "storemgr": "yellow",
    "redis": "red",
}
_LEVELS: Final = {
    "debug": "dim",
    "info": "default",
    "warning": "bold yellow",
    "error": "bold red",
    "critical": "bold reverse red",
}
_NAME_WIDTH: Final = 10
_TIME_START, _TIME_END = 11, 23  # the time of day within an ISO 8601 stamp
_HIDDEN: Final = {"timestamp", "level", "message", "exception", "service", "logger"}


class LogView:
    """Writes log lines and notices to a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, name: str, line: str) -> None:
        """Show one line of a service's log."""
        if line.strip():
            self._console.print(render(name, line))

    def notice(self, text: str) -> None:
        """Show a sentence of our own."""
        self._console.print(Text(f"{'brisk':<{_NAME_WIDTH}} ", style="bold blue") + Text(text))


def render(name: str, line: str) -> Text:
    """Return a log line as coloured text: service, time, message, then its data."""
    colour = _COLOURS.get(name.partition("-")[0], "default")
    made = Text(f"{name:<{_NAME_WIDTH}} ", style=colour)
    fields = parse_line(line)
    if fields is None:
        return made.append(line, style="default")
    stamp = str(fields.get("timestamp", ""))
    level = str(fields.get("level", "info"))
    made.append(f"{stamp[_TIME_START:_TIME_END]} ", style="dim")
    made.append(str(fields.get("message", "")), style=_LEVELS.get(level, "default"))
    for key, value in fields.items():
        if key not in _HIDDEN:
            made.append(f" {key}=", style="dim")
            made.append(str(value), style="default")
    if trouble := fields.get("exception"):
        made.append(f"\n{trouble}", style="red")
    return made
