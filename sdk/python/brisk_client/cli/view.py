"""`brisk ps`, `status` and `version`: what the cluster looks like."""

from __future__ import annotations

import platform
from importlib import metadata

from brisk_client.cli.options import AsJson, DataDir, Endpoint, folder_of
from brisk_client.cli.output import human_bytes, human_seconds, note, out, print_json, table
from brisk_client.endpoint import http_url, resolve_endpoint
from brisk_client.local.state import ClusterState, read_state
from brisk_client.results import ClusterView, Instance, Worker
from brisk_client.sync import Client


def ps(*, endpoint: Endpoint = None, as_json: AsJson = False) -> None:
    """List the instances: models that are on a device now, or on their way.

    For example:

      brisk ps

      brisk ps --json
    """
    with Client(endpoint) as client:
        instances = client.instances()
    if as_json:
        print_json(instances)
        return
    if not instances:
        note("no model is on a device; the next request starts one")
        return
    made = table("MODEL", "STATE", "DEVICE", ">MEMORY", "BUSY", "UNLOADS IN", "INSTANCE", "WORKER")
    for instance in instances:
        made.add_row(
            instance.deployment,
            str(instance.state),
            instance.device_id,
            human_bytes(instance.memory_bytes),
            _sequences(instance),
            _left(instance),
            instance.instance_id,
            instance.worker_id,
        )
    out().print(made)


def status(*, endpoint: Endpoint = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show who leads, the nodes, their devices and, for a local cluster, its processes.

    Exits with 4 if nobody answers. Examples:

      brisk status

      brisk status --endpoint 10.0.0.7:7480 --json
    """
    folder = folder_of(data_dir)
    address = resolve_endpoint(endpoint, folder)
    state = read_state(folder)
    local = state if state is not None and state.is_running and state.endpoint == address else None
    with Client(address) as client:
        view = client.nodes()
        deployments = client.list_models()
    if as_json:
        print_json({"endpoint": address, "cluster": view, "models": deployments, "local": local})
        return
    console = out()
    console.print(f"endpoint  {address}")
    if local is not None:
        console.print(f"openai    {http_url(local.http_endpoint)}")
    console.print(f"leader    {view.leader_id or 'none'} (epoch {view.leader_epoch})")
    ready = sum(deployed.instances_ready for deployed in deployments)
    console.print(f"models    {len(deployments)} deployed, {ready} instances ready")
    console.print()
    console.print(_devices(view))
    if local is not None:
        console.print()
        console.print(_processes(local))
        console.print(f"\nlogs      {folder.logs}")


def version(*, as_json: AsJson = False) -> None:
    """Print the versions of Brisk and what it runs on.

    Example: brisk version --json
    """
    versions = {
        "brisk": metadata.version("brisk"),
        "grpcio": metadata.version("grpcio"),
        "protobuf": metadata.version("protobuf"),
        "python": platform.python_version(),
    }
    if as_json:
        print_json(versions)
        return
    out().print(f"brisk {versions.pop('brisk')}")
    for name, number in versions.items():
        out().print(f"{name} {number}")


def _devices(view: ClusterView) -> object:
    made = table("NODE", "WORKER", "DEVICE", ">FREE", ">MEMORY", ">INSTANCES", "STATE")
    for node in view.nodes:
        for worker in node.workers:
            for device in worker.devices:
                here = [entry for entry in worker.instances if entry.device_id == device.device_id]
                made.add_row(
                    node.node_id,
                    worker.worker_id,
                    device.device_id,
                    human_bytes(device.free_bytes),
                    human_bytes(device.memory_bytes),
                    str(len(here)),
                    _worker_state(worker),
                )
        if not node.workers:
            made.add_row(node.node_id, "-", "-", "-", "-", "-", "no worker")
    return made


def _processes(state: ClusterState) -> object:
    made = table("SERVICE", ">PID", "GRPC", "METRICS")
    for service in state.services:
        made.add_row(service.name, str(service.pid), service.address, service.metrics)
    if state.redis_pid is not None:
        made.add_row("redis", str(state.redis_pid), "-", "-")
    return made


def _worker_state(worker: Worker) -> str:
    return "draining" if worker.draining else "serving"


def _sequences(instance: Instance) -> str:
    waiting = f", {instance.waiting} waiting" if instance.waiting else ""
    return f"{instance.running} of {instance.slots}{waiting}"


def _left(instance: Instance) -> str:
    if instance.keep_alive_left_s is not None:
        return human_seconds(instance.keep_alive_left_s)
    return "in use" if instance.idle_s is None else "never"
