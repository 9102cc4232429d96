"""SIGTERM to any service in the middle of a stream: it exits with 0, and nothing is garbled.

The client gets all its tokens or exactly one typed error, no log has a traceback, and the cluster
serves again as soon as the service is back.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from brisk_client import AsyncClient, BriskError, UnavailableError
from brisk_client.local.sync import LocalCluster

from tests.integration.conftest import run_cluster
from tests.models import make_model

TOKENS = 220
STREAMS = 4


@pytest.fixture(scope="module", params=[10.0, 0.05], ids=["drain", "no-drain"])
def shaken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    """Run a cluster whose services are ended in turn, with time to drain and without."""
    with run_cluster(
        tmp_path_factory.mktemp("shaken"), "cpu:0=64MiB", drain_s=request.param
    ) as made:
        yield made


@pytest.fixture
async def shaken_client(
    shaken: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(shaken.router_address, timeout_s=60) as client:
        folder = make_model(tmp_path_factory.mktemp("model") / "llama", "llama")
        await client.deploy("steady", source=folder, slots=STREAMS)
        await client.generate("steady", [5], max_tokens=2, ignore_eos=True).result()
        yield client


async def read(client: AsyncClient, begun: asyncio.Event) -> list[int] | BriskError:
    """Return the tokens of a long answer, or the one error that ended it."""
    token_ids: list[int] = []
    try:
        async for chunk in client.generate(
            "steady", [5, 6, 7], max_tokens=TOKENS, temperature=0, ignore_eos=True
        ):
            token_ids.extend(chunk.token_ids)
            begun.set()
    except BriskError as error:
        return error
    return token_ids


@pytest.mark.parametrize("name", ["storemgr", "scheduler", "worker", "router"])
async def test_a_service_that_is_asked_to_end_ends_well(
    shaken: LocalCluster, shaken_client: AsyncClient, name: str
) -> None:
    expected = await read(shaken_client, asyncio.Event())
    assert isinstance(expected, list)
    assert len(expected) == TOKENS
    begun = [asyncio.Event() for _ in range(STREAMS)]
    reading = [asyncio.create_task(read(shaken_client, event)) for event in begun]
    await asyncio.gather(*(event.wait() for event in begun))
    victim = shaken.process(name)
    os.kill(victim.pid, signal.SIGTERM)
    assert not any(task.done() for task in reading)  # it did happen in the middle
    results = await asyncio.gather(*reading)
    for result in results:
        assert result == expected or isinstance(result, UnavailableError), result
    if name in {"storemgr", "scheduler"} or shaken.spec.drain_s > 1:
        assert results == [expected] * STREAMS
    assert await asyncio.to_thread(shaken.wait_exit, victim.pid) == 0
    await asyncio.to_thread(shaken.wait_restarted, name, old_pid=victim.pid)
    assert await serves_again(shaken_client) == expected
    assert "Traceback" not in "".join(
        shaken.log_file(state.name).read_text() for state in shaken.services
    )


async def serves_again(client: AsyncClient) -> list[int] | BriskError:
    """Return a whole answer; right after the restart a typed refusal is fine."""
    async with asyncio.timeout(60):
        while True:
            result = await read(client, asyncio.Event())
            if not isinstance(result, UnavailableError):
                return result
            await asyncio.sleep(min(result.retry_after_s or 0.1, 1.0))


async def test_killing_redis_costs_no_warm_request_and_no_deployment(
    shaken: LocalCluster, shaken_client: AsyncClient
) -> None:
    expected = await read(shaken_client, asyncio.Event())
    pid = shaken.redis_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        assert await read(shaken_client, asyncio.Event()) == expected
    finally:
        os.kill(pid, signal.SIGKILL)
    assert await asyncio.to_thread(shaken.wait_exit, pid) == -signal.SIGKILL
    assert await serves_again(shaken_client) == expected
    assert await deployments(shaken_client) == ["steady"]


async def deployments(client: AsyncClient) -> list[str]:
    """Return what is deployed, once a scheduler leads again."""
    async with asyncio.timeout(60):
        while True:
            try:
                return [entry.name for entry in await client.list_models()]
            except UnavailableError:
                await asyncio.sleep(0.1)
