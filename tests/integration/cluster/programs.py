"""Run our own programs as an operator would, and look for what they leave."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
WITHIN_S = 200.0
ARENA_BYTES = "BRISK_STOREMGR_ARENA_BYTES"  # by default it is a share of the machine


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str


def environment(data_dir: Path, **more: str) -> dict[str, str]:
    """Return an environment whose cluster, if any, is in `data_dir`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BRISK_")}
    fixed = {"BRISK_DATA_DIR": str(data_dir), "COLUMNS": "200", ARENA_BYTES: str(64 << 20)}
    return {**inherited, **fixed, **more}


async def start(*arguments: str | Path, env: Mapping[str, str]) -> Process:
    """Start a Python program of ours."""
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=env, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


async def ended(process: Process, stdin: str = "") -> Ended:
    """Wait for a program's end and return how it was."""
    async with asyncio.timeout(WITHIN_S):
        out, err = await process.communicate(stdin.encode())
    code = process.returncode
    assert code is not None
    return Ended(code, out.decode(errors="replace"), err.decode(errors="replace"))


async def brisk(*arguments: str, env: Mapping[str, str], stdin: str = "") -> Ended:
    """Run a `brisk` command to its end."""
    return await ended(await start("-m", "brisk_client.cli", *arguments, env=env), stdin)


def processes_of(data_dir: Path) -> list[str]:
    """Return the command lines of all processes that know `data_dir` from their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if str(data_dir).encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found
