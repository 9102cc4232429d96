"""The library's callers may leave at any moment: what is published is known, all else is undone."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from services.common.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.model import ModelRef
from services.common.names import ModelName
from services.storemgr.catalog import Catalog
from services.storemgr.importer import Importer
from services.storemgr.io_queue import IoQueue
from services.storemgr.library import Library, LibraryLimits, Threads
from services.storemgr.manifest import Manifest
from services.storemgr.source import parse_source
from services.storemgr.store import Store
from tests.broken_models import WEIGHTS, good_folder
from tests.unit.storemgr.disks import Barrier, HookedDisk, fetcher_in, nothing

NAME = ModelName("good")
LIMITS = LibraryLimits(imports_max=2, leases_max=2)


class Node:
    """A library with its store and a disk to meddle with."""

    def __init__(self, folder: Path, threads: Threads) -> None:
        self.disk = HookedDisk()
        self.store = Store(folder / "data")
        self.good = good_folder(folder / "good")
        self.library = Library(
            self.store,
            self.disk,
            Importer(self.store, self.disk, fetcher_in(self.store.root), hard_links=False),
            Catalog(self.store.scan().manifests),
            threads=threads,
            limits=LIMITS,
            queue=IoQueue(),
        )

    async def import_good(self, name: str = "", *, as_is: bool = False) -> Manifest:
        last: object = None
        async with aclosing(
            self.library.import_model(parse_source(str(self.good), name, as_is=as_is))
        ) as events:
            async for event in events:
                last = event
        assert isinstance(last, Manifest)
        return last

    async def models(self) -> list[tuple[str, int]]:
        description = await self.library.describe()
        return [(holding.manifest.name, holding.leases) for holding in description.models]

    def staged(self) -> list[Path]:
        return list((self.store.root / "staging").iterdir())

    def weights_of(self, manifest: Manifest) -> Path:
        return self.store.folder_of(manifest.ref) / WEIGHTS


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with AsyncExitStack() as stack:
        imports = stack.enter_context(ThreadPoolExecutor(2, "imports"))
        files = stack.enter_context(ThreadPoolExecutor(2, "files"))
        node = Node(tmp_path, Threads(imports=imports, files=files))
        stack.callback(node.store.close)
        stack.push_async_callback(node.library.close)
        yield node


async def reached(barrier: Barrier) -> None:
    assert await asyncio.to_thread(barrier.reached.wait, 10)


async def test_an_imported_model_can_be_leased_and_described(node: Node) -> None:
    manifest = await node.import_good()
    async with node.library.lease(ModelRef(name=NAME), "worker-1") as grant:
        assert grant.manifest == manifest
        assert (grant.folder / WEIGHTS).exists()
        assert await node.models() == [("good", 1)]
    assert await node.models() == [("good", 0)]
    assert (await node.library.describe()).free_bytes > 0


async def test_leaving_an_import_undoes_it(node: Node) -> None:
    node.disk.before = barrier = Barrier(WEIGHTS)
    task = asyncio.ensure_future(node.import_good())
    await reached(barrier)
    assert node.staged() != []
    task.cancel()
    barrier.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert node.staged() == []
    assert await node.models() == []
    node.disk.before = nothing
    await node.import_good()


async def test_leaving_after_the_model_was_published_keeps_it_known(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, barrier = node.store.publish, Barrier(WEIGHTS)

    def publish_and_wait(staging: Path, manifest: Manifest) -> None:
        publish(staging, manifest)
        barrier(Path(WEIGHTS))

    monkeypatch.setattr(node.store, "publish", publish_and_wait)
    task = asyncio.ensure_future(node.import_good())
    await reached(barrier)
    task.cancel()
    barrier.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await node.models() == [("good", 0)]


async def test_imports_of_one_name_take_turns(node: Node) -> None:
    node.disk.before = barrier = Barrier(WEIGHTS)
    first = asyncio.ensure_future(node.import_good())
    await reached(barrier)
    second = asyncio.ensure_future(node.import_good(as_is=True))
    await asyncio.sleep(0)
    assert len(node.disk.jobs) == 1
    barrier.go_on.set()
    assert (await first).imported_at < (await second).imported_at
    assert await node.models() == [("good", 0), ("good", 0)]
    assert node.staged() == []


async def test_who_asks_for_the_same_at_once_shares_one_import(node: Node) -> None:
    node.disk.before = barrier = Barrier(WEIGHTS)
    tasks = [asyncio.ensure_future(node.import_good()) for _ in range(2)]
    await reached(barrier)
    barrier.go_on.set()
    first, second = await asyncio.gather(*tasks)
    assert first is second
    assert len(node.disk.jobs) == 1
    again = await node.import_good()  # afterwards it is another one
    assert again.imported_at > first.imported_at


async def test_a_shared_import_is_stopped_by_the_last_to_leave_only(node: Node) -> None:
    node.disk.before = barrier = Barrier(WEIGHTS)
    tasks = [asyncio.ensure_future(node.import_good()) for _ in range(2)]
    await reached(barrier)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert not node.disk.jobs[0].is_stopped
    tasks[1].cancel()
    await asyncio.sleep(0)
    barrier.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert node.disk.jobs[0].is_stopped
    assert await node.models() == []
    assert node.staged() == []


async def test_an_import_waits_for_the_one_before_it_of_the_same_name(node: Node) -> None:
    node.disk.before = barrier = Barrier(WEIGHTS)
    first = asyncio.ensure_future(node.import_good())
    await reached(barrier)
    node.disk.before = nothing
    second = asyncio.ensure_future(node.import_good(as_is=True))
    done, _ = await asyncio.wait((second,), timeout=0.05)
    assert not done
    assert len(node.disk.jobs) == 1
    barrier.go_on.set()
    assert (await first).imported_at < (await second).imported_at


async def test_imports_of_different_names_run_side_by_side(node: Node) -> None:
    node.disk.before = barrier = Barrier(WEIGHTS)
    task = asyncio.ensure_future(node.import_good("slow"))
    await reached(barrier)
    node.disk.before = nothing
    async with asyncio.timeout(10):
        await node.import_good("quick")
    barrier.go_on.set()
    await task
    assert await node.models() == [("quick", 0), ("slow", 0)]


async def test_imports_beyond_the_limit_are_refused_at_once(node: Node) -> None:
    node.disk.before = barrier = Barrier(WEIGHTS)
    tasks = [asyncio.ensure_future(node.import_good(name)) for name in ("a", "b")]
    await reached(barrier)
    with pytest.raises(ResourceExhaustedError) as refusal:
        await node.import_good("c")
    assert refusal.value.reason == "QUEUE_FULL"
    barrier.go_on.set()
    await asyncio.gather(*tasks)


async def test_closing_the_library_ends_imports_with_a_typed_error(node: Node) -> None:
    node.disk.before = barrier = Barrier(WEIGHTS)
    task = asyncio.ensure_future(node.import_good())
    await reached(barrier)
    closing = asyncio.ensure_future(node.library.close())
    await asyncio.sleep(0)
    barrier.go_on.set()
    await closing
    with pytest.raises(UnavailableError) as refusal:
        await task
    assert refusal.value.reason == "SHUTTING_DOWN"
    assert node.staged() == []


async def test_a_leased_model_is_not_deleted(node: Node) -> None:
    manifest = await node.import_good()
    async with node.library.lease(ModelRef(name=NAME), "worker-1"):
        with pytest.raises(FailedPreconditionError) as refusal:
            await node.library.delete(manifest.ref)
        assert refusal.value.reason == "MODEL_LEASED"
    await node.library.delete(manifest.ref)
    assert await node.models() == []
    assert not node.store.folder_of(manifest.ref).exists()
    await node.library.delete(manifest.ref)  # idempotent


async def test_a_model_on_its_way_out_cannot_be_leased(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = await node.import_good()
    remove, barrier = node.store.remove, Barrier(WEIGHTS)

    def wait_and_remove(ref: ModelRef) -> None:
        barrier(Path(WEIGHTS))
        remove(ref)

    monkeypatch.setattr(node.store, "remove", wait_and_remove)
    task = asyncio.ensure_future(node.library.delete(manifest.ref))
    await reached(barrier)
    with pytest.raises(NotFoundError):
        async with node.library.lease(ModelRef(name=NAME), "worker-1"):
            pass
    barrier.go_on.set()
    await task


async def test_a_model_that_cannot_be_removed_stays_known(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = await node.import_good()

    def fail(_: ModelRef) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(node.store, "remove", fail)
    with pytest.raises(OSError, match="Input/output"):
        await node.library.delete(manifest.ref)
    assert await node.models() == [("good", 0)]


@pytest.mark.parametrize("revision", ["", "../../etc", "0123"])
async def test_only_a_revision_can_be_deleted(node: Node, revision: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await node.library.delete(ModelRef(name=NAME, revision=revision))


async def test_release_ends_the_lease_and_tells_its_stream(node: Node) -> None:
    manifest = await node.import_good()
    async with node.library.lease(ModelRef(name=NAME), "") as grant:
        node.library.release("lease-unknown")
        assert not grant.released.is_set()
        node.library.release(grant.lease_id)
        assert grant.released.is_set()
        await node.library.delete(manifest.ref)
    node.library.release(grant.lease_id)


async def test_leases_are_bounded_and_a_refused_one_leaves_no_trace(node: Node) -> None:
    await node.import_good()
    ref = ModelRef(name=NAME)
    async with node.library.lease(ref, "a"), node.library.lease(ref, "b"):
        with pytest.raises(ResourceExhaustedError):
            async with node.library.lease(ref, "c"):
                pass
        assert await node.models() == [("good", 2)]
    async with node.library.lease(ref, "c"):
        pass


async def test_a_holder_s_name_that_would_spoil_the_log_is_refused(node: Node) -> None:
    await node.import_good()
    with pytest.raises(InvalidArgumentError, match="holder"):
        async with node.library.lease(ModelRef(name=NAME), "a\nb"):
            pass


async def test_a_touched_model_is_verified_and_leased(node: Node) -> None:
    manifest = await node.import_good()
    os.utime(node.weights_of(manifest), ns=(0, 1))
    async with node.library.lease(ModelRef(name=NAME), "worker-1") as grant:
        assert grant.manifest != manifest
    assert node.store.whole(manifest.ref) == grant.manifest
    node.disk.before = Barrier(WEIGHTS)  # not verified a second time
    async with asyncio.timeout(10), node.library.lease(ModelRef(name=NAME), "worker-1"):
        pass


@pytest.mark.parametrize("damage", ["overwritten", "truncated", "removed"])
async def test_a_model_that_was_changed_is_not_leased(node: Node, damage: str) -> None:
    manifest = await node.import_good()
    path = node.weights_of(manifest)
    content = path.read_bytes()
    match damage:
        case "overwritten":
            path.write_bytes(content[:-4] + b"oops")
        case "truncated":
            path.write_bytes(content[:-4])
        case _:
            path.unlink()
    with pytest.raises(DataLossError, match=r"model\.safetensors was changed") as refusal:
        async with node.library.lease(ModelRef(name=NAME), "worker-1"):
            pass
    assert refusal.value.reason == "CHECKSUM_MISMATCH"
    assert await node.models() == [("good", 0)]
    await node.import_good()  # which is what the message asks for
    async with node.library.lease(ModelRef(name=NAME), "worker-1"):
        assert path.read_bytes() == content


async def test_a_worker_that_leaves_while_its_model_is_verified_holds_nothing(node: Node) -> None:
    manifest = await node.import_good()
    os.utime(node.weights_of(manifest), ns=(0, 1))
    node.disk.before = barrier = Barrier(WEIGHTS)

    async def lease() -> None:
        async with node.library.lease(ModelRef(name=NAME), "worker-1"):
            pass

    task = asyncio.ensure_future(lease())
    await reached(barrier)
    assert await node.models() == [("good", 1)]
    task.cancel()
    await asyncio.sleep(0)
    assert node.disk.jobs[-1].is_stopped
    barrier.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await node.models() == [("good", 0)]


async def test_progress_comes_as_it_happens_and_ends_with_the_model(node: Node) -> None:
    node.disk.before = barrier = Barrier("tokenizer.json")
    source = parse_source(str(node.good), "")
    async with aclosing(node.library.import_model(source)) as events:
        first = await anext(events)
        assert not isinstance(first, Manifest)
        assert first.bytes_done < first.bytes_total
        barrier.go_on.set()
        rest = [event async for event in events]
    last = rest[-1]
    assert isinstance(last, Manifest)
    states = [first, *(event for event in rest[:-1] if not isinstance(event, Manifest))]
    assert states[-1].bytes_done == last.file_bytes
    assert [state.bytes_done for state in states] == sorted(state.bytes_done for state in states)
