"""Start, serve, drain, stop: the same four steps for every service.

Exit codes: 0 after SIGTERM, SIGINT or `--help`, 1 after a failed background loop or start, 2 if
the configuration or an argument was refused. A second signal ends the process at once, even if its
loop is stuck.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import uvloop

from services.common.config import Config, ServiceConfig, load_config, print_config
from services.common.errors import ConfigError
from services.common.log import configure_logging, get_logger
from services.common.metrics import watch_loop_lag
from services.common.names import shorten
from services.common.server import HouseServer
from services.common.usage import usage

log = get_logger(__name__)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 2
_HELP: Final = ("--help", "-h")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_BEFORE_DRAIN_S_MAX: Final = 5.0
_CLEAN_UP_S_MAX: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1


class Listener(Protocol):
    """A server besides the gRPC one; what HouseServer does, it does too."""

    async def start_serving(self) -> None:
        """Open for calls."""

    async def announce_leaving(self) -> None:
        """Say that we leave and go on answering."""

    async def drain(self, drain_s: float) -> None:
        """Refuse new calls, let others finish within `drain_s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a launcher learns from the ready file."""

    path: Path | None  # None: nobody wants to know
    service: str
    service_id: str
    metrics_address: str
    http_address: str | None = None  # for services that offer HTTP

    def write(self, address: str) -> None:
        """Publish the file by renaming, so that nobody reads half of it."""
        if self.path is None:
            return
        facts: dict[str, object] = {
            "service": self.service,
            "id": self.service_id,
            "grpc": address,
            "metrics": self.metrics_address,
            "pid": os.getpid(),
        }
        if self.http_address is not None:
            facts["http"] = self.http_address
        temporary = _draft_of(self.path)
        temporary.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def remove(self) -> None:
        """Take the file back."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def run_service(
    config_class: type[Config],
    main: Callable[[Config], Awaitable[None]],
    arguments: Sequence[str] = (),
) -> int:
    """Run a service to its end and return the exit code: `sys.exit(run_service(...))`.

    `main` opens what it needs in an AsyncExitStack and ends in `serve`. A signal before it serves
    ends the process at once. Of `arguments` there is only `--help`, which runs nothing.
    """
    if arguments:
        return _answer(config_class, arguments)
    try:
        config = load_config(config_class)
        _check_ready_file(config)
    except ConfigError as error:
        return _refuse(config_class, error)
    configure_logging(config.service, level=config.log_level, form=config.log_format)
    if config.die_with_parent:
        _die_with_parent()
    for each in _SIGNALS:  # until the event loop has handlers of its own
        signal.signal(each, _leave)
    log.info("starting", config=print_config(config))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_interruptible(main(config)))
    except ConfigError as error:
        return _refuse(config_class, error)
    except Exception:  # the process boundary: one traceback in the log, one exit code
        log.exception("service failed")
        return EXIT_FAILED
    log.info("stopped")
    return EXIT_OK


async def serve(
    server: HouseServer,
    *loops: Coroutine[Any, Any, None],
    announce_s: float,
    drain_s: float,
    before_drain: Callable[[], Awaitable[None]] | None = None,
    ready: Ready | None = None,
    beside: Sequence[Listener] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, or until one of `loops` ends; then drain and return.

    `loops` run for ever, through the drain too: running calls may need them. One that ends is
    fatal on purpose: we still drain, then raise what it raised, and the process exits non-zero for
    its supervisor to restart. Nothing limps along half alive. Cancelling drains as well. Servers
    `beside` the gRPC one start after it and drain along with it.
    """
    stop = asyncio.Event()
    ended: list[asyncio.Future[None]] = []

    def note_end(task: asyncio.Future[None]) -> None:
        ended.append(task)
        stop.set()

    listeners: tuple[Listener, ...] = (server, *beside)
    _on_signals(stop.set)
    background = [asyncio.ensure_future(each) for each in (*loops, watch_loop_lag())]
    for task in background:
        task.add_done_callback(note_end)
    try:
        for each in listeners:
            await each.start_serving()
        if ready is not None:
            ready.write(server.address)
        log.info("serving", address=server.address)
        await stop.wait()
        for over in ended:
            log.error("background loop ended", loop=_name(over))
    finally:
        await _drain(listeners, announce_s=announce_s, drain_s=drain_s, before=before_drain)
        failures = [_failure(over) for over in ended]
        await _cancel(background)
        if ready is not None:
            ready.remove()
    if failures:
        raise failures[0] if len(failures) == 1 else ExceptionGroup("background loops", failures)


async def _drain(
    listeners: Sequence[Listener],
    *,
    announce_s: float,
    drain_s: float,
    before: Callable[[], Awaitable[None]] | None,
) -> None:
    log.info("draining", drain_s=drain_s)
    try:
        for each in listeners:
            await each.announce_leaving()
        if before is not None:
            async with asyncio.timeout(_BEFORE_DRAIN_S_MAX):
                await before()
    except TimeoutError:
        log.warning("leaving could not be announced in time", limit_s=_BEFORE_DRAIN_S_MAX)
    finally:
        await asyncio.sleep(announce_s)  # callers leave before the listener closes
        await asyncio.gather(*(each.drain(drain_s) for each in listeners))


async def _cancel(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Cancel loops and wait for their clean-up; ask twice, as libraries can lose the first."""
    left: set[asyncio.Future[None]] = set(tasks)
    for _ in range(2):
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CLEAN_UP_S_MAX)
        if not left:
            return
    log.error("background loops do not stop", loops=sorted(_name(task) for task in left))


def _failure(task: asyncio.Future[None]) -> Exception:
    """Return why a background loop is over; they run for ever."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"background loop {_name(task)} ended by itself")


async def _interruptible(main: Awaitable[None]) -> None:
    """Let a signal end the process at once until `serve` takes over.

    Nothing has been promised to anyone by then, and a thread that imports for seconds could not be
    interrupted. What is open is the kernel's to close.
    """
    _on_signals(_end_at_once)
    await main


def _leave(_signum: int, _frame: object) -> None:
    os._exit(EXIT_OK)  # says nothing: it may have interrupted the log


def _end_at_once() -> None:
    log.info("stopped before serving")
    sys.stderr.flush()
    os._exit(EXIT_OK)


def _on_signals(leave: Callable[[], object]) -> None:
    """Call `leave` on the first signal; the second one has the system's own effect: the end."""
    loop = asyncio.get_running_loop()

    def first(signum: signal.Signals) -> None:
        log.info("signal received", signal=signum.name)
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        leave()

    for signum in _SIGNALS:
        loop.add_signal_handler(signum, first, signum)


def _answer(config_class: type[ServiceConfig], arguments: Sequence[str]) -> int:
    """Explain the service, or refuse arguments: a service reads its environment only."""
    unknown = [each for each in arguments if each not in _HELP]
    if not unknown:
        sys.stdout.write(usage(config_class))
        return EXIT_OK
    sys.stderr.write(
        f"brisk {config_class.service}: unknown argument {shorten(unknown[0])}; "
        "settings come from the environment, and --help names them\n"
    )
    return EXIT_CONFIG


def _refuse(config_class: type[ServiceConfig], error: ConfigError) -> int:
    sys.stderr.write(f"brisk {config_class.service}: refused to start: {error}\n")
    return EXIT_CONFIG


def _check_ready_file(config: ServiceConfig) -> None:
    """Try to write beside the ready file: long before it is due, and naming its setting.

    Raises ConfigError.
    """
    path = config.ready_file
    if path is None:
        return
    setting = config.setting("ready_file")
    if path.is_dir():
        raise ConfigError(setting, f"is a folder, not a file. Given: {path}")
    try:
        draft = _draft_of(path)
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise ConfigError(setting, f"cannot be written: {error.strerror}. Given: {path}") from error


def _draft_of(path: Path) -> Path:
    """Return where the ready file is written before it is renamed."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def _die_with_parent() -> None:
    """Have the kernel send us SIGTERM when the thread that started us ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        log.warning("cannot ask to die with the parent", errno=ctypes.get_errno())


def _name(task: asyncio.Future[Any]) -> str:
    coroutine = task.get_coro() if isinstance(task, asyncio.Task) else None
    return getattr(coroutine, "__qualname__", "unknown")
