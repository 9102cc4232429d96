"""Model files on all nodes at once: imported everywhere or nowhere, found, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

from services.common.errors import (
    BriskError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from services.common.log import get_logger
from services.common.model import ModelInfo, ModelRef
from services.common.names import near_matches, shorten
from services.common.source_names import own_name
from services.scheduler.ports import ImportProgress, Peer, Peers, Stores

log = get_logger(__name__)

_CLOSE_S_MAX: Final = 2.0
_LOOKS_AFTER_S: Final = (0.0, 0.2, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A model that is published on every node."""

    info: ModelInfo
    new_on: tuple[Peer, ...]  # the nodes that did not have it before


class Chores:
    """Work that goes on when its caller has left; each piece bounds itself."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do `work` until it is done or the process ends."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def close(self) -> None:
        """Give what is left a moment to finish, then cancel it."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=_CLOSE_S_MAX)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, BriskError):  # its caller, if still there, hears of it
            log.debug("chore refused", reason=error.reason, error=error.message)
        elif error is not None:
            log.error("chore failed", exc_info=error)


class Imports:
    """The store managers, taken together."""

    def __init__(self, *, stores: Stores, peers: Peers, chores: Chores) -> None:
        self._stores = stores
        self._peers = peers
        self._chores = chores
        self._importing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(
        self, source_path: str, name: str, *, as_is: bool = False
    ) -> AsyncGenerator[ImportProgress | Imported]:
        """Import a folder or URL on every node: yield progress of all together, then the outcome.

        Raises BriskError if it fails on any node; then, and if closed early, what was not there
        before is gone again. Imports of one name come one after another, so that "before" is sure.
        """
        expected = name or own_name(source_path)
        async with self._importing.setdefault(expected, asyncio.Lock()):
            run = _Run(expected, await self._refs(await self._nodes()))
            tasks = [
                asyncio.ensure_future(self._import_on(run, node, source_path, name, as_is=as_is))
                for node in run.before
            ]
            try:
                async with aclosing(_followed(run, tasks)) as told:
                    async for progress in told:
                        yield progress
                outcome = run.outcome()
            except (BriskError, asyncio.CancelledError, GeneratorExit):
                await _end(tasks)
                # Before the next import of this name begins, whatever becomes of our caller.
                await asyncio.shield(self._chores.spawn(self._take_back(run)))
                raise
            finally:
                await _end(tasks)
        yield outcome

    async def undo(self, imported: Imported) -> None:
        """Delete a model where it was not before; failures are logged."""
        for node in imported.new_on:
            await self._delete_on(node, imported.info.ref)

    def undo_later(self, imported: Imported) -> None:
        """Undo without waiting for it."""
        self._chores.spawn(self.undo(imported))

    async def find(self, ref: ModelRef) -> ModelInfo:
        """Return a stored model; without a revision, the one imported last.

        Raises NotFoundError (MODEL_NOT_FOUND) naming near matches, UnavailableError (NO_NODE).
        """
        names: set[str] = set()
        for node in await self._nodes():
            stored = await self._stores.models(node.address)
            names.update(info.ref.name for info in stored)
            found = [
                info
                for info in stored
                if info.ref.name == ref.name and ref.revision in ("", info.ref.revision)
            ]
            if found:
                return found[-1]
        near = near_matches(ref.name, sorted(names))
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        at = f" at revision {ref.revision}" if ref.revision else ""
        raise NotFoundError(
            f"no imported model is named {shorten(ref.name)}{at}{hint}",
            reason=Reason.MODEL_NOT_FOUND,
        )

    async def delete(self, ref: ModelRef) -> bool:
        """Delete a model everywhere; False if some node still has it, for a lease or trouble."""
        try:
            nodes = await self._peers.stores()
        except UnavailableError:
            return False
        return all([await self._delete_on(node, ref) for node in nodes])

    async def _nodes(self) -> tuple[Peer, ...]:
        nodes = await self._peers.stores()
        if not nodes:
            raise UnavailableError(
                "no store manager is registered", reason=Reason.NO_NODE, retry_after_s=2.0
            )
        return nodes

    async def _refs(self, nodes: tuple[Peer, ...]) -> dict[Peer, frozenset[ModelRef]]:
        stored = await asyncio.gather(*(self._stores.models(node.address) for node in nodes))
        return {
            node: frozenset(info.ref for info in infos)
            for node, infos in zip(nodes, stored, strict=True)
        }

    async def _import_on(
        self, run: _Run, node: Peer, source_path: str, name: str, *, as_is: bool
    ) -> None:
        events = self._stores.import_model(node.address, source_path, name, as_is=as_is)
        async with aclosing(events) as told:
            async for each in told:
                if isinstance(each, ModelInfo):
                    run.done[node] = each
                else:
                    run.told[node] = each
                run.changed.set()
        if node not in run.done:
            raise UnavailableError("a store manager ended the import without a result")

    async def _take_back(self, run: _Run) -> None:
        """Delete what an import has published.

        A node that we have cancelled may be just publishing: it is looked at more than once.
        """
        for pause_s in _LOOKS_AFTER_S:
            await asyncio.sleep(pause_s)
            for node in run.before:
                if pause_s == 0.0 or node not in run.done:
                    await self._take_back_on(run, node)

    async def _take_back_on(self, run: _Run, node: Peer) -> None:
        try:
            stored = await self._stores.models(node.address)
        except BriskError as error:
            log.warning("import not taken back", node=node.node_id, reason=error.reason)
            return
        for info in stored:
            if info.ref.name == run.name and info.ref not in run.before[node]:
                await self._delete_on(node, info.ref)

    async def _delete_on(self, node: Peer, ref: ModelRef) -> bool:
        try:
            await self._stores.delete(node.address, ref)
        except FailedPreconditionError:
            log.info("model files are in use", model=ref.name, node=node.node_id)
            return False
        except BriskError as error:
            log.warning(
                "model files not deleted", model=ref.name, node=node.node_id, reason=error.reason
            )
            return False
        return True


class _Run:
    """One import on all nodes, as far as it has come."""

    def __init__(self, name: str, before: dict[Peer, frozenset[ModelRef]]) -> None:
        self.name = name
        self.before = before
        self.told: dict[Peer, ImportProgress] = {}
        self.done: dict[Peer, ModelInfo] = {}
        self.changed = asyncio.Event()

    async def told_more(self) -> None:
        """Return when a node has told something since the last call."""
        await self.changed.wait()
        self.changed.clear()

    def progress(self) -> ImportProgress | None:
        """Return all nodes' progress taken together; None before the first has told any."""
        if not self.told:
            return None
        told = self.told.values()
        return ImportProgress(
            bytes_done=sum(each.bytes_done for each in told),
            bytes_total=sum(each.bytes_total for each in told),
            file=next((each.file for each in told if each.bytes_done < each.bytes_total), ""),
            bytes_per_s=sum(each.bytes_per_s for each in told),
            origin=next((each.origin for each in told if each.origin), ""),
        )

    def outcome(self) -> Imported:
        """Return what was published. Raises InvalidArgumentError if nodes disagree."""
        infos = tuple(self.done.values())
        if any(info.ref != infos[0].ref for info in infos):
            raise InvalidArgumentError(
                "the folder's files differ between nodes", reason=Reason.INVALID_MODEL
            )
        new_on = tuple(node for node, refs in self.before.items() if infos[0].ref not in refs)
        return Imported(info=infos[0], new_on=new_on)


async def _followed(
    run: _Run, tasks: Sequence[asyncio.Future[None]]
) -> AsyncGenerator[ImportProgress]:
    """Yield progress until all nodes are done. Raises what the first to fail raises."""
    pending = tuple(tasks)
    told: ImportProgress | None = None
    while pending:
        waiting = asyncio.ensure_future(run.told_more())
        try:
            await asyncio.wait((waiting, *pending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        for task in pending:
            if task.done():
                task.result()
        pending = tuple(task for task in pending if not task.done())
        progress = run.progress()
        if progress is not None and progress != told:
            told = progress
            yield progress


async def _end(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Cancel and wait; a store manager undoes a cancelled import by itself."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
