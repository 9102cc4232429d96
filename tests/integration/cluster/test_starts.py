"""A cold start tells its phases, a warm one has none; idle models leave and come back."""

import asyncio
import math

import pytest
from brisk_client import AsyncClient, Chunk, InstanceState, Phase, Progress, SamplingOptions, Tier
from brisk_client.local.sync import LocalCluster

from tests.integration.cluster.conftest import Deploy, residents, until

SHORT = SamplingOptions(max_tokens=4, temperature=0.0, ignore_eos=True)
COLD = [Phase.QUEUE, Phase.PLACEMENT, Phase.FETCH, Phase.LOAD, Phase.INIT, Phase.FIRST_TOKEN]
WARM = [Phase.QUEUE, Phase.FIRST_TOKEN]


async def test_the_first_request_is_cold_and_the_second_warm(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy()
    assert (await client.get_model(name)).instances == ()
    reports = [(await client.generate(name, "Hello", **SHORT).result()).start for _ in range(2)]
    cold, warm = reports
    assert cold is not None
    assert warm is not None
    assert cold.cold
    assert [entry.phase for entry in cold.phases] == COLD
    assert all(entry.duration_s >= 0 for entry in cold.phases)
    assert cold.source is Tier.SSD
    assert cold.duration_s(Phase.LOAD) != 0
    assert not warm.cold
    assert [entry.phase for entry in warm.phases] == WARM
    assert warm.source is Tier.DEVICE
    (instance,) = (await client.get_model(name)).instances
    assert instance.state is InstanceState.READY


async def test_progress_comes_before_the_first_chunk_and_only_when_cold(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy()
    stream = client.generate(name, "Hello", want_progress=True, **SHORT)
    events = [event async for event in stream.events()]
    kinds = [type(event) for event in events]
    first_chunk = kinds.index(Chunk)
    assert first_chunk > 0
    assert set(kinds[:first_chunk]) == {Progress}
    assert set(kinds[first_chunk:]) == {Chunk}
    started = [event for event in events if isinstance(event, Progress)]
    order = [COLD.index(event.phase) for event in started]
    assert order == sorted(order)
    assert all(event.bytes_done <= event.bytes_total for event in started)
    warm = client.generate(name, "Hello", want_progress=True, **SHORT)
    assert {type(event) async for event in warm.events()} == {Chunk}


async def test_many_at_once_share_one_start(client: AsyncClient, deploy: Deploy) -> None:
    name = await deploy(slots=8)
    results = await asyncio.gather(
        *(client.generate(name, "Hello", **SHORT).result() for _ in range(8))
    )
    assert len({result.token_ids for result in results}) == 1
    assert await residents(client, name) == 1


async def test_more_requests_than_slots_all_get_their_tokens(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy(slots=1)
    results = await asyncio.gather(
        *(client.generate(name, "Hello", **SHORT).result() for _ in range(12))
    )
    assert [len(result.token_ids) for result in results] == [4] * 12


@pytest.mark.parametrize("keep_alive_s", [0.0, 0.3])
async def test_an_idle_model_leaves_after_its_keep_alive_and_comes_back(
    client: AsyncClient, deploy: Deploy, keep_alive_s: float
) -> None:
    name = await deploy(keep_alive_s=keep_alive_s)
    first = await client.generate(name, "Hello", **SHORT).result()

    async def at_zero() -> bool:
        return await residents(client, name) == 0

    await until(at_zero, "an idle instance is unloaded")
    (listed,) = [entry for entry in await client.list_models() if entry.name == name]
    assert listed.instances_ready == 0
    assert listed.keep_alive_s == keep_alive_s
    again = await client.generate(name, "Hello", **SHORT).result()
    assert again.token_ids == first.token_ids
    assert again.start is not None
    assert again.start.cold


async def test_a_model_that_is_kept_for_ever_says_so(client: AsyncClient, deploy: Deploy) -> None:
    name = await deploy(keep_alive_s=math.inf)
    assert (await client.get_model(name)).deployment.keep_alive_s == math.inf
    await client.generate(name, "Hello", **SHORT).result()
    (instance,) = (await client.get_model(name)).instances
    assert instance.keep_alive_left_s is None


async def test_models_take_turns_where_memory_is_short(client: AsyncClient, deploy: Deploy) -> None:
    # Two devices of 64 MiB, three models of more than 32 MiB each: one has to leave each time.
    names = [await deploy("opt", slots=160) for _ in range(3)]
    sizes = [(await client.get_model(name)).deployment.device_bytes for name in names]
    assert all(32 * 2**20 < size <= 64 * 2**20 for size in sizes), sizes
    answers = [
        [(await client.generate(name, "Hello", **SHORT).result()).token_ids for name in names]
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    resident = [await residents(client, name) for name in names]
    assert sum(resident) <= 2
    assert resident[2] == 1  # the last one used


async def test_a_busy_model_is_not_evicted(client: AsyncClient, deploy: Deploy) -> None:
    names = [await deploy("opt", slots=160) for _ in range(3)]
    streams = [
        client.generate(name, "Hello", max_tokens=150, temperature=0, ignore_eos=True)
        for name in names
    ]
    results = await asyncio.gather(*(stream.result() for stream in streams))
    assert [len(result.token_ids) for result in results] == [150] * 3


async def test_leaving_a_stream_frees_its_sequence(client: AsyncClient, deploy: Deploy) -> None:
    name = await deploy(slots=1)
    async for _ in client.generate(name, "Hello", max_tokens=200, ignore_eos=True):
        break

    async def idle() -> bool:
        (instance,) = (await client.get_model(name)).instances
        return instance.running == 0 and instance.waiting == 0

    await until(idle, "the sequence ends", within_s=10)


async def test_a_start_that_nobody_waits_for_any_more_is_undone(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy(keep_alive_s=0.0)
    stream = client.generate(name, "Hello", want_progress=True, **SHORT)
    async for _ in stream.events():
        break

    async def gone() -> bool:
        return await residents(client, name) == 0

    await until(gone, "the load is undone")


async def test_deleting_ends_well_what_is_being_answered(
    client: AsyncClient, deploy: Deploy
) -> None:
    name = await deploy()
    stream = client.generate(name, "Hello", max_tokens=150, temperature=0, ignore_eos=True)
    chunks = [await anext(iterator := aiter(stream))]
    await client.delete(name)
    chunks += [chunk async for chunk in iterator]
    assert sum(len(chunk.token_ids) for chunk in chunks) == 150


async def test_a_request_id_is_in_every_services_log(
    client: AsyncClient, deploy: Deploy, cluster: LocalCluster
) -> None:
    name = await deploy()
    request_id = "follow-me-through"
    await client.generate(name, "Hello", request_id=request_id, **SHORT).result()

    async def served() -> bool:  # a line may come after the last token
        logs = {state.name: cluster.log_file(state.name).read_text() for state in cluster.services}
        told = {name.partition("-")[0] for name, text in logs.items() if request_id in text}
        return told >= {"router", "scheduler", "storemgr", "worker"}

    await until(served, "every service's log names the request")
