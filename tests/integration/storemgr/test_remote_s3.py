"""A model in an S3-compatible store is imported by its URL, with the usual credentials.

A store manager runs as a process of its own against a real S3 server on loopback.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from brisk.storage.v1 import storage_service_pb2 as pb

from services.common.errors import BriskError
from services.common.status import from_rpc_error
from tests.broken_models import WEIGHTS
from tests.fakes import source_server as faults
from tests.fakes.redis_server import RedisServer
from tests.fakes.s3_server import CREDENTIALS, S3Server, s3_running
from tests.fakes.source_server import SourceServer
from tests.integration.storemgr.nodes import Node, Stub, describe, running, stub_of
from tests.integration.storemgr.remote_imports import imports_into
from tests.remote_models import LARGE_BYTES, large_folder
from tests.unit.storemgr.test_importer import shard_folder


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_running() as server:
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_folder(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def revision(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the revision that the model has wherever it comes from."""
    with imports_into(tmp_path_factory.mktemp("expected") / "data", "file") as imports:
        return imports.run(str(model)).revision


@pytest.fixture(scope="module")
def url(s3: S3Server, model: Path) -> str:
    return s3.upload(model, "models", "base/tiny")


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, s3: S3Server
) -> Iterator[Node]:
    """Run one store manager for all tests; each imports under a name of its own."""
    data = tmp_path_factory.mktemp("node") / "data"
    with running(Node(data, redis_server.url, **s3.environment)) as node:
        yield node
        assert node.terminate() == 0
        assert "Traceback" not in node.log


@pytest_asyncio.fixture
async def stub(node: Node) -> AsyncIterator[Stub]:
    async with stub_of(node) as stub:
        yield stub


async def fetch(stub: Stub, url: str, name: str, *, as_is: bool = False) -> list[pb.ImportResponse]:
    request = pb.ImportRequest(source_path=url, name=name, as_is=as_is)
    return [told async for told in stub.Import(request, timeout=60)]


async def refusal_of(stub: Stub, url: str) -> BriskError:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await fetch(stub, url, "refused")
    assert "refused" not in {each.info.ref.name for each in (await describe(stub)).models}
    return from_rpc_error(refusal.value)


def imports_stored(node: Node) -> float:
    """Return how many imports the node has ended well."""
    counted = re.search(r'brisk_storemgr_imports_total\{outcome="stored"\} (\S+)', node.metrics())
    return float(counted[1]) if counted else 0.0


async def test_a_model_comes_from_a_bucket(stub: Stub, url: str, revision: str) -> None:
    told = await fetch(stub, url, "")
    assert told[-1].model.ref.name == "tiny"
    assert told[-1].model.ref.revision == revision
    assert {each.origin for each in told[:-1]} == {"s3"}
    assert told[-1].bytes_done == told[-1].bytes_total > LARGE_BYTES


async def test_shards_come_from_a_bucket(
    stub: Stub, s3: S3Server, tmp_path: Path, revision: str
) -> None:
    shard_folder(large_folder(tmp_path / "sharded"))
    told = await fetch(stub, s3.upload(tmp_path / "sharded", "models", "sharded"), "sharded")
    assert told[-1].model.ref.revision == revision


@pytest.mark.parametrize("url", ["s3://no-such-bucket/x", "s3://models/nothing/here"])
async def test_what_is_not_there_is_not_found(stub: Stub, s3: S3Server, url: str) -> None:
    s3.client.create_bucket(Bucket="models")
    error = await refusal_of(stub, url)
    assert (error.code, error.reason) == ("NOT_FOUND", "SOURCE_NOT_FOUND")


async def test_keys_that_lead_elsewhere_are_no_files_of_the_model(
    stub: Stub, s3: S3Server, model: Path, revision: str
) -> None:
    url = s3.upload(model, "models", "hostile")
    for key in ("hostile/a/model.safetensors", "hostile/x\x01y.json", "hostile/.hidden.json"):
        s3.put("models", key, b"{}")
    told = await fetch(stub, url, "hostile")
    assert told[-1].model.ref.revision == revision


async def test_two_who_ask_at_once_share_one_fetch(node: Node, stub: Stub, url: str) -> None:
    before = imports_stored(node)
    one, two = await asyncio.gather(fetch(stub, url, "shared"), fetch(stub, url, "shared"))
    assert one[-1].model == two[-1].model
    assert imports_stored(node) == before + 1


def test_a_store_manager_that_dies_goes_on_where_it_was(
    tmp_path: Path, redis_url: str, model: Path, revision: str
) -> None:
    """Kill it while it waits for the last part, and see what the next one asks for."""
    with SourceServer(model).running() as server:
        server.faults[WEIGHTS] = faults.from_offset(16 << 20, faults.stalls)
        rules = f"http://127.0.0.1:{server.port}/"

        def node_again() -> Node:
            return Node(tmp_path / "data", redis_url, BRISK_STOREMGR_SOURCES=rules)

        with running(node_again()) as node:
            channel = grpc.insecure_channel(node.address)
            request = pb.ImportRequest(source_path=server.url, name="tiny")
            call = channel.unary_stream(
                "/brisk.storage.v1.StorageService/Import",
                request_serializer=pb.ImportRequest.SerializeToString,
                response_deserializer=pb.ImportResponse.FromString,
            )(request, timeout=60)
            while next(call).bytes_done < 16 << 20:
                pass
            node.kill()
            channel.close()
        assert server.happened["stalled"] >= 1
        server.faults.clear()
        asked_before = len(server.gets)
        with running(node_again()) as node:
            assert list(node.staging.iterdir()) == []
            with grpc.insecure_channel(node.address) as channel:
                answers = channel.unary_stream(
                    "/brisk.storage.v1.StorageService/Import",
                    request_serializer=pb.ImportRequest.SerializeToString,
                    response_deserializer=pb.ImportResponse.FromString,
                )(request, timeout=60)
                assert list(answers)[-1].model.ref.revision == revision
            assert node.terminate() == 0
        again = [get.size for get in server.gets[asked_before:] if get.name == WEIGHTS]
        assert sum(again) < LARGE_BYTES / 2


def test_without_credentials_that_fit_it_must_not_be_read(
    tmp_path: Path, redis_url: str, model: Path
) -> None:
    """A stand-in answers as S3 does when it says no: the real server lets everyone in."""
    with SourceServer(model).running() as server:
        server.denies = True
        environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}
        with running(Node(tmp_path / "data", redis_url, **environment)) as node:
            with grpc.insecure_channel(node.address) as channel:
                call = channel.unary_stream(
                    "/brisk.storage.v1.StorageService/Import",
                    request_serializer=pb.ImportRequest.SerializeToString,
                    response_deserializer=pb.ImportResponse.FromString,
                )
                with pytest.raises(grpc.RpcError) as refusal:
                    list(call(pb.ImportRequest(source_path="s3://models/x"), timeout=60))
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "credentials" in (refusal.value.details() or "")
            assert node.terminate() == 0
        assert server.happened["denied"] >= 1
