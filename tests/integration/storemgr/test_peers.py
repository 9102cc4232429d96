"""A node that lacks a model gets it from those that have it, whoever of them dies meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from brisk.common.v1 import model_pb2
from brisk.storage.v1 import storage_service_pb2 as pb
from brisk.storage.v1 import storage_service_pb2_grpc as pb_grpc

from services.common.errors import BriskError
from services.common.status import from_rpc_error
from tests.broken_models import WEIGHTS
from tests.integration.storemgr.nodes import Node, contents_of, running
from tests.remote_models import large_folder

MODEL_BYTES = 40 << 20  # five runs or more
CAP = 16 << 20  # bytes per second: slow enough to be interfered with
SLOWLY = {"BRISK_STOREMGR_SOURCE_BYTES_PER_S": str(CAP), "BRISK_STOREMGR_SOURCE_TRIES": "2"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_folder(tmp_path_factory.mktemp("source") / "tiny", MODEL_BYTES)


class Peers:
    """Store managers that know one another, by name."""

    def __init__(self, folder: Path, redis_url: str, stack: ExitStack) -> None:
        self._folder = folder
        self._redis_url = redis_url
        self._stack = stack

    def start(self, name: str, **settings: str) -> Node:
        (self._folder / name).mkdir(exist_ok=True)
        node = Node(self._folder / name / "data", self._redis_url, BRISK_NODE_ID=name, **settings)
        return self._stack.enter_context(running(node))

    def stub(self, node: Node) -> pb_grpc.StorageServiceStub:
        channel = self._stack.enter_context(grpc.insecure_channel(node.address))
        return pb_grpc.StorageServiceStub(channel)


@pytest.fixture
def peers(tmp_path: Path, redis_url: str) -> Iterator[Peers]:
    with ExitStack() as stack:
        yield Peers(tmp_path, redis_url, stack)


def imported(stub: pb_grpc.StorageServiceStub, folder: Path) -> model_pb2.ModelRef:
    request = pb.ImportRequest(source_path=str(folder), name="tiny")
    return list(stub.Import(request, timeout=60))[-1].model.ref


def folder_in(node: Node, ref: model_pb2.ModelRef) -> Path:
    return node.data_dir / "store" / "models" / ref.name / ref.revision


def refusal_of(answers: object) -> BriskError:
    with pytest.raises(grpc.RpcError) as refusal:
        list(answers)  # type: ignore[call-overload]
    return from_rpc_error(refusal.value)  # type: ignore[arg-type]


def test_it_comes_from_all_who_have_it_and_is_the_same(peers: Peers, model: Path) -> None:
    one, two, three = (peers.start(name) for name in ("one", "two", "three"))
    ref = imported(peers.stub(one), model)
    assert imported(peers.stub(two), model) == ref
    told = list(peers.stub(three).Fetch(pb.FetchRequest(model=ref), timeout=60))
    assert told[-1].model.ref == ref
    assert {each.origin for each in told[:-1]} == {"peer"}
    ours, theirs = folder_in(three, ref), folder_in(one, ref)
    assert (ours / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()
    assert contents_of(ours).keys() == contents_of(theirs).keys()
    again = list(peers.stub(three).Fetch(pb.FetchRequest(model=ref), timeout=60))
    assert len(again) == 1  # it is here


def test_a_peer_that_dies_is_done_without(peers: Peers, model: Path) -> None:
    one, two = peers.start("one"), peers.start("two")
    ref = imported(peers.stub(one), model)
    imported(peers.stub(two), model)
    three = peers.start("three", **SLOWLY, BRISK_STOREMGR_SOURCE_STREAMS="2")
    call = peers.stub(three).Fetch(pb.FetchRequest(model=ref), timeout=60)
    while next(call).bytes_done < 1 << 20:
        pass
    one.kill()
    last = list(call)[-1]
    assert last.model.ref == ref
    three.wait_for("source lost")
    assert (folder_in(three, ref) / WEIGHTS).read_bytes() == (
        folder_in(two, ref) / WEIGHTS
    ).read_bytes()


def test_when_all_peers_die_it_says_so_and_goes_on_later(peers: Peers, model: Path) -> None:
    one = peers.start("one")
    ref = imported(peers.stub(one), model)
    two = peers.start("two", **SLOWLY, BRISK_STOREMGR_SOURCE_STREAMS="1")
    call = peers.stub(two).Fetch(pb.FetchRequest(model=ref), timeout=60)
    while next(call).bytes_done < 8 << 20:
        pass
    one.kill()
    assert refusal_of(call).reason == "SOURCE_UNAVAILABLE"
    assert not folder_in(two, ref).exists()
    peers.start("one")
    told = list(peers.stub(two).Fetch(pb.FetchRequest(model=ref), timeout=60))
    assert told[-1].model.ref == ref
    fetched = re.search(r'fetched_bytes_total\{origin="peer"\} (\S+)', two.metrics())
    assert fetched is not None
    assert float(fetched[1]) < told[-1].bytes_total + (1 << 20)  # it did not begin anew


def test_a_damaged_copy_of_a_peer_is_not_taken_over(peers: Peers, model: Path) -> None:
    one, three = peers.start("one"), peers.start("three", **SLOWLY)
    ref = imported(peers.stub(one), model)
    with (folder_in(one, ref) / WEIGHTS).open("r+b") as file:
        for offset in range(0, MODEL_BYTES, 1 << 20):
            file.seek(offset)
            file.write(b"damage")
    stub = peers.stub(three)
    error = refusal_of(stub.Fetch(pb.FetchRequest(model=ref), timeout=60))
    assert error.reason == "SOURCE_UNAVAILABLE"
    assert "damaged" in error.message
    two = peers.start("two")
    imported(peers.stub(two), model)
    assert list(stub.Fetch(pb.FetchRequest(model=ref), timeout=60))[-1].model.ref == ref
    assert (folder_in(three, ref) / WEIGHTS).read_bytes() == (
        folder_in(two, ref) / WEIGHTS
    ).read_bytes()


def test_a_lease_of_a_model_that_only_others_have_brings_it(peers: Peers, model: Path) -> None:
    one, two = peers.start("one"), peers.start("two")
    ref = imported(peers.stub(one), model)
    granted = next(peers.stub(two).Lease(pb.LeaseRequest(model=ref), timeout=60))
    assert granted.folder == str(folder_in(two, ref))


def test_a_model_that_nobody_has_is_not_found(peers: Peers) -> None:
    one = peers.start("one")
    peers.start("two")
    ref = model_pb2.ModelRef(name="none", revision="0123456789abcdef")
    error = refusal_of(peers.stub(one).Fetch(pb.FetchRequest(model=ref), timeout=60))
    assert (error.code, error.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
