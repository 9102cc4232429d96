"""Measure how much later the first token comes through the router than from the worker.

One run measures, in turns, a warm request to the worker directly, through Brisk's router, and
through a relay that only copies bytes, which is the floor for any gRPC router; and, as the peer,
LiteLLM's proxy before a stub against that stub. What counts is the difference within a turn, for
both of its halves saw the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # before gRPC is imported

import uvloop
from brisk_client import BriskError, Client
from brisk_client.local.errors import LocalClusterError
from brisk_client.local.sync import LocalCluster
from grpc import RpcError

from bench.first_token import GrpcWays, HttpWay, NoTokenError, Places
from bench.peers import litellm
from bench.processes import ROOT, StartError, leave_on_sigterm, serving
from bench.report import Mark, Report, Series, publish, this_run

DEPLOYMENT, MODEL = "router-overhead", ROOT / "models" / "brisk-licence-1.5m"
LIMIT_MS = 3.0
TURNS, TURNS_QUICK, WARM_UP, BLOCK = 400, 60, 20, 20
METHOD = (
    "Time from the call to the first token of a warm request, for three ways that take turns in "
    "changing order: client to worker; client to router to worker; client to a relay that only "
    "copies bytes to worker. Each is a process of its own, on loopback, one request at a time; "
    "prompt and sampling are the same, the model is the demo's. The figures are differences "
    "within a turn. LiteLLM's proxy is measured in blocks of the same run, before a stub server "
    "that answers at once, against that stub alone: one worker process, no key, no database, no "
    "logging. It speaks HTTP where Brisk speaks gRPC, and translates between providers besides."
)


@dataclass(slots=True, kw_only=True)
class Timings:
    """Milliseconds to the first token by each way, one entry per turn."""

    worker: list[float] = field(default_factory=list)
    relay: list[float] = field(default_factory=list)
    router: list[float] = field(default_factory=list)
    stub: list[float] = field(default_factory=list)
    litellm: list[float] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Bench:
    """A cluster with a warm instance, the peers, and what was measured so far."""

    runner: asyncio.Runner
    grpc_ways: GrpcWays
    http_ways: tuple[HttpWay, HttpWay] | None  # the stub and LiteLLM before it
    timings: Timings = field(default_factory=Timings)

    def block(self, turns: int, first_turn: int) -> None:
        """Measure `turns` turns of Brisk's ways, then as many of the peer's."""
        self.runner.run(self._brisk_turns(turns, first_turn))
        for turn in range(first_turn, first_turn + turns) if self.http_ways else ():
            self._peer_turn(turn)

    async def _brisk_turns(self, turns: int, first_turn: int) -> None:
        ways: list[tuple[Callable[[], Awaitable[float]], list[float]]] = [
            (self.grpc_ways.by_worker, self.timings.worker),
            (self.grpc_ways.by_router, self.timings.router),
            (self.grpc_ways.by_relay, self.timings.relay),
        ]
        orders = list(permutations(ways))  # so that each way follows each other one as often
        for turn in range(first_turn, first_turn + turns):
            for way, found in orders[turn % len(orders)]:
                found.append(await way())

    def _peer_turn(self, turn: int) -> None:
        if self.http_ways is None:
            return
        pairs = list(zip(self.http_ways, (self.timings.stub, self.timings.litellm), strict=True))
        for way, found in pairs if turn % 2 else reversed(pairs):
            found.append(way.first_ms())


def start_cluster(stack: ExitStack, folder: Path) -> Places:
    """Start Brisk and the relay, deploy the model and warm it up; `stack` stops them."""
    cluster = stack.enter_context(LocalCluster(folder / "data", devices=["cpu:0=1GiB"]))
    with Client(cluster.router_address) as client:
        client.deploy(DEPLOYMENT, source=MODEL, keep_alive_s=math.inf)
        client.generate(DEPLOYMENT, "You may", max_tokens=1).result()
        instance = next(one for one in client.instances() if one.deployment == DEPLOYMENT)
    worker = cluster.worker_addresses[0]
    port = stack.enter_context(serving("bench.peers.grpc_relay", worker, log=folder / "relay.log"))
    return Places(
        worker=worker,
        relay=f"127.0.0.1:{port}",
        router=cluster.router_address,
        instance_id=instance.instance_id,
        deployment=DEPLOYMENT,
    )


def start_peer(stack: ExitStack, folder: Path) -> tuple[HttpWay, HttpWay]:
    """Start the stub server and LiteLLM before it; `stack` stops them. Raises StartError."""
    stub = stack.enter_context(serving("bench.peers.openai_stub", log=folder / "stub.log"))
    proxy = stack.enter_context(litellm.proxy(stub, folder))
    ways = (HttpWay(stub, litellm.MODEL), HttpWay(proxy, litellm.MODEL))
    for way in ways:
        stack.callback(way.close)
    return ways


def measure(turns: int, *, with_peer: bool) -> tuple[Timings, tuple[str, ...]]:
    """Run the benchmark and return what it measured, and notes; leaves no process behind."""
    notes: tuple[str, ...] = ()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="brisk-bench-")))
        http_ways = None
        if with_peer:
            try:
                http_ways = start_peer(stack, folder)
            except StartError as error:
                notes = (f"LiteLLM was not measured: {error}",)
        else:
            notes = ("LiteLLM was not measured: --no-peer",)
        places = start_cluster(stack, folder)
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        grpc_ways = runner.run(_open(places))
        stack.callback(lambda: runner.run(grpc_ways.close()))
        bench = Bench(runner=runner, grpc_ways=grpc_ways, http_ways=http_ways)
        bench.block(WARM_UP, 0)
        bench.timings = Timings()
        for first_turn in range(0, turns, BLOCK):
            bench.block(min(BLOCK, turns - first_turn), first_turn)
            print(f"turn {first_turn + BLOCK} of {turns}", file=sys.stderr)
        return bench.timings, notes


async def _open(places: Places) -> GrpcWays:
    """Open the channels inside the event loop that will use them."""
    return GrpcWays(places)


def report(timings: Timings, notes: tuple[str, ...]) -> Report:
    """Turn the timings into the report with its key figure."""
    router = _added("router: added to the first token", timings.router, timings.worker)
    series = [
        router,
        _added("bare relay: added to the first token", timings.relay, timings.worker),
        _series("worker, called directly", timings.worker),
        _series("through the router", timings.router),
        _series("through the bare relay", timings.relay),
    ]
    if timings.litellm:
        peer = _added("LiteLLM: added to the first token", timings.litellm, timings.stub)
        series.insert(2, peer)
        series += [
            _series("stub server, called directly", timings.stub),
            _series("through LiteLLM's proxy", timings.litellm),
        ]
        ratio = peer.median / router.median if router.median > 0 else math.inf
        notes = (f"LiteLLM's proxy adds {ratio:.1f} times what Brisk's router adds.", *notes)
    return Report(
        name="router_overhead",
        title="Router overhead: what the router adds to the first token of a warm request",
        method=METHOD,
        series=tuple(series),
        marks=(Mark(name="router overhead", value=router.median, unit="ms", limit=LIMIT_MS),),
        notes=notes,
        run=this_run(
            ("grpcio", "protobuf", "uvloop", "torch", "transformers"),
            {"litellm": litellm.version()},
        ),
    )


def _series(label: str, values: list[float]) -> Series:
    return Series(label=label, unit="ms", values=tuple(values))


def _added(label: str, longer: list[float], shorter: list[float]) -> Series:
    pairs = zip(longer, shorter, strict=True)
    return _series(label, [one - other for one, other in pairs])


def main(arguments: list[str]) -> int:
    """Run the benchmark; return 0 if the mark is met, 1 if it is missed, 2 if nothing ran."""
    parser = argparse.ArgumentParser(
        description="Measure what the router adds to the first token of a warm request.",
        epilog="A full run writes docs/benchmarks/router_overhead.md.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer turns, no page")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--no-peer", action="store_true", help="leave LiteLLM out")
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    turns = TURNS_QUICK if options.quick else TURNS
    try:
        timings, notes = measure(turns, with_peer=not options.no_peer)
    except (StartError, NoTokenError, LocalClusterError, BriskError, RpcError, OSError) as error:
        print(f"router_overhead: could not measure: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return publish(report(timings, notes), as_json=options.json, document=not options.quick)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
