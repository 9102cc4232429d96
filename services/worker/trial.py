"""Try a constraint out in a process of its own, before the worker compiles it: `python -m`.

llguidance counts its work, but not all of it: some texts of a few kilobytes take it a minute and
gigabytes, or overflow the stack, which ends a process. Here that is this process, held to few
seconds, little memory and half a thread's stack. Reads kind and text from standard input; says
nothing if the constraint works, or what is wrong with it.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
from pathlib import Path
from random import Random
from typing import Final

from llguidance import LLMatcher, LLTokenizer

from services.worker.grammars import compiled

CPU_S_MAX: Final = 2
MEMORY_BYTES_MAX: Final = 96 * 1024 * 1024  # beside what the process has when it begins
STACK_BYTES: Final = 4 * 1024 * 1024  # a thread of the worker's has twice as much
_STEPS: Final = 32
_STEP_SEED: Final = 1


def main() -> None:
    """Try the constraint on standard input."""
    kind, text = json.load(sys.stdin)
    _limit(resource.RLIMIT_CPU, CPU_S_MAX)
    _limit(resource.RLIMIT_CORE, 0)
    threading.stack_size(STACK_BYTES)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    held = pages * resource.getpagesize() + STACK_BYTES
    _limit(resource.RLIMIT_AS, held + MEMORY_BYTES_MAX)
    thread = threading.Thread(target=_try, args=(kind, text))
    thread.start()
    thread.join()


def _limit(what: int, most: int) -> None:
    resource.setrlimit(what, (most, most))


def _try(kind: str, text: str) -> None:
    try:
        matcher = compiled(LLTokenizer("byte"), kind, text)
        _walk(matcher)
        problem = matcher.get_error()
    except ValueError as error:
        problem = str(error)
    sys.stdout.write(problem)


def _walk(matcher: LLMatcher) -> None:
    """Take a few steps: automata are built as they are walked."""
    random = Random(_STEP_SEED)  # noqa: S311 - any steps will do, the same each time
    for _ in range(_STEPS):
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [token for token in range(bits.bit_length()) if bits >> token & 1]
        if matcher.is_error() or matcher.is_stopped() or not allowed:
            return
        matcher.consume_token(random.choice(allowed))


if __name__ == "__main__":
    main()
