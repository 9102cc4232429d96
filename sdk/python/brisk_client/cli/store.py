"""`brisk store`: what each node's store manager has on its disk and in memory, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, TypeVar

import grpc
import typer
from brisk.common.v1 import model_pb2
from brisk.storage.v1 import storage_service_pb2 as pb
from brisk.storage.v1.storage_service_pb2_grpc import StorageServiceStub

from brisk_client import channel
from brisk_client.cli.models import import_bar
from brisk_client.cli.options import AsJson, Endpoint
from brisk_client.cli.output import human_age, human_bytes, human_seconds, out, print_json, table
from brisk_client.errors import NotFoundError, UnavailableError, from_rpc_error
from brisk_client.results import ImportProgress
from brisk_client.sync import Client

TIMEOUT_S: Final = 30.0
LONG_S: Final = 3600.0  # of what reads whole models

app = typer.Typer(
    help="What the nodes have of each model, on their disks and in memory.", no_args_is_help=True
)

Result = TypeVar("Result")
Node = Annotated[
    str | None, typer.Option("--node", metavar="NODE", help="One node only. Left out: all.")
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL[@REVISION]", help="An imported model; the latest import.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model in a node's store."""

    node_id: str
    name: str
    revision: str
    file_bytes: int
    dram_bytes: int  # 0: not in memory
    in_use: bool
    pinned: bool
    leases: int
    last_used: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStore:
    """A node's disk and memory."""

    node_id: str
    models: int
    stored_bytes: int
    disk_free_bytes: int
    arena_bytes: int  # 0: the node has none
    arena_free_bytes: int
    arena_in_use_bytes: int
    arena_kind: str
    bytes_per_second: int
    queued_bytes: int
    busy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptNode:
    """What was deleted on a node."""

    node_id: str
    models: int
    freed_bytes: int


@app.command("ls")
def list_models(*, node: Node = None, endpoint: Endpoint = None, as_json: AsJson = False) -> None:
    """List the stored models of each node.

    For example:

      brisk store ls

      brisk store ls --json | jq '.[] | select(.dram_bytes > 0) | .name'
    """
    models = [
        _stored_model(node_id, stored)
        for node_id, state in _describe(endpoint, node)
        for stored in state.models
    ]
    if as_json:
        print_json(models)
        return
    made = table("NODE", "MODEL", "REVISION", ">SIZE", ">IN MEMORY", "USE", "LAST USED")
    for model in models:
        uses = [
            *(["in use"] if model.in_use else []),
            *(["pinned"] if model.pinned else []),
            *([f"{model.leases} leases"] if model.leases else []),
        ]
        made.add_row(
            model.node_id,
            model.name,
            model.revision,
            human_bytes(model.file_bytes),
            human_bytes(model.dram_bytes) if model.dram_bytes else "-",
            ", ".join(uses) or "-",
            f"{human_age(model.last_used)} ago" if model.last_used is not None else "-",
        )
    out().print(made)


@app.command()
def df(*, node: Node = None, endpoint: Endpoint = None, as_json: AsJson = False) -> None:
    """Show how full each node's disk and memory are, and how busy its disk is.

    For example:

      brisk store df
    """
    stores = [_node_store(node_id, state) for node_id, state in _describe(endpoint, node)]
    if as_json:
        print_json(stores)
        return
    made = table(
        "NODE", ">MODELS", ">STORED", ">DISK FREE", ">MEMORY", ">FREE", ">IN USE", ">READS", ">BUSY"
    )
    for store in stores:
        has_arena = store.arena_bytes > 0
        speed = store.bytes_per_second
        made.add_row(
            store.node_id,
            str(store.models),
            human_bytes(store.stored_bytes),
            human_bytes(store.disk_free_bytes),
            f"{human_bytes(store.arena_bytes)} {store.arena_kind}" if has_arena else "none",
            human_bytes(store.arena_free_bytes) if has_arena else "-",
            human_bytes(store.arena_in_use_bytes) if has_arena else "-",
            f"{human_bytes(speed)}/s" if speed else "-",
            human_seconds(store.busy_s) if store.queued_bytes else "-",
        )
    out().print(made)


@app.command()
def prefetch(
    model: ModelName, *, node: Node = None, endpoint: Endpoint = None, as_json: AsJson = False
) -> None:
    """Bring a model into memory before it is asked for.

    For example:

      brisk store prefetch tiny --node node-a
    """
    request = pb.PrefetchRequest(model=_ref(model))
    with import_bar("reading") as on_progress:

        def bring(stub: StorageServiceStub) -> None:
            for each in stub.Prefetch(request, timeout=LONG_S):
                on_progress(
                    ImportProgress(
                        bytes_done=each.bytes_done, bytes_total=each.bytes_total, file=model
                    )
                )

        done = _on_each(endpoint, node, bring)
    _tell(model, done, "is in memory", as_json=as_json)


@app.command()
def evict(
    model: ModelName, *, node: Node = None, endpoint: Endpoint = None, as_json: AsJson = False
) -> None:
    """Remove a model from memory; its files stay. Refused while it is in use.

    For example:

      brisk store evict tiny
    """
    request = pb.EvictRequest(model=_ref(model))
    done = _on_each(endpoint, node, lambda stub: stub.Evict(request, timeout=TIMEOUT_S))
    _tell(model, done, "is not in memory", as_json=as_json)


@app.command()
def pin(
    model: ModelName, *, node: Node = None, endpoint: Endpoint = None, as_json: AsJson = False
) -> None:
    """Keep a model in memory, once it is there, until it is unpinned or the node restarts.

    For example:

      brisk store pin tiny
    """
    request = pb.PinRequest(model=_ref(model), pinned=True)
    done = _on_each(endpoint, node, lambda stub: stub.Pin(request, timeout=TIMEOUT_S))
    _tell(model, done, "is pinned", as_json=as_json)


@app.command()
def verify(
    model: ModelName, *, node: Node = None, endpoint: Endpoint = None, as_json: AsJson = False
) -> None:
    """Read all files of a model and compare them with their checksums.

    For example:

      brisk store verify tiny
    """
    request = pb.VerifyRequest(model=_ref(model))
    done = _on_each(endpoint, node, lambda stub: stub.Verify(request, timeout=LONG_S))
    _tell(model, done, "is sound", as_json=as_json)


@app.command()
def gc(*, node: Node = None, endpoint: Endpoint = None, as_json: AsJson = False) -> None:
    """Delete the damaged models that nodes put into quarantine.

    For example:

      brisk store gc
    """
    swept = []
    for node_id, address in _addresses(endpoint, node):
        with _stub(address) as stub:
            reply = stub.Sweep(pb.SweepRequest(), timeout=LONG_S)
        swept.append(SweptNode(node_id=node_id, models=reply.models, freed_bytes=reply.freed_bytes))
    if as_json:
        print_json(swept)
        return
    for each in swept:
        out().print(
            f"{each.models} damaged models deleted on {each.node_id}, "
            f"{human_bytes(each.freed_bytes)}"
        )


@app.command()
def unpin(
    model: ModelName, *, node: Node = None, endpoint: Endpoint = None, as_json: AsJson = False
) -> None:
    """Let a model make room for others again.

    For example:

      brisk store unpin tiny
    """
    request = pb.PinRequest(model=_ref(model), pinned=False)
    done = _on_each(endpoint, node, lambda stub: stub.Pin(request, timeout=TIMEOUT_S))
    _tell(model, done, "is not pinned", as_json=as_json)


def _addresses(endpoint: str | None, node: str | None) -> list[tuple[str, str]]:
    """Return node and address of each store manager. Raises NotFoundError for an unknown node."""
    with Client(endpoint) as client:
        nodes = client.nodes().nodes
    if node is not None and node not in {each.node_id for each in nodes}:
        known = ", ".join(each.node_id for each in nodes) or "none"
        raise NotFoundError(f"there is no node {node[:80]!r}; known: {known}", reason="NO_NODE")
    found = [
        (each.node_id, each.storemgr_address)
        for each in nodes
        if each.storemgr_address is not None and node in {None, each.node_id}
    ]
    if not found:
        raise UnavailableError("no store manager is registered", reason="NO_NODE")
    return found


def _describe(endpoint: str | None, node: str | None) -> list[tuple[str, pb.DescribeResponse]]:
    states = []
    for node_id, address in _addresses(endpoint, node):
        with _stub(address) as stub:
            states.append((node_id, stub.Describe(pb.DescribeRequest(), timeout=TIMEOUT_S)))
    return states


def _on_each(
    endpoint: str | None, node: str | None, call: Callable[[StorageServiceStub], Result]
) -> list[str]:
    """Call every node that has the model and return their names; NotFoundError if none has."""
    done: list[str] = []
    missing: NotFoundError | None = None
    for node_id, address in _addresses(endpoint, node):
        try:
            with _stub(address) as stub:
                call(stub)
        except NotFoundError as error:
            missing = error
        else:
            done.append(node_id)
    if not done and missing is not None:
        raise missing
    return done


@contextmanager
def _stub(address: str) -> Iterator[StorageServiceStub]:
    """Give a client of a store manager; what it answers with an error becomes ours."""
    with grpc.insecure_channel(channel.parse_endpoint(address), options=channel.OPTIONS) as opened:
        try:
            yield StorageServiceStub(opened)
        except grpc.RpcError as error:
            raise from_rpc_error(error, endpoint=address) from error


def _tell(model: str, nodes: list[str], what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"model": model, "nodes": nodes})
        return
    for node_id in nodes:
        out().print(f"{model} {what} on {node_id}")


def _ref(model: str) -> model_pb2.ModelRef:
    name, _, revision = model.partition("@")
    return model_pb2.ModelRef(name=name, revision=revision)


def _stored_model(node_id: str, stored: pb.StoredModel) -> StoredModel:
    return StoredModel(
        node_id=node_id,
        name=stored.info.ref.name,
        revision=stored.info.ref.revision,
        file_bytes=stored.file_bytes,
        dram_bytes=stored.dram_bytes,
        in_use=stored.in_use,
        pinned=stored.pinned,
        leases=stored.leases,
        last_used=stored.last_used.ToDatetime(UTC) if stored.HasField("last_used") else None,
    )


def _node_store(node_id: str, state: pb.DescribeResponse) -> NodeStore:
    return NodeStore(
        node_id=node_id,
        models=len(state.models),
        stored_bytes=sum(stored.file_bytes for stored in state.models),
        disk_free_bytes=state.free_bytes,
        arena_bytes=state.arena.size_bytes,
        arena_free_bytes=state.arena.free_bytes,
        arena_in_use_bytes=state.arena.in_use_bytes,
        arena_kind=state.arena.kind,
        bytes_per_second=state.disk.bytes_per_second,
        queued_bytes=state.disk.queued_bytes,
        busy_s=state.disk.busy_for.ToTimedelta().total_seconds(),
    )
