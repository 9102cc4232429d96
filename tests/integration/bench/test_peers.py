"""Promise: the peers answer like what they stand for, and none of them outlives its use."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest

from bench.first_token import HttpWay, NoTokenError
from bench.peers import litellm
from bench.processes import StartError, running, serving

MISSING = pytest.mark.skipif(
    not (litellm.VENV / ".stamp").is_file(), reason="LiteLLM is not installed (python -m bench...)"
)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_the_stub_streams_text_and_keeps_its_connection(tmp_path: Path) -> None:
    with serving("bench.peers.openai_stub", log=tmp_path / "log") as port:
        way = HttpWay(port, "any")
        assert all(0 < way.first_ms() < 5_000 for _ in range(3))
        way.close()


async def test_the_relay_passes_requests_and_streams_on_unchanged(tmp_path: Path) -> None:
    async def count(request: bytes, _context: object) -> AsyncIterator[bytes]:
        for number in range(3):
            yield request + bytes([number])

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(count)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", {"Z": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with serving("bench.peers.grpc_relay", f"127.0.0.1:{port}", log=tmp_path / "log") as relay:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{relay}") as channel:
            call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/x.Y/Z")
            answers = [answer async for answer in call(b"ask", timeout=20)]
    await server.stop(grace=None)
    assert answers == [b"ask\x00", b"ask\x01", b"ask\x02"]


def test_a_server_is_gone_after_its_block_even_if_the_block_fails(tmp_path: Path) -> None:
    before, ports = children(), []

    def use_and_fail() -> None:
        with serving("bench.peers.openai_stub", log=tmp_path / "log") as port:
            ports.append(port)
            assert children() > before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert children() == before
    with pytest.raises(OSError, match="refused"):
        HttpWay(ports[0], "any").first_ms()


def test_a_program_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(StartError, match=r"no_such_module.*No module named"),
        serving("bench.peers.no_such_module", log=tmp_path / "log"),
    ):
        pass


def test_a_program_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.processes.STOP_S_MAX", 0.2)
    code = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True);"
    code += "signal.pause()"
    with running([sys.executable, "-c", code], tmp_path / "log") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    assert process.returncode == -9


def test_an_answer_without_text_is_no_first_token(tmp_path: Path) -> None:
    with serving("bench.peers.openai_stub", log=tmp_path / "log") as port:
        way = HttpWay(port, "any")
        way._path = "/nowhere"  # noqa: SLF001
        with pytest.raises(NoTokenError, match="404"):
            way.first_ms()
        way.close()


@MISSING
def test_litellm_relays_the_stub_and_stays_on_loopback(tmp_path: Path) -> None:
    before = children()
    with (
        serving("bench.peers.openai_stub", log=tmp_path / "log") as stub,
        litellm.proxy(stub, tmp_path) as port,
    ):
        way = HttpWay(port, litellm.MODEL)
        assert way.first_ms() > 0
        way.close()
    assert children() == before
