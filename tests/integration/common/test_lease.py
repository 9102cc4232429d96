"""One leader at a time, epochs that only rise, and no write by a leader that was deposed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from services.common.clock import monotonic_s
from services.common.errors import FailedPreconditionError, UnavailableError
from services.common.keys import DEPLOYMENTS, LEADER_EPOCH, LEADER_LEASE
from services.common.lease import FencedHash, LeaderIdentity, LeaderLease
from services.common.redis_client import connect
from tests.fakes.redis_server import run_redis

A = LeaderIdentity(scheduler_id="scheduler-a", address="127.0.0.1:1")
B = LeaderIdentity(scheduler_id="scheduler-b", address="127.0.0.1:2")
TTL_S, GIVE_UP_S, RENEW_S = 0.9, 0.6, 0.1
PATIENCE_S = 10.0


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(SecretStr(redis_url))
    yield client
    await client.aclose()


def brief(redis: Redis, identity: LeaderIdentity) -> LeaderLease:
    return LeaderLease(redis, identity, ttl_s=TTL_S, give_up_s=GIVE_UP_S, renew_s=RENEW_S)


async def won(lease: LeaderLease) -> int:
    """Acquire as soon as it is free."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if (epoch := await lease.acquire()) is not None:
                return epoch
            await asyncio.sleep(0.01)


async def test_only_one_holds_the_lease(redis: Redis) -> None:
    leases = [
        LeaderLease(redis, LeaderIdentity(scheduler_id=f"s-{i}", address="x:1")) for i in range(10)
    ]
    epochs = await asyncio.gather(*(lease.acquire() for lease in leases))
    assert sum(epoch is not None for epoch in epochs) == 1
    assert sum(lease.epoch is not None for lease in leases) == 1


async def test_the_lease_expires_on_its_own(redis: Redis) -> None:
    await LeaderLease(redis, A).acquire()
    assert 5_000 < await redis.pttl(LEADER_LEASE) <= 6_000


async def test_renewing_and_acquiring_again_keep_the_epoch_and_prolong_the_lease(
    redis: Redis,
) -> None:
    lease = LeaderLease(redis, A)
    epoch = await lease.acquire()
    for again in (lease.renew, lease.acquire):
        await redis.pexpire(LEADER_LEASE, 1_000)
        assert await again()
        assert await redis.pttl(LEADER_LEASE) > 5_000
        assert lease.epoch == epoch


async def test_a_take_over_after_expiry_has_a_higher_epoch(redis: Redis) -> None:
    first, second = brief(redis, A), brief(redis, B)
    old = await won(first)
    assert await second.acquire() is None
    new = await won(second)  # nobody renews the first
    assert new > old
    assert first.epoch is None  # it knew before anyone told it
    assert not await first.renew()
    assert await first.acquire() is None


async def test_a_standby_asks_in_the_moment_in_which_the_lease_ends(redis: Redis) -> None:
    await brief(redis, A).acquire()  # nobody renews it
    led = asyncio.Event()

    async def lead(_epoch: int) -> None:
        led.set()
        await asyncio.Event().wait()

    standby = LeaderLease(redis, B, ttl_s=1000.0, give_up_s=900.0, renew_s=800.0)
    running = asyncio.ensure_future(standby.run(lead))
    try:
        async with asyncio.timeout(PATIENCE_S):
            await led.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_refused_candidate_knows_when_the_lease_may_be_free(redis: Redis) -> None:
    candidate = brief(redis, A)
    await redis.set(LEADER_LEASE, "another's", px=500_000)
    assert await candidate.acquire() is None
    assert 400.0 < candidate.free_in_s <= 500.0
    await redis.persist(LEADER_LEASE)  # it has no end: asking at once would go on for ever
    assert await candidate.acquire() is None
    assert candidate.free_in_s == TTL_S


async def test_a_holder_stops_leading_before_anyone_else_may_start(redis: Redis) -> None:
    first, second = brief(redis, A), brief(redis, B)
    await won(first)
    async with asyncio.timeout(PATIENCE_S):
        while await second.acquire() is None:
            await asyncio.sleep(0.005)
            if first.epoch is None:
                assert first.held_s_left() == 0.0
    assert first.epoch is None


async def test_a_released_lease_is_free_at_once_and_its_epoch_stays(redis: Redis) -> None:
    first, second = LeaderLease(redis, A), LeaderLease(redis, B)
    old = await first.acquire()
    await second.release()  # not its own: no effect
    assert await second.acquire() is None
    await first.release()
    assert first.epoch is None
    new = await second.acquire()
    assert old is not None
    assert new is not None
    assert new > old


async def test_epochs_rise_across_a_loss_of_everything(redis: Redis) -> None:
    lease = LeaderLease(redis, A)
    epochs = []
    for _ in range(5):
        epochs.append(await won(lease))
        await redis.flushall()
    assert epochs == sorted(set(epochs))


async def test_epochs_rise_even_if_the_servers_clock_went_back(redis: Redis) -> None:
    ahead = 2 * await won(LeaderLease(redis, A))
    await redis.delete(LEADER_LEASE)
    await redis.set(LEADER_EPOCH, ahead)
    assert await won(LeaderLease(redis, B)) == ahead + 1


async def test_a_holder_whose_epoch_was_lost_gets_a_new_one(redis: Redis) -> None:
    lease = LeaderLease(redis, A)
    old = await won(lease)
    await redis.delete(LEADER_EPOCH)
    assert not await lease.renew()
    assert await won(lease) > old


async def test_limits_that_would_let_two_lead_are_refused(redis: Redis) -> None:
    with pytest.raises(ValueError, match="renew_s < give_up_s < ttl_s"):
        LeaderLease(redis, A, ttl_s=4.0, give_up_s=4.0)


# --- Fenced writes ---


async def test_the_leader_writes_reads_and_deletes(redis: Redis) -> None:
    epoch = await won(LeaderLease(redis, A))
    deployments = FencedHash(redis, DEPLOYMENTS)
    assert await deployments.read() == {}
    for i in range(1200):  # more than one page
        await deployments.put(epoch, f"model-{i}", f"value {i}")
    await deployments.delete(epoch, "model-7")
    fields = await deployments.read()
    assert len(fields) == 1199
    assert fields["model-1199"] == "value 1199"


async def test_a_deposed_leaders_write_is_fenced(redis: Redis) -> None:
    deployments = FencedHash(redis, DEPLOYMENTS)
    old = await won(LeaderLease(redis, A))
    await redis.delete(LEADER_LEASE)  # expires while A is paused
    new = await won(LeaderLease(redis, B))
    await deployments.put(new, "model", "new")
    for write in (deployments.put(old, "model", "old"), deployments.delete(old, "model")):
        with pytest.raises(FailedPreconditionError) as caught:
            await write
        assert caught.value.reason == "STALE_EPOCH"
    assert await deployments.read() == {"model": "new"}


async def test_a_deposed_leader_does_not_slip_through_when_all_was_lost(redis: Redis) -> None:
    deployments = FencedHash(redis, DEPLOYMENTS)
    old = await won(LeaderLease(redis, A))
    await redis.flushall()
    with pytest.raises(FailedPreconditionError):
        await deployments.put(old, "model", "old")
    await won(LeaderLease(redis, B))
    with pytest.raises(FailedPreconditionError):
        await deployments.put(old, "model", "old")
    assert await deployments.read() == {}


async def test_scripts_survive_a_server_that_forgot_them(redis: Redis) -> None:
    lease = LeaderLease(redis, A)
    await won(lease)
    await redis.script_flush()
    assert await lease.renew()


async def test_a_redis_that_does_not_answer_is_unavailable() -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=0.1) as client:
            deployments = FencedHash(client, DEPLOYMENTS)
            server.hang()
            for call in (deployments.put(1, "a", "b"), deployments.delete(1, "a")):
                with pytest.raises(UnavailableError):
                    await call
            with pytest.raises(UnavailableError):
                await deployments.read()


# --- Standing for election ---


class Term:
    """What a candidate did while it led."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.ended_at_s = 0.0

    async def lead(self, epoch: int) -> None:
        self.epochs.append(epoch)
        self.ended.clear()
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended_at_s = monotonic_s()
            self.began.clear()
            self.ended.set()


async def wait(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_a_stand_by_takes_over_at_once_when_the_leader_leaves(redis: Redis) -> None:
    first, second = Term(), Term()
    leader = asyncio.create_task(brief(redis, A).run(first.lead))
    await wait(first.began)
    stand_by = asyncio.create_task(brief(redis, B).run(second.lead))
    await stop(leader)
    assert first.ended.is_set()
    left_at_s = monotonic_s()
    await wait(second.began)
    assert monotonic_s() - left_at_s < TTL_S  # it did not have to wait for the expiry
    assert second.epochs[0] > first.epochs[0]
    await stop(stand_by)
    assert await redis.get(LEADER_LEASE) is None


async def test_a_leader_keeps_its_epoch_for_many_times_the_lease(redis: Redis) -> None:
    term = Term()
    lease = LeaderLease(redis, A, ttl_s=0.3, give_up_s=0.2, renew_s=0.02)
    task = asyncio.create_task(lease.run(term.lead))
    await wait(term.began)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await term.ended.wait()
    assert term.epochs == [lease.epoch]
    await stop(task)


async def test_a_leader_whose_redis_lost_everything_steps_down_and_leads_with_a_higher_epoch(
    redis: Redis,
) -> None:
    term = Term()
    task = asyncio.create_task(brief(redis, A).run(term.lead))
    await wait(term.began)
    await redis.flushall()
    await wait(term.ended)
    await wait(term.began)
    assert len(term.epochs) == 2
    assert term.epochs[1] > term.epochs[0]
    await stop(task)


async def test_a_leader_whose_redis_hangs_steps_down_before_the_lease_expires() -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=0.15) as client:
            term = Term()
            lease = LeaderLease(client, A, ttl_s=3.0, give_up_s=0.6, renew_s=0.1)
            task = asyncio.create_task(lease.run(term.lead))
            await wait(term.began)
            server.hang()
            hung_at_s = monotonic_s()
            await wait(term.ended)
            assert term.ended_at_s - hung_at_s < 3.0 - 0.1
            server.resume()
            await wait(term.began)  # the lease was still its own: same epoch, or a new one
            assert term.epochs == sorted(term.epochs)
            await stop(task)


async def test_a_candidate_outlives_a_redis_that_is_away() -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=0.15) as client:
            server.stop()
            term = Term()
            task = asyncio.create_task(brief(client, A).run(term.lead))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await term.began.wait()
            server.restart()
            await wait(term.began)
            await stop(task)


async def fails(_epoch: int) -> None:
    raise OSError("while leading")


async def returns(_epoch: int) -> None:
    return


@pytest.mark.parametrize(
    ("lead", "error"), [(fails, "while leading"), (returns, "lead.. returned")]
)
async def test_a_leader_that_fails_gives_the_lease_back_and_is_heard(
    redis: Redis, lead: Callable[[int], Awaitable[None]], error: str
) -> None:
    with pytest.raises((OSError, RuntimeError), match=error):
        await brief(redis, A).run(lead)
    assert await redis.get(LEADER_LEASE) is None


async def test_a_failure_to_stop_leading_is_heard(redis: Redis) -> None:
    async def lead(_epoch: int) -> None:
        try:
            await redis.flushall()  # loses the lease
            await asyncio.Event().wait()
        finally:
            raise OSError("while stopping")

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(OSError, match="while stopping"):
            await brief(redis, A).run(lead)


@pytest.mark.parametrize(
    "value", ["", "scheduler-a", "[]", "{}", '{"schema": 2}', '{"schema": 1, "scheduler_id": 1}']
)
def test_a_lease_value_that_is_not_ours_is_refused(value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's and ours alike
        LeaderIdentity.from_json(value)
