"""LiteLLM's proxy as a peer: installed into a venv of its own, started, kept on loopback.

It is given no credentials and no way out: what it would fetch at the start is switched off, and a
proxy setting sends everything that is not loopback to a port where nobody listens.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench.processes import ROOT, StartError, last_words, running

VENV = ROOT / ".venv-bench"
LOCK = Path(__file__).with_name("litellm.lock")
MODEL = "stub"
INSTALL_S_MAX, START_S_MAX, POLL_S = 540.0, 90.0, 0.2
_SILENT = (
    "LITELLM_LOCAL_MODEL_COST_MAP",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS",
    "LITELLM_LOCAL_BLOG_POSTS",
    "LITELLM_LOCAL_POLICY_TEMPLATES",
)
_NOBODY = "http://127.0.0.1:9"


def version() -> str:
    """Return the pinned version."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("litellm==")).partition("==")[2]


def install() -> Path:
    """Return LiteLLM's program, installing the locked packages first if need be.

    Raises StartError: without the package index, for example.
    """
    program, stamp = VENV / "bin" / "litellm", VENV / ".stamp"
    if stamp.is_file() and stamp.read_bytes() == LOCK.read_bytes():
        return program
    print(f"installing LiteLLM {version()} into {VENV.name} (once, 0.8 GB)", file=sys.stderr)
    steps = (
        [sys.executable, "-m", "venv", str(VENV)],
        [str(VENV / "bin" / "pip"), "install", "--quiet", "--requirement", str(LOCK)],
    )
    try:
        for step in steps:
            subprocess.run(step, check=True, capture_output=True, text=True, timeout=INSTALL_S_MAX)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout or "").strip().splitlines() or ["no reason given"]
        raise StartError(f"LiteLLM could not be installed: {reason[-1][:300]}") from error
    except subprocess.TimeoutExpired as error:
        raise StartError(f"LiteLLM was not installed within {INSTALL_S_MAX:.0f} s") from error
    stamp.write_bytes(LOCK.read_bytes())
    return program


@contextlib.contextmanager
def proxy(backend_port: int, folder: Path) -> Iterator[int]:
    """Lend the port of a LiteLLM proxy before the OpenAI server at `backend_port`. StartError."""
    program, port, log = install(), _free_port(), folder / "litellm.log"
    config = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_base": f"http://127.0.0.1:{backend_port}/v1",
                    "api_key": "none",
                },
            }
        ],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
        # No key: the peer is measured without the time that checking one takes.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    (folder / "litellm.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    command = [str(program), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1",
               "--port", str(port), "--num_workers", "1", "--telemetry", "False"]  # fmt: skip
    with running(["sh", "-c", 'exec "$@" >&2', "sh", *command], log, _environment(folder)) as child:
        _wait_until_live(child, port, log)
        yield port
        _check_loopback(child.pid)


def _environment(home: Path) -> dict[str, str]:
    """Return an environment without anything of ours in it, credentials least of all."""
    settings = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    proxies = {"http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}
    return {
        **settings,
        **dict.fromkeys(_SILENT, "True"),
        **dict.fromkeys(proxies, _NOBODY),
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
        "HOME": str(home),
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_TELEMETRY": "False",
        "NO_DOCS": "True",
        "DISABLE_ADMIN_UI": "True",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_live(child: subprocess.Popen[str], port: int, log: Path) -> None:
    until_s = time.monotonic() + START_S_MAX
    while time.monotonic() < until_s:
        if child.poll() is not None:
            raise StartError(f"LiteLLM ended at its start: {last_words(log)}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health/liveliness")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            time.sleep(POLL_S)
        finally:
            connection.close()
    raise StartError(f"LiteLLM did not serve within {START_S_MAX:.0f} s: {last_words(log)}")


def _check_loopback(pid: int) -> None:
    """Raise StartError if the program has a connection that leaves this machine."""
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        for connection in process.net_connections("inet"):
            peer = str(connection.raddr[0]) if len(connection.raddr) else "127.0.0.1"
            if not peer.startswith(("127.", "::1", "::ffff:127.")):
                raise StartError(f"LiteLLM has a connection to {peer}")
