"""`brisk up` and `brisk down`: the cluster of this machine."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer

from brisk_client.cli import detached
from brisk_client.cli.foreground import run_foreground
from brisk_client.cli.log_view import LogView
from brisk_client.cli.options import AsJson, DataDir, folder_of
from brisk_client.cli.output import err, note, out, print_json
from brisk_client.endpoint import DEFAULT_HTTP_PORT, DEFAULT_PORT, http_url
from brisk_client.local.errors import LocalClusterError
from brisk_client.local.spec import ClusterSpec, nodes_of
from brisk_client.local.sync import REDIS_URL_VARIABLE

_PORT_MAX = 65_535


def up(
    *,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when it is ready; logs go to files.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=_PORT_MAX, help="The router's port; 0: any free one.")
    ] = DEFAULT_PORT,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=_PORT_MAX,
            help="The port of its OpenAI-compatible endpoint; 0: any free one. "
            f"[default: {DEFAULT_HTTP_PORT}, or any free one if --port is given]",
        ),
    ] = None,
    data_dir: DataDir = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICE=MEMORY",
            help="For example cpu:0=4GiB. One worker each; may be repeated. "
            "Left out: one CPU device with most of the memory.",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no logs.")] = False,
) -> None:
    """Start Redis and all services on this machine, and stop them with Ctrl-C.

    One cluster per data folder. With BRISK_REDIS_URL set, that Redis is used. When it stops,
    answers under way have 10 s to end, or as many as BRISK_DRAIN_S says. A second Ctrl-C ends
    everything at once. Examples:

      brisk up

      brisk up --detach --device cpu:0=4GiB --device cpu:1=4GiB
    """
    folder = folder_of(data_dir)
    if http_port is None:
        http_port = DEFAULT_HTTP_PORT if port == DEFAULT_PORT else 0
    try:
        nodes = nodes_of(device)
    except LocalClusterError as exc:
        raise typer.BadParameter(str(exc)) from exc
    spec = ClusterSpec(
        folder=folder,
        nodes=nodes,
        router_port=port,
        http_port=http_port,
        redis_url=os.environ.get(REDIS_URL_VARIABLE),
    )
    folder.create()  # a folder that cannot be used is refused before anything starts
    if not detach:
        code = asyncio.run(run_foreground(spec, LogView(err()), logs=not quiet))
        raise typer.Exit(code)
    state = detached.start(folder, port=port, http_port=http_port, devices=device or [])
    if as_json:
        print_json(state)
        return
    out().print(f"Brisk is ready at {state.endpoint}")
    out().print(f"OpenAI-compatible endpoint: {http_url(state.http_endpoint)}")
    note(f"logs: {folder.logs}; `brisk down` stops it")


def down(*, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Stop the cluster of this machine; answers under way may end first.

    Does nothing if none runs. Examples:

      brisk down

      brisk down --data-dir ./.brisk
    """
    folder = folder_of(data_dir)
    stopped = detached.stop(folder)
    if as_json:
        print_json({"stopped": stopped, "data_dir": str(folder.root)})
    elif stopped:
        out().print("stopped")
    else:
        note(f"no cluster runs in {folder.root}")
