"""Child processes of a benchmark: started, asked for their port, and stopped whatever happens."""

from __future__ import annotations

import contextlib
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Never

ROOT = Path(__file__).resolve().parents[1]
START_S_MAX, STOP_S_MAX = 30.0, 10.0


class StartError(Exception):
    """A program did not start; the message says which and why."""


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    reads_stdin: bool = False,
) -> Iterator[subprocess.Popen[str]]:
    """Lend a started program, its stdout on a pipe; stop it at the end, by force if need be.

    `log` gets its stderr; with `reads_stdin` its stdin is a pipe too. It ends with us even if we
    are killed, where setpriv is at hand.
    """
    setpriv = shutil.which("setpriv")
    guard = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    with log.open("w", encoding="utf-8") as noise:
        process = subprocess.Popen(
            [*guard, *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE if reads_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(STOP_S_MAX)
                except subprocess.TimeoutExpired:
                    process.kill()


@contextlib.contextmanager
def serving(module: str, *arguments: str, log: Path) -> Iterator[int]:
    """Lend the port of one of our own servers: a module that prints it first. StartError."""
    command = [sys.executable, "-m", module, *arguments]
    with running(command, log) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        ready, _, _ = select.select([process.stdout], [], [], START_S_MAX)
        line = process.stdout.readline() if ready else ""
        if not line.strip().isdigit():
            raise StartError(f"{module} did not start: {last_words(log)}")
        yield int(line)


def last_words(log: Path) -> str:
    """Return the last line that a program said, to explain why it ended."""
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def leave_on_sigterm() -> None:
    """Turn SIGTERM into an ordinary exit, so that `with` blocks stop their processes."""

    def leave(_signum: int, _frame: object) -> Never:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)
