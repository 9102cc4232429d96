"""The demo: start everything, stream from a cold and then a warm model, stop, leave nothing.

    python scripts/demo.py            the small model of the repository
    python scripts/demo.py --large    a random checkpoint of OPT-1.3B's shape, 2.6 GB

The data folder is BRISK_DATA_DIR, else .brisk in the repository. Ctrl-C stops cleanly at any
moment (exit code 130).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # the real imports come later, when Ctrl-C is already taken care of
    from brisk_client import Client, Deployment
    from brisk_client.local.leftovers import Traces
    from brisk_client.local.sync import LocalCluster
    from rich.console import Console

ROOT: Final = Path(__file__).resolve().parents[1]
EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """What the demo shows."""

    name: str
    source: Path
    device: str
    prompts: tuple[str, str]
    max_tokens: int


def small() -> Show:
    """Return the demo with the model that comes with the repository."""
    return Show(
        name="brisk-licence-1.5m",
        source=ROOT / "models" / "brisk-licence-1.5m",
        device="cpu:0=1GiB",
        prompts=("You may copy and distribute", "This License applies to"),
        max_tokens=96,
    )


def large(data_dir: Path) -> Show:
    """Return the demo with a 2.6 GB checkpoint, which is made first if it is not there."""
    source = data_dir / "models" / "opt-1.3b-random"
    program = ROOT / "scripts" / "make_large_model.py"
    subprocess.run([sys.executable, str(program), "--out", str(source)], check=True)
    return Show(
        name="opt-1.3b-random",
        source=source,
        device="cpu:0=8GiB",
        prompts=("Once upon a time", "In the beginning"),
        max_tokens=12,
    )


def main(arguments: list[str]) -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(description="Start everything, stream, stop everything.")
    parser.add_argument("--large", action="store_true", help="a random 2.6 GB checkpoint")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        return _demo(large_model=options.large)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done; one more changes nothing
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    except subprocess.CalledProcessError as error:
        return EXIT_INTERRUPTED if error.returncode == EXIT_INTERRUPTED else EXIT_FAILED


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _demo(*, large_model: bool) -> int:
    from brisk_client import BriskError  # noqa: PLC0415  (see the top)
    from brisk_client.local.errors import LocalClusterError  # noqa: PLC0415
    from brisk_client.local.sync import LocalCluster  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False)
    data_dir = Path(os.environ.get("BRISK_DATA_DIR") or ROOT / ".brisk")
    show = large(data_dir) if large_model else small()
    status = console.status("starting Redis and the services")

    def notice(text: str) -> None:
        status.update(f"starting Redis and the services: {text}")

    cluster = LocalCluster(data_dir, devices=[show.device], drain_s=2.0, on_notice=notice)
    code = EXIT_FAILED
    try:
        with status:
            cluster.start()
        _tell(console, cluster, show)
        code = 0
    except (BriskError, LocalClusterError) as error:
        console.print(f"[bold red]error:[/] {error}")
    finally:
        try:
            with console.status("stopping"):
                cluster.stop()
        finally:
            clean = _prove(console, cluster.traces)
    return code if clean else EXIT_FAILED


def _tell(console: Console, cluster: LocalCluster, show: Show) -> None:
    """Deploy the model, then ask it twice: cold and warm."""
    from brisk_client import Client  # noqa: PLC0415

    names = ", ".join(f"{state.name} {state.pid}" for state in cluster.services)
    console.print(f"[bold]up[/] at {cluster.router_address}: redis {cluster.redis_pid}, {names}")
    with Client(cluster.router_address) as client:
        deployed = _deploy(console, client, show)
        for prompt in show.prompts:
            _answer(console, client, show, deployed, prompt)


def _deploy(console: Console, client: Client, show: Show) -> Deployment:
    from brisk_client.cli.models import import_bar  # noqa: PLC0415
    from brisk_client.cli.output import human_bytes, human_count  # noqa: PLC0415

    with import_bar() as on_progress:
        deployed = client.deploy(show.name, source=show.source, on_progress=on_progress)
    model = deployed.model
    console.print(
        f"[bold]deployed[/] {deployed.name}: {model.architecture}, "
        f"{human_count(model.parameters)} parameters, {human_bytes(model.weight_bytes)}\n"
    )
    return deployed


def _answer(
    console: Console, client: Client, show: Show, deployed: Deployment, prompt: str
) -> None:
    from brisk_client.cli.answer import end_line, headline, show as show_stream, timings  # noqa: I001, PLC0415

    console.print(f"[bold cyan]{prompt}[/]", end="")
    stream = client.generate(
        show.name, prompt, max_tokens=show.max_tokens, temperature=0.0, want_progress=True
    )
    answer = show_stream(stream, console=console)
    end_line()
    console.print(f"\n[dim]{headline(answer)}[/]")
    console.print(timings(answer, weight_bytes=deployed.model.weight_bytes))
    console.print()


def _prove(console: Console, traces: Traces) -> bool:
    """Look for what a stopped cluster must not leave, and say what was found."""
    left = traces.leftovers()
    for entry in left:
        console.print(f"[bold red]left behind:[/] {entry}")
    if not left:
        console.print(
            f"[bold]stopped[/], nothing left behind: {len(traces.pids)} processes ended, "
            f"{len(traces.addresses)} ports closed, {len(traces.sockets)} socket removed, "
            "no shared memory"
        )
    return not left


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
