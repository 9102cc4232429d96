"""One name, one holder at a time; other names go on; unused locks are forgotten."""

from __future__ import annotations

import asyncio

from services.storemgr.named_locks import NamedLocks


async def test_one_name_is_held_by_one_at_a_time() -> None:
    locks = NamedLocks()
    inside = 0

    async def visit() -> None:
        nonlocal inside
        async with locks.hold("a"):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(visit() for _ in range(5)))
    assert len(locks) == 0


async def test_different_names_do_not_wait_for_each_other() -> None:
    locks = NamedLocks()
    async with asyncio.timeout(1), locks.hold("a"), locks.hold("b"):
        assert len(locks) == 2


async def test_giving_up_while_waiting_leaves_the_lock_to_others() -> None:
    locks = NamedLocks()

    async def visit() -> None:
        async with locks.hold("a"):
            pass

    async with locks.hold("a"):
        waiting = asyncio.ensure_future(visit())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert len(locks) == 1
    async with asyncio.timeout(1):
        await visit()
    assert len(locks) == 0
