"""Models and deployments as operators change them: import, deploy, delete.

A change is durable before the core hears of it, and changes come one after another. What is under
way when the leadership ends is refused: the fence in Redis keeps it from being stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from services.common.clock import monotonic_s, wall_clock
from services.common.errors import (
    BriskError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    Reason,
    UnavailableError,
)
from services.common.log import get_logger
from services.common.model import ModelInfo, ModelRef
from services.common.names import ModelName, parse_model_name
from services.scheduler.deployment import Deployment, Spec, SpecWish, check_wish, settle
from services.scheduler.deployments import Deployments
from services.scheduler.events import DeploymentPut, DeploymentRemoved
from services.scheduler.imports import Chores, Imported, Imports
from services.scheduler.ports import ImportProgress, Workers
from services.scheduler.shell import Reign
from services.scheduler.starts import RETRY_AFTER_S, unknown

log = get_logger(__name__)

_CHECKS_MAX: Final = 3  # workers asked for a verdict
_DELETE_TRIES_MAX: Final = 120  # ten minutes for instances to finish and give their leases back
_DELETE_PAUSE_S: Final = 0.5  # doubles
_DELETE_PAUSE_S_MAX: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployWish:
    """What to deploy, as given."""

    name: str  # empty: the model's
    source: str | ModelRef  # a folder or URL to import, or an imported model
    spec: SpecWish
    as_is: bool = False  # of an import: the weights keep their files


class Catalogue:
    """Changes models and deployments in the name of the reign that is passed in."""

    def __init__(
        self, *, deployments: Deployments, imports: Imports, workers: Workers, chores: Chores
    ) -> None:
        self._deployments = deployments
        self._imports = imports
        self._workers = workers
        self._chores = chores
        # Held across the write: two changes of one name must reach Redis and the core in one order.
        self._changing = asyncio.Lock()

    async def import_model(
        self, reign: Reign, source_path: str, name: str, *, as_is: bool = False
    ) -> AsyncGenerator[ImportProgress | ModelInfo]:
        """Yield progress, then the model: published on every node and checked by a worker.

        Raises BriskError; then, and if closed early, what was not there before is gone again.
        """
        if name:
            parse_model_name(name)
        async with self._undoing(reign) as made:
            async with aclosing(self._imports.run(source_path, name, as_is=as_is)) as told:
                async for each in told:
                    if isinstance(each, ImportProgress):
                        yield each
                    else:
                        made.append(each)
            await self._check(reign, made[0].info.ref)
            reign.check()
        yield made[0].info

    async def deploy(
        self, reign: Reign, wish: DeployWish
    ) -> AsyncGenerator[ImportProgress | Deployment]:
        """Yield an import's progress, then the deployment as stored.

        Raises BriskError; then, and if closed before the last, nothing has changed.
        """
        name = parse_model_name(wish.name) if wish.name else None
        check_wish(wish.spec)
        async with self._undoing(reign) as made:
            if isinstance(wish.source, ModelRef):
                info = await self._imports.find(wish.source)
            else:
                run = self._imports.run(wish.source, "", as_is=wish.as_is)
                async with aclosing(run) as told:
                    async for each in told:
                        if isinstance(each, ImportProgress):
                            yield each
                        else:
                            made.append(each)
                info = made[0].info
            spec = settle(wish.spec, info)
            await self._check(reign, info.ref)
            # Once begun, the write goes on without its caller: half a change is worse than a late
            # cancellation.
            storing = self._chores.spawn(self._put(reign, name or info.ref.name, info, spec))
            deployment: Deployment = await asyncio.shield(storing)
        yield deployment

    async def delete(self, reign: Reign, name: str, *, keep_files: bool) -> None:
        """Remove a deployment; its files go too unless kept, used elsewhere or still leased.

        Raises NotFoundError naming near matches.
        """
        deployment = await asyncio.shield(self._chores.spawn(self._remove(reign, name)))
        ref = deployment.model.ref
        if keep_files or _is_used(reign, ref):
            return
        if not await self._imports.delete(ref):
            self._chores.spawn(self._delete_when_free(reign, ref))

    @asynccontextmanager
    async def _undoing(self, reign: Reign) -> AsyncIterator[list[Imported]]:
        """Undo the imports put in the list if the block fails or is left early."""
        made: list[Imported] = []
        try:
            yield made
        except BriskError:
            for each in made:
                if not _is_used(reign, each.info.ref):
                    await self._imports.undo(each)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            for each in made:
                if not _is_used(reign, each.info.ref):
                    self._imports.undo_later(each)
            raise

    async def _check(self, reign: Reign, ref: ModelRef) -> None:
        """Have a worker say whether it could load the model; without a worker, the load will tell.

        Raises InvalidArgumentError (INVALID_MODEL) or DataLossError.
        """
        reign.check()
        ready = [worker.last for worker in reign.state.workers.values() if not worker.draining]
        for worker in ready[:_CHECKS_MAX]:
            try:
                await self._workers.check(worker.address, ref)
            except (InvalidArgumentError, DataLossError):
                raise
            except BriskError as error:
                log.warning("check undecided", worker=worker.worker_id, reason=error.reason)
            else:
                return
        log.info("model not checked", model=ref.name, revision=ref.revision, workers=len(ready))

    async def _put(self, reign: Reign, name: ModelName, info: ModelInfo, spec: Spec) -> Deployment:
        async with self._changing:
            reign.check()
            before = reign.state.deployments.get(name)
            created_at = wall_clock() if before is None else before.created_at
            deployment = Deployment(name=name, model=info, spec=spec, created_at=created_at)
            with _deposing(reign):
                await self._deployments.put(reign.epoch, deployment)
            reign.feed(DeploymentPut(now_s=monotonic_s(), deployment=deployment))
        log.info("deployed", deployment=name, model=info.ref.name, revision=info.ref.revision)
        return deployment

    async def _remove(self, reign: Reign, name: str) -> Deployment:
        async with self._changing:
            reign.check()
            deployment = reign.state.deployments.get(name)
            if deployment is None:
                raise unknown(name, reign.state.deployments)
            with _deposing(reign):
                await self._deployments.remove(reign.epoch, deployment.name)
            reign.feed(DeploymentRemoved(now_s=monotonic_s(), name=deployment.name))
        log.info("deployment deleted", deployment=name)
        return deployment

    async def _delete_when_free(self, reign: Reign, ref: ModelRef) -> None:
        """Delete a model's files once nobody leases them, unless somebody wants them again."""
        pause_s = _DELETE_PAUSE_S
        for _ in range(_DELETE_TRIES_MAX):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _DELETE_PAUSE_S_MAX)
            reign.check()
            if _is_used(reign, ref) or await self._imports.delete(ref):
                return
        log.warning("model files stay", model=ref.name, revision=ref.revision)


def _is_used(reign: Reign, ref: ModelRef) -> bool:
    return any(each.model.ref == ref for each in reign.state.deployments.values())


@contextmanager
def _deposing(reign: Reign) -> Iterator[None]:
    """End the reign if the block learns that there is a newer one."""
    try:
        yield
    except FailedPreconditionError as error:
        if error.reason != Reason.STALE_EPOCH:
            raise
        reign.depose()
        raise UnavailableError(
            "this scheduler does not lead any more",
            reason=Reason.NOT_LEADER,
            retry_after_s=RETRY_AFTER_S,
        ) from error
