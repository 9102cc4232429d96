"""What a local cluster consists of, and the command line and environment of each process."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from brisk_client.local.errors import LocalClusterError
from brisk_client.local.paths import DataFolder
from brisk_client.local.process import Command
from brisk_client.local.redis import RedisServer

NODE_ID: Final = "local"
DEFAULT_DEVICE: Final = "default"  # whatever a worker chooses that is told nothing
DEVICES_MAX: Final = 64
# Stopping goes along the path of a request, so that nobody loses what it still needs.
STOP_ORDER: Final = ("router", "worker", "scheduler", "storemgr", "redis")

_READY_S_MAX: Final = 60.0
_WORKER_READY_S_MAX: Final = 120.0  # imports torch, which a busy machine takes a minute for
_REDIS_READY_S_MAX: Final = 30.0  # reads its file first
_STOP_MARGIN_S: Final = 10.0
_DEVICE: Final = re.compile(r"[a-z]+:\d+=\S+")
_NODE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """A node: one store manager, and one worker per device."""

    node_id: str = NODE_ID
    devices: tuple[str, ...]

    def __post_init__(self) -> None:
        if not _NODE.fullmatch(self.node_id):
            raise LocalClusterError(f"node id {self.node_id!r} is not 1..64 of [A-Za-z0-9._-]")
        for device in self.devices:
            if device != DEFAULT_DEVICE and not _DEVICE.fullmatch(device):
                raise LocalClusterError(
                    f"device {device!r} is not of the form cpu:0=4GiB (kind:number=memory)"
                )
        if len(self.devices) > DEVICES_MAX:
            raise LocalClusterError(f"at most {DEVICES_MAX} devices; given: {len(self.devices)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """A whole cluster on this machine."""

    folder: DataFolder
    nodes: tuple[NodeSpec, ...]
    router_port: int  # 0: the kernel chooses
    http_port: int = 0  # of the router's OpenAI-compatible endpoint; 0: the kernel chooses
    redis_url: str | None = None  # None: a server of our own
    drain_s: float = 10.0  # how long running requests may go on when we stop
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def redis_command(spec: ClusterSpec, server: RedisServer) -> Command:
    """Return how to start Redis."""
    return Command(
        name="redis",
        kind="redis",
        arguments=server.arguments,
        environment={name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
        log_file=spec.folder.logs / "redis.log",
        answers=server.answers,
        standard_input=server.settings,
        ready_s_max=_REDIS_READY_S_MAX,
        stop_s_max=_STOP_MARGIN_S,
    )


def service_commands(spec: ClusterSpec, redis_url: str) -> list[Command]:
    """Return how to start each service, in no particular order."""
    commands = [
        _service(spec, redis_url, "scheduler", "scheduler", {}),
        router_command(spec, redis_url, spec.router_port, spec.http_port),
    ]
    several = sum(len(node.devices) for node in spec.nodes) > 1
    number = 0
    for index, node in enumerate(spec.nodes):
        own = {"NODE_ID": node.node_id}
        only = len(spec.nodes) == 1
        name = "storemgr" if only else f"storemgr-{index}"
        folder = spec.folder.node(node.node_id, only=only)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = {**own, "DATA_DIR": str(folder)}
        commands.append(_service(spec, redis_url, "storemgr", name, data))
        for device in node.devices:
            name = f"worker-{number}" if several else "worker"
            number += 1
            chosen = {} if device == DEFAULT_DEVICE else {"DEVICES": device}
            commands.append(_service(spec, redis_url, "worker", name, {**own, **chosen}))
    return commands


def router_command(spec: ClusterSpec, redis_url: str, port: int, http_port: int) -> Command:
    """Return how to start the router at its two ports."""
    listen = {"LISTEN": f"127.0.0.1:{port}", "HTTP_LISTEN": f"127.0.0.1:{http_port}"}
    return _service(spec, redis_url, "router", "router", listen)


def _service(
    spec: ClusterSpec, redis_url: str, kind: str, name: str, settings: Mapping[str, str]
) -> Command:
    ready_file = spec.folder.run / f"{name}.json"
    prefix = f"BRISK_{kind.upper()}_"
    fixed = {
        "LISTEN": "127.0.0.1:0",
        "METRICS_LISTEN": "127.0.0.1:0",
        "READY_FILE": str(ready_file),
        "NODE_ID": NODE_ID,
        "LOG_FORMAT": "json",
        "DIE_WITH_PARENT": "1",
        **settings,
    }
    drain_s = _drain_s(spec, prefix)
    environment = {
        "OMP_NUM_THREADS": "1",  # two threads on shared cores spin at barriers: ten times slower
        **os.environ,
        "BRISK_DRAIN_S": str(drain_s),
        **spec.environment,
        **{prefix + field_name: value for field_name, value in fixed.items()},
        "BRISK_REDIS_URL": redis_url,
    }
    environment.pop(prefix + "REDIS_URL", None)  # it would win over the cluster's own
    environment.pop(prefix + "ADVERTISE", None)  # these are on loopback, for nobody else
    environment.pop("BRISK_ADVERTISE", None)
    return Command(
        name=name,
        kind=kind,
        # -P: the current folder's own `services` package, if any, is not ours.
        arguments=(sys.executable, "-P", "-m", f"services.{kind}"),
        environment=environment,
        log_file=spec.folder.logs / f"{name}.log",
        ready_file=ready_file,
        ready_s_max=_WORKER_READY_S_MAX if kind == "worker" else _READY_S_MAX,
        stop_s_max=drain_s + _STOP_MARGIN_S,
    )


def _drain_s(spec: ClusterSpec, prefix: str) -> float:
    """Return the drain limit that the service will use, as far as we can tell."""
    for name in (f"{prefix}DRAIN_S", "BRISK_DRAIN_S"):
        given = spec.environment.get(name, os.environ.get(name))
        try:
            if given is not None:
                return float(given)
        except ValueError:
            return spec.drain_s  # the service will refuse it and name the variable
    return spec.drain_s


def nodes_of(devices: Sequence[str] | None) -> tuple[NodeSpec, ...]:
    """Return one node with `devices`, or with one worker that chooses its device itself."""
    return (NodeSpec(devices=tuple(devices) if devices else (DEFAULT_DEVICE,)),)
