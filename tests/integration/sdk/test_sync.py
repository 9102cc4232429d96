"""The synchronous client offers the same calls as the asynchronous one and cancels as promptly."""

import asyncio
import inspect
import threading

import pytest
from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk_client import AsyncClient, Chunk, Client, NotFoundError, Progress
from google.rpc import code_pb2  # type: ignore[import-untyped]  # ships without annotations

from tests.integration.sdk.scripted import (
    ANSWER,
    HANG,
    Refuse,
    ScriptedRouter,
    chunk,
    deployment,
    progress,
)


def test_both_clients_have_the_same_calls_with_the_same_arguments() -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in vars(kind).items()
            if inspect.isfunction(value) and not name.startswith("_")
        }

    assert calls(Client) == calls(AsyncClient)
    assert "generate" in calls(Client)


async def test_a_stream_is_an_ordinary_iterator(router: ScriptedRouter) -> None:
    router.scripts = [(progress(1, 4), *ANSWER)]

    def use() -> tuple[list[type], str, list[Chunk]]:
        with Client(router.address) as client:
            kinds = [
                type(event) for event in client.generate("m", "x", want_progress=True).events()
            ]
            text = client.generate("m", "x").text()
            stream = client.chat("m", [{"role": "user", "content": "x"}])
            chunks = list(stream)
            assert stream.start is not None
            assert stream.usage is not None
            assert stream.finish_reason is not None
            return kinds, text, chunks

    kinds, text, chunks = await asyncio.to_thread(use)
    assert kinds == [Progress, Chunk, Chunk, Chunk]
    assert text == "a b c"
    assert [entry.index for entry in chunks] == [0, 2, 3]


@pytest.mark.parametrize("how", ["break", "context", "cancel"])
async def test_leaving_cancels_at_once(router: ScriptedRouter, how: str) -> None:
    router.scripts = [(chunk(0, 5), HANG)]
    left = threading.Event()

    def use() -> None:
        with Client(router.address) as client:
            if how == "break":
                for _ in client.generate("m", "x"):
                    break
            elif how == "context":
                with client.generate("m", "x") as stream:
                    next(iter(stream))
            else:
                stream = client.generate("m", "x")
                iterator = iter(stream)
                next(iterator)
                stream.cancel()
                assert list(iterator) == []
            assert left.wait(5)  # before the client closes, which would end the call too

    using = asyncio.create_task(asyncio.to_thread(use))
    async with asyncio.timeout(5):
        await router.left.wait()
    left.set()
    await using


async def test_errors_rise_in_the_calling_thread(router: ScriptedRouter) -> None:
    router.scripts = [(Refuse(code_pb2.NOT_FOUND, "MODEL_NOT_FOUND"),)]

    def use() -> None:
        with Client(router.address) as client:
            with pytest.raises(NotFoundError):
                client.generate("m", "x").text()
            with pytest.raises(NotFoundError):
                client.get_model("m")

    await asyncio.to_thread(use)


async def test_control_calls_answer(router: ScriptedRouter) -> None:
    router.scripts = [
        (control_pb2.DeployResponse(deployment=deployment()),),
        (control_pb2.ListModelsResponse(deployments=[deployment()]),),
        (control_pb2.DeleteResponse(),),
    ]

    def use() -> None:
        with Client(router.address) as client:
            assert client.deploy("tiny", model="base").name == "tiny"
            assert client.list_models()[0].slots == 4
            client.delete("tiny")

    await asyncio.to_thread(use)


async def test_a_closed_client_says_so_and_leaves_no_thread(router: ScriptedRouter) -> None:
    def use() -> None:
        before = threading.active_count()
        client = Client(router.address)
        client.generate("m", "x").text()
        client.close()
        client.close()
        assert threading.active_count() == before
        with pytest.raises(RuntimeError, match="closed"):
            client.generate("m", "x").text()

    await asyncio.to_thread(use)
