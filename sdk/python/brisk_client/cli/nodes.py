"""`brisk nodes` and `brisk top`: the cluster by nodes, once and live."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from brisk_client.cli.options import AsJson, Endpoint
from brisk_client.cli.output import (
    human_bytes,
    human_milliseconds,
    human_seconds,
    note,
    out,
    print_json,
    table,
)
from brisk_client.results import ClusterView, Deployment, Instance, InstanceState, Node
from brisk_client.sync import Client

_BAR: Final = 20
_ROWS_MAX: Final = 30
_INTERVAL_S_LEAST: Final = 0.1


def nodes(*, endpoint: Endpoint = None, as_json: AsJson = False) -> None:
    """List the nodes: their memory, how fast they load, and what they are loading.

    For example:

      brisk nodes

      brisk nodes --json
    """
    with Client(endpoint) as client:
        view = client.nodes()
    if as_json:
        print_json(view)
        return
    if not view.nodes:
        note("no node is registered")
        return
    out().print(_nodes(view))


def top(
    *,
    interval: Annotated[
        float, typer.Option("--interval", "-i", metavar="SECONDS", help="Between two looks (1).")
    ] = 1.0,
    endpoint: Endpoint = None,
) -> None:
    """Watch devices, instances and loads until Ctrl-C; into a pipe, look once.

    For example:

      brisk top

      brisk top --interval 0.5
    """
    if not interval >= _INTERVAL_S_LEAST:
        raise typer.BadParameter(f"--interval must be at least {_INTERVAL_S_LEAST:g} s")
    console = out()
    with Client(endpoint) as client:
        if not sys.stdout.isatty():
            console.print(_picture(client))
            return
        with Live(_picture(client), console=console, auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(interval)
                live.update(_picture(client), refresh=True)


def _picture(client: Client) -> Group:
    """Return what the cluster looks like now."""
    view, instances, models = client.nodes(), client.instances(), client.list_models()
    head = Text(_headline(view, instances, models))
    parts: list[Text | Table] = [
        head,
        Text(),
        _nodes(view),
        Text(),
        _devices(view),
        Text(),
        _instances(instances),
    ]
    if len(instances) > _ROWS_MAX:
        parts.append(Text(f"and {len(instances) - _ROWS_MAX} more instances", style="dim"))
    return Group(*parts)


def _headline(
    view: ClusterView, instances: tuple[Instance, ...], models: tuple[Deployment, ...]
) -> str:
    count = {
        state: sum(each.state is state for each in instances)
        for state in (InstanceState.READY, InstanceState.LOADING, InstanceState.LEAVING)
    }
    running = sum(each.running for each in instances)
    waiting = sum(each.waiting for each in instances)
    told = ", ".join(f"{number} {state}" for state, number in count.items())
    return (
        f"leader {view.leader_id or 'none'} (epoch {view.leader_epoch})   {len(models)} models   "
        f"instances: {told}   sequences: {running} running, {waiting} waiting"
    )


def _nodes(view: ClusterView) -> Table:
    made = table(
        "NODE",
        "WORKERS",
        ">FREE",
        ">MEMORY",
        ">INSTANCES",
        ">LOADS",
        ">I/O WAIT",
        ">DISK",
        ">IN RAM",
    )
    for node in view.nodes:
        devices = [device for worker in node.workers for device in worker.devices]
        made.add_row(
            node.node_id,
            _workers(node),
            human_bytes(sum(device.free_bytes for device in devices)),
            human_bytes(sum(device.memory_bytes for device in devices)),
            str(sum(len(worker.instances) for worker in node.workers)),
            *_io(node),
        )
    return made


def _workers(node: Node) -> str:
    if not node.workers:
        return "none"
    draining = sum(worker.draining for worker in node.workers)
    return f"{len(node.workers)}, {draining} draining" if draining else str(len(node.workers))


def _io(node: Node) -> tuple[str, str, str, str]:
    io = node.io
    if io is None:
        return "-", "-", "-", "-"
    in_dram = "-" if io.models_in_dram is None else f"{io.models_in_dram} models"
    return (
        str(io.loads),
        human_milliseconds(io.wait_s),
        f"{human_bytes(io.ssd_bytes_per_s)}/s",
        in_dram,
    )


def _devices(view: ClusterView) -> Table:
    made = table("DEVICE", "USED", ">", ">INSTANCES")
    for node in view.nodes:
        for worker in node.workers:
            for device in worker.devices:
                here = sum(entry.device_id == device.device_id for entry in worker.instances)
                used_bytes = device.memory_bytes - device.free_bytes
                share = used_bytes / device.memory_bytes if device.memory_bytes else 0.0
                filled = min(_BAR, max(0, round(share * _BAR)))
                made.add_row(
                    f"{node.node_id}/{worker.worker_id}/{device.device_id}",
                    "█" * filled + "░" * (_BAR - filled),
                    f"{human_bytes(used_bytes)} of {human_bytes(device.memory_bytes)}",
                    str(here),
                )
    return made


def _instances(instances: tuple[Instance, ...]) -> Table:
    """Return what is loading, then what is busy, then the rest."""
    made = table("MODEL", "STATE", "DEVICE", ">MEMORY", "SEQUENCES", "IDLE FOR", "UNLOADS IN")
    order = sorted(
        instances,
        key=lambda each: (
            each.state is InstanceState.READY,
            -each.running - each.waiting,
            each.deployment,
            each.instance_id,
        ),
    )
    for each in order[:_ROWS_MAX]:
        waiting = f", {each.waiting} waiting" if each.waiting else ""
        made.add_row(
            each.deployment,
            str(each.state),
            f"{each.worker_id}/{each.device_id}",
            human_bytes(each.memory_bytes),
            f"{each.running} of {each.slots}{waiting}",
            "-" if each.idle_s is None else human_seconds(each.idle_s),
            "-" if each.keep_alive_left_s is None else human_seconds(each.keep_alive_left_s),
        )
    return made
