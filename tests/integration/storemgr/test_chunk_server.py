"""The port for chunks gives published files by ranges and nothing else, whoever asks for what."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from services.common.errors import ConfigError
from services.storemgr.chunk_server import ChunkServer, chunk_path, serve_chunks
from services.storemgr.manifest import MANIFEST, Manifest
from tests.broken_models import WEIGHTS, good_folder
from tests.integration.storemgr.remote_imports import Imports, imports_into


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imports]:
    with imports_into(tmp_path_factory.mktemp("chunks") / "data", "file") as imports:
        yield imports


@pytest.fixture(scope="module")
def stored(imports: Imports, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return imports.run(str(good_folder(tmp_path_factory.mktemp("source") / "tiny")), name="a/b")


@pytest.fixture(scope="module")
def server(imports: Imports) -> Iterator[ChunkServer]:
    server = serve_chunks("127.0.0.1:0", imports.store.folder_of, setting="LISTEN", advertise=None)
    yield server
    server.close()


def get(
    server: ChunkServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection(server.address, timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Content-Range") or ""
    finally:
        connection.close()


def test_parts_and_wholes_are_those_of_the_file(
    server: ChunkServer, imports: Imports, stored: Manifest
) -> None:
    folder = imports.store.folder_of(stored.ref)
    content = (folder / WEIGHTS).read_bytes()
    path = chunk_path(stored.ref) + WEIGHTS
    assert get(server, path) == (200, content, "")
    part = f"bytes 5-104/{len(content)}"
    assert get(server, path, Range="bytes=5-104") == (206, content[5:105], part)
    assert get(server, path, "HEAD")[:2] == (200, b"")
    assert get(server, chunk_path(stored.ref) + MANIFEST)[1] == (folder / MANIFEST).read_bytes()
    assert get(server, path, Range=f"bytes=0-{len(content)}")[0] == 416
    assert get(server, path, If_Match='"another"')[0] == 412
    assert get(server, path, If_Match=f'"{stored.revision}"')[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/a%2Fb/0123456789abcdef/config.json",
        "/v1/../../etc/passwd",
        "/v1/a%2Fb/{revision}/..%2F..%2F..%2Flock",
        "/v1/a%2Fb/{revision}/%2e%2e",
        "/v1/a%2Fb/{revision}/.hidden",
        "/v1/a%2Fb/{revision}/nothing.json",
        "/v1/a%2Fb/{revision}/",
        "/v1/..%2F..%2Fx/{revision}/config.json",
        "/v1/a%00b/{revision}/config.json",
        "/v1/a%2Fb/../config.json",
    ],
)
def test_what_is_no_published_file_is_not_there(
    server: ChunkServer, stored: Manifest, path: str
) -> None:
    assert get(server, path.replace("{revision}", stored.revision))[0] == 404


def test_a_link_in_the_store_is_not_followed(
    server: ChunkServer, imports: Imports, stored: Manifest, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    link = imports.store.folder_of(stored.ref) / "link.json"
    link.symlink_to(secret)
    try:
        status, content, _ = get(server, chunk_path(stored.ref) + "link.json")
    finally:
        link.unlink()
    assert (status, content) == (404, b"")
    assert get(server, chunk_path(stored.ref) + MANIFEST)[0] == 200  # it serves on


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
        b"GET / HTTP/1.1\r\nRange: bytes=-5\r\n\r\n",
        b"\x00\xff\r\n\r\n",
    ],
)
def test_what_is_no_request_is_hung_up_on(server: ChunkServer, request_bytes: bytes) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request_bytes)
        with suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_a_taken_port_is_refused_by_the_name_of_its_setting(server: ChunkServer) -> None:
    with pytest.raises(ConfigError, match="CHUNKS_LISTEN"):
        serve_chunks(server.address, Path, setting="CHUNKS_LISTEN", advertise=None)  # type: ignore[arg-type]
