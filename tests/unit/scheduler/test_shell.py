"""A reign does what its core decides, answers everyone who waits, and ends whole."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest

from services.common.clock import monotonic_s
from services.common.errors import (
    BriskError,
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from services.common.model import StartPhase, StartProgress
from services.common.placement import InstanceState
from services.scheduler import events
from services.scheduler.actions import Grant
from services.scheduler.estimates import Priors
from services.scheduler.shell import Reign
from services.scheduler.state import Limits
from tests.unit.scheduler.dialogue import deployment
from tests.unit.scheduler.doubles import (
    HALF,
    WORKER,
    OneWorker,
    Registered,
    TwoStores,
    settled,
    until,
)

NOT_LEADER = UnavailableError("over", reason=Reason.NOT_LEADER)


@dataclass(slots=True, kw_only=True)
class Court:
    """A reign and who it deals with."""

    reign: Reign
    worker: OneWorker
    peers: Registered
    running: "asyncio.Task[None]"


@asynccontextmanager
async def reigning(*, learned: bool = True) -> AsyncIterator[Court]:
    """Run a reign with deployments alpha (40 bytes) and beta (80) and one worker of 100 bytes."""
    worker, peers = OneWorker(), Registered()
    worker.may_load.set()
    reign = Reign(
        epoch=7,
        term=0,
        workers=worker,
        stores=TwoStores(),
        peers=peers,
        limits=Limits(backoff_s=0.01, unload_backoff_s=0.01),
        priors=Priors(),
        watchers_max=10,
        why_over=lambda: NOT_LEADER,
    )
    opened = asyncio.Event()
    deployments = (deployment("alpha", 40), deployment("beta", 80))
    running = asyncio.ensure_future(reign.run(deployments, opened.set))
    await opened.wait()
    if learned:
        peers.sets.put_nowait((WORKER,))
        await settled()
        assert reign.state.learning_until_s <= monotonic_s()
    try:
        yield Court(reign=reign, worker=worker, peers=peers, running=running)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def acquired(reign: Reign, request_id: str, name: str, *excluded: str) -> Grant:
    async with aclosing(reign.acquire(request_id, name, frozenset(excluded))) as told:
        async for each in told:
            if isinstance(each, Grant):
                return each
    raise AssertionError("ended without a grant")


async def test_a_request_hears_progress_and_gets_its_instance() -> None:
    async with reigning() as court:
        async with aclosing(court.reign.acquire("r1", "alpha", frozenset())) as told:
            heard = [each async for each in told]
        assert heard[:-1] == [StartProgress(phase=StartPhase.PLACEMENT), HALF]
        grant = heard[-1]
        assert isinstance(grant, Grant)
        assert grant.route.worker_address == "w1:1"
        assert court.worker.calls == ["describe", f"load {grant.route.instance_id} epoch 7"]
        assert not court.reign.state.waiting_for


async def test_a_caller_that_goes_gives_its_place_up_and_the_unload_comes_after_the_undoing() -> (
    None
):
    async with reigning() as court:
        court.worker.may_load.clear()
        waiting = asyncio.ensure_future(acquired(court.reign, "r1", "alpha"))
        await settled()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await settled()
        assert court.worker.calls[1:] == [
            "load i7-1 epoch 7",
            "undone i7-1",
            "unload i7-1 epoch 7",
        ]
        assert court.reign.state.instances == {}


async def test_a_caller_that_goes_with_its_grant_unread_gives_the_grant_back() -> None:
    async with reigning() as court:
        await acquired(court.reign, "r1", "alpha")
        call = court.reign.acquire("r2", "alpha", frozenset())
        assert isinstance(await anext(call), Grant)
        assert "r2" in court.reign.state.granted
        await call.aclose()
        assert "r2" not in court.reign.state.granted


async def test_a_grant_that_was_read_to_the_end_stays() -> None:
    async with reigning() as court:
        async with aclosing(court.reign.acquire("r1", "alpha", frozenset())) as told:
            async for _ in told:
                pass
        assert "r1" in court.reign.state.granted
        court.reign.release("r1")
        assert "r1" not in court.reign.state.granted


async def test_an_id_is_open_once() -> None:
    async with reigning() as court:
        court.worker.may_load.clear()
        first = asyncio.ensure_future(acquired(court.reign, "r1", "alpha"))
        await settled()
        with pytest.raises(InvalidArgumentError):
            await acquired(court.reign, "r1", "alpha")
        court.worker.may_load.set()
        await first


async def test_a_refusal_is_raised_and_leaves_nothing_open() -> None:
    async with reigning() as court:
        with pytest.raises(NotFoundError):
            await acquired(court.reign, "r1", "nothing")
        with pytest.raises(NotFoundError):
            await acquired(court.reign, "r1", "nothing")


async def test_who_waits_when_the_reign_ends_is_told_why() -> None:
    async with reigning() as court:
        court.worker.may_load.clear()
        waiting = asyncio.ensure_future(acquired(court.reign, "r1", "alpha"))
        watch = court.reign.watch_routes()
        await anext(watch)
        await settled()
        court.running.cancel()
        with pytest.raises(UnavailableError) as refusal:
            await waiting
        assert refusal.value.reason == Reason.NOT_LEADER
        assert await anext(watch, None) is None
        await settled()
        assert "undone i7-1" in court.worker.calls
    with pytest.raises(UnavailableError):
        await acquired(court.reign, "r2", "alpha")
    with pytest.raises(UnavailableError):
        court.reign.release("r1")
    with pytest.raises(UnavailableError):
        court.reign.report(court.worker.state())
    with pytest.raises(UnavailableError):
        await anext(court.reign.watch_routes())


async def test_a_worker_that_knows_a_newer_leader_ends_the_reign() -> None:
    async with reigning() as court:
        court.worker.load_errors.append(FailedPreconditionError("newer", reason=Reason.STALE_EPOCH))
        with pytest.raises(UnavailableError) as refusal:
            await acquired(court.reign, "r1", "alpha")
        assert refusal.value.reason == Reason.NOT_LEADER
        assert not court.running.done()
        with pytest.raises(UnavailableError):
            court.reign.check()


async def test_a_worker_that_is_gone_when_a_load_fails_is_lost_at_once() -> None:
    async with reigning() as court:
        court.worker.load_errors.append(UnavailableError("call failed"))
        court.worker.is_gone = True
        with pytest.raises(UnavailableError) as refusal:
            await acquired(court.reign, "r1", "alpha")
        assert refusal.value.reason == Reason.WORKER_LOST
        assert court.reign.state.workers == {}


async def test_a_worker_that_answers_after_a_failed_load_is_tried_again() -> None:
    async with reigning() as court:
        court.worker.load_errors.append(UnavailableError("call failed"))
        grant = await acquired(court.reign, "r1", "alpha")
        assert grant.route.instance_id == "i7-2"
        assert court.worker.calls.count("describe") == 2


async def test_a_worker_that_is_only_slow_is_not_lost() -> None:
    async with reigning() as court:
        court.worker.load_errors.append(UnavailableError("call failed"))
        court.worker.describe_error = DeadlineError("slow")
        assert (await acquired(court.reign, "r1", "alpha")).route.instance_id == "i7-2"
        assert list(court.reign.state.workers) == ["w1"]


async def test_a_load_that_ends_without_a_word_has_failed() -> None:
    async with reigning() as court:
        court.worker.ends_without_result = True
        with pytest.raises(UnavailableError):
            await acquired(court.reign, "r1", "alpha")


@pytest.mark.parametrize(
    "error",
    [
        FailedPreconditionError("busy", reason=Reason.INSTANCE_BUSY),
        UnavailableError("call failed"),
        FailedPreconditionError("odd"),
    ],
)
async def test_an_eviction_that_did_not_work_is_tried_again(error: BriskError) -> None:
    async with reigning() as court:
        await acquired(court.reign, "r1", "alpha")
        court.reign.release("r1")
        court.reign.report(court.worker.state())
        court.worker.unload_errors.append(error)
        waiting = asyncio.ensure_future(acquired(court.reign, "r2", "beta"))
        await settled()
        court.reign.report(court.worker.state())  # idle, it says again
        grant = await waiting
        assert grant.route.deployment == "beta"
        assert court.worker.calls.count("unload i7-1 if idle epoch 7") == 2


async def test_a_worker_that_is_gone_when_an_eviction_fails_is_lost_at_once() -> None:
    async with reigning() as court:
        await acquired(court.reign, "r1", "alpha")
        court.reign.release("r1")
        court.reign.report(court.worker.state())
        court.worker.unload_errors.append(UnavailableError("call failed"))
        court.worker.is_gone = True
        with pytest.raises(UnavailableError):
            await acquired(court.reign, "r2", "beta")
        assert court.reign.state.workers == {}


async def test_an_eviction_can_tell_of_a_newer_leader_too() -> None:
    async with reigning() as court:
        await acquired(court.reign, "r1", "alpha")
        court.reign.release("r1")
        court.reign.report(court.worker.state())
        court.worker.unload_errors.append(
            FailedPreconditionError("newer", reason=Reason.STALE_EPOCH)
        )
        with pytest.raises(UnavailableError):
            await acquired(court.reign, "r2", "beta")
        with pytest.raises(UnavailableError):
            court.reign.check()


async def test_a_worker_whose_registration_is_gone_is_asked_before_it_is_lost() -> None:
    async with reigning() as court:
        court.peers.sets.put_nowait(())
        await settled()
        assert list(court.reign.state.workers) == ["w1"]
        court.peers.sets.put_nowait((WORKER,))
        await settled()
        court.worker.is_gone = True
        court.peers.sets.put_nowait(())
        await settled()
        assert court.reign.state.workers == {}


async def test_nothing_is_placed_until_the_registered_workers_have_told() -> None:
    async with reigning(learned=False) as court:
        waiting = asyncio.ensure_future(acquired(court.reign, "r1", "alpha"))
        await settled()
        court.peers.sets.put_nowait(())
        await settled()
        assert not court.worker.calls
        court.peers.sets.put_nowait((WORKER,))
        await waiting


async def test_time_passes_for_the_core_too() -> None:
    async with reigning() as court:
        short = deployment("alpha", 40, keep_alive_s=0.05)
        court.reign.feed(events.DeploymentPut(now_s=monotonic_s(), deployment=short))
        await acquired(court.reign, "r1", "alpha")
        court.reign.release("r1")
        court.reign.report(court.worker.state())
        await until(lambda: not court.reign.state.instances)
        assert "unload i7-1 if idle epoch 7" in court.worker.calls


async def test_a_decision_that_fails_ends_the_reign_with_its_error() -> None:
    async with reigning() as court:
        await acquired(court.reign, "r1", "alpha")
        (instance,) = court.reign.state.instances.values()
        assert instance.state is InstanceState.READY
        instance.state = InstanceState.LEAVING
        del court.reign.state.workers["w1"]  # now the state contradicts itself
        lost = events.UnloadSucceeded(now_s=monotonic_s(), instance_id=instance.instance_id)
        with pytest.raises(KeyError):
            court.reign.feed(lost)
        with pytest.raises(ExceptionGroup):
            await court.running
