"""The disk, through the native loader, and the other nodes, through gRPC."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import brisk_native
import grpc
from brisk.storage.v1 import storage_service_pb2 as pb
from brisk.storage.v1 import storage_service_pb2_grpc as pb_grpc

from services.common.channel import ChannelPool
from services.common.errors import BriskError
from services.common.keys import ServiceKind
from services.common.model import ModelRef
from services.common.registry import Registry, ServiceFacts
from services.common.wire import model_ref_to_proto
from services.storemgr.ports import Job, JobStoppedError, Progress
from services.storemgr.refusal import MalformedError, invalid_model
from services.storemgr.remotes.peers import PeerStore
from services.storemgr.source_checksums import damaged
from services.storemgr.store import used_bytes

_PROBE_BYTES: Final = 64 * 1024
_PEERS_ASKED_MAX: Final = 64  # of those registered, at random
_PEERS_MAX: Final = 8  # read from at once
_ASK_S_MAX: Final = 2.0
_FIND_S_MAX: Final = 10.0


class NativeDisk:
    """Implements ports.Disk."""

    def __init__(self, budget_bytes: int = 0) -> None:
        """With a budget a folder may hold so many bytes, even if the disk has room for more."""
        self._budget_bytes = budget_bytes

    def new_job(self) -> Job:
        """Return a job that has not begun."""
        return NativeJob()

    def free_bytes(self, folder: Path) -> int:
        """Return the bytes that unprivileged users, and we, can still write under `folder`."""
        status = os.statvfs(folder)
        free = status.f_bavail * status.f_frsize
        if not self._budget_bytes:
            return free
        return max(0, min(free, self._budget_bytes - used_bytes(folder)))


class NativeJob:
    """Implements ports.Job."""

    def __init__(self) -> None:
        self.token = brisk_native.CancelToken()
        """Ends native calls."""

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self.token.cancelled

    def stop(self) -> None:
        """End the work within one chunk."""
        self.token.cancel()

    def checksum(self, path: Path, progress: Progress) -> tuple[int, ...]:
        """Return the CRC-32C of each chunk of `path`; see ports.Job."""
        with our_errors():
            return tuple(brisk_native.checksum_file(path, progress=progress, cancel=self.token))

    def copy(self, source: Path, target: Path, progress: Progress) -> tuple[int, ...]:
        """Copy `source` to the new file `target`; see ports.Job."""
        with our_errors():
            return tuple(
                brisk_native.copy_file(source, target, progress=progress, cancel=self.token)
            )

    def convert(
        self,
        weights: brisk_native.Weights,
        target: Path,
        progress: Progress,
        expected: Mapping[str, Sequence[int]],
    ) -> tuple[int, ...]:
        """Write weights to the new file `target` in the stored form; see ports.Job."""
        names = {os.fspath(file.path): file.name for file in weights.files}
        try:
            with our_errors():
                return brisk_native.write_weights(
                    weights,
                    target,
                    checksums={name: tuple(each) for name, each in expected.items()},
                    progress=lambda done, _: progress(done),
                    cancel=self.token,
                ).crc32c
        except brisk_native.FileChangedError as error:
            name = names.get(error.path, "")
            raise invalid_model(name, "changed while it was imported") from error
        except brisk_native.ChecksumError as error:
            raise damaged(names.get(error.path, ""), error.chunk) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """Which loader reads the store, and how."""

    implementation: str  # "native" or "python"
    direct_io: bool  # past the page cache


def probe_loader(folder: Path) -> Loader:
    """Read a small file under `folder` and return how that went. Raises OSError."""
    path = folder / f"probe-{secrets.token_hex(8)}"
    try:
        path.write_bytes(bytes(_PROBE_BYTES))
        _, result = brisk_native.read_file(path)
    finally:
        path.unlink(missing_ok=True)
    return Loader(implementation=brisk_native.IMPLEMENTATION, direct_io=result.direct)


@contextmanager
def our_errors() -> Iterator[None]:
    """Turn what ends a native job into what ports.Job says."""
    try:
        yield
    except brisk_native.ReadCancelledError as error:
        raise JobStoppedError from error
    except brisk_native.ShortReadError as error:
        raise MalformedError("shrank while it was read") from error


class GrpcPeers:
    """Finds the nodes that have a model: asks the store managers that are registered."""

    def __init__(self, registry: Registry, channels: ChannelPool, *, own_id: str) -> None:
        self._registry = registry
        self._channels = channels
        self._own_id = own_id
        self._loop = asyncio.get_running_loop()

    def find(self, ref: ModelRef) -> tuple[PeerStore, ...]:
        """Return some of those that have it. For threads. Raises BriskError."""
        asking = asyncio.run_coroutine_threadsafe(self._find(ref), self._loop)
        return asking.result(_FIND_S_MAX)

    async def _find(self, ref: ModelRef) -> tuple[PeerStore, ...]:
        registered = await self._registry.list(ServiceKind.STOREMGR)
        others = [each for each in registered if each.service_id != self._own_id]
        asked = random.sample(others, min(len(others), _PEERS_ASKED_MAX))
        answers = await asyncio.gather(*(self._ask(each, ref) for each in asked))
        found = tuple(each for each in answers if each is not None)
        return found[:_PEERS_MAX]

    async def _ask(self, peer: ServiceFacts, ref: ModelRef) -> PeerStore | None:
        request = pb.ReadChunksRequest(model=model_ref_to_proto(ref))
        try:
            with self._channels.use(peer.address) as channel:
                stub = pb_grpc.StorageServiceStub(channel)
                answer = await stub.ReadChunks(request, timeout=_ASK_S_MAX)
        except (grpc.aio.AioRpcError, BriskError):
            return None  # it does not have the model, or is gone
        return PeerStore(node_id=peer.node_id, url=answer.url)
