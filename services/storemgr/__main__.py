"""The store manager's process: `python -m services.storemgr`."""

from __future__ import annotations

import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack

from brisk.storage.v1 import storage_service_pb2_grpc

from services.common.channel import ChannelPool
from services.common.clock import wall_clock
from services.common.errors import ConfigError
from services.common.keys import ServiceKind
from services.common.lifecycle import Ready, run_service, serve
from services.common.log import get_logger
from services.common.metrics import start_metrics
from services.common.names import new_id
from services.common.redis_client import connect_or_refuse
from services.common.registry import Registration, Registry, ServiceFacts
from services.common.server import INTERNAL_LIMITS, create_server
from services.storemgr.adapters import GrpcPeers, NativeDisk, probe_loader
from services.storemgr.arena import Arena
from services.storemgr.arena_index import Indexed
from services.storemgr.arena_memory import chunk_bytes_for
from services.storemgr.arena_start import ArenaSettings, IndexFile, OpenedArena, open_arena
from services.storemgr.catalog import Catalog
from services.storemgr.chunk_server import serve_chunks
from services.storemgr.config import StoremgrConfig
from services.storemgr.eviction import CostAware
from services.storemgr.filling import Filler
from services.storemgr.importer import Importer
from services.storemgr.io_queue import IoQueue
from services.storemgr.library import Library, LibraryLimits, Threads
from services.storemgr.metrics import (
    IO_BYTES_PER_SECOND,
    IO_PREDICTION_ERROR,
    IO_PREDICTION_SHARE,
    IO_QUEUED_BYTES,
    LOADER,
    UNUSABLE,
)
from services.storemgr.remotes.fetch import FetchLimits
from services.storemgr.remotes.fetcher import Fetcher
from services.storemgr.remotes.pace import Backoff, Pace
from services.storemgr.remotes.permits import parse_permits
from services.storemgr.remotes.sources import SourceRules
from services.storemgr.remotes.workplaces import Workplaces
from services.storemgr.service import ENDLESS_METHODS, SERVICE_NAME, StorageServicer
from services.storemgr.store import Store, StoreTakenError
from services.storemgr.threads import begin, finish

log = get_logger("services.storemgr")

_READ_THREADS = 3  # of which one at a time reads from the disk; the others look at memory


async def main(config: StoremgrConfig) -> None:
    """Run until told to stop. Raises ConfigError if the store or a port cannot be had."""
    async with AsyncExitStack() as stack:
        redis = await connect_or_refuse(config.redis_url, setting=config.setting("redis_url"))
        stack.push_async_callback(redis.aclose)
        metrics = start_metrics(
            config.metrics_listen,
            setting=config.setting("metrics_listen"),
            advertise=config.advertise,
        )
        stack.callback(metrics.close)
        server = create_server(
            config.listen,
            limits=INTERNAL_LIMITS,
            reflection=config.reflection,
            service_names=(SERVICE_NAME,),
            endless_methods=ENDLESS_METHODS,
            setting=config.setting("listen"),
            advertise=config.advertise,
        )
        service_id = new_id("storemgr")
        channels = ChannelPool()
        stack.push_async_callback(channels.close)
        peers = GrpcPeers(Registry(redis), channels, own_id=service_id)
        store, library = await _open_library(config, stack, peers)
        chunks = serve_chunks(
            config.chunks_listen,
            store.folder_of,
            setting=config.setting("chunks_listen"),
            advertise=config.advertise,
        )
        stack.callback(chunks.close)
        storage_service_pb2_grpc.add_StorageServiceServicer_to_server(
            StorageServicer(library, node_id=config.node_id, chunks_address=chunks.address),
            server.server,
        )
        facts = ServiceFacts(
            kind=ServiceKind.STOREMGR,
            service_id=service_id,
            node_id=config.node_id,
            address=server.address,
            metrics_address=metrics.address,
            started_at=wall_clock(),
        )
        await serve(
            server,
            Registration(redis, facts).run(),
            announce_s=config.announce_s,
            drain_s=config.drain_s,
            ready=Ready(
                path=config.ready_file,
                service=config.service,
                service_id=service_id,
                metrics_address=metrics.address,
            ),
        )


async def _open_library(
    config: StoremgrConfig, stack: AsyncExitStack, peers: GrpcPeers
) -> tuple[Store, Library]:
    threads = Threads(
        imports=ThreadPoolExecutor(config.import_threads, "storemgr-import"),
        files=ThreadPoolExecutor(config.file_threads, "storemgr-files"),
    )
    store, catalog, fetcher = await finish(begin(threads.files, _open_store, config, peers))
    # In reverse: end the imports, wait for the threads, and only then let others have the folder.
    stack.callback(store.close)
    stack.callback(threads.files.shutdown)
    stack.callback(threads.imports.shutdown)
    disk = NativeDisk(config.store_bytes)
    queue = IoQueue(_note_prediction)
    IO_QUEUED_BYTES.labels("ssd").set_function(lambda: queue.queued_bytes)
    IO_BYTES_PER_SECOND.labels("ssd").set_function(lambda: queue.bytes_per_s)
    opened = await finish(begin(threads.files, open_arena, _arena_settings(config), store.root))
    arena = None
    if opened is not None:
        stack.callback(opened.memory.close)
        reads = ThreadPoolExecutor(_READ_THREADS, "storemgr-reads")
        stack.callback(reads.shutdown)
        arena = _make_arena(config, opened, store, Filler(opened.memory, queue, reads), reads)
        if opened.is_adopted:
            arena.adopt(opened.found, catalog.all(), store.folder_of)
    library = Library(
        store,
        disk,
        Importer(store, disk, fetcher, hard_links=config.hard_links),
        catalog,
        threads=threads,
        limits=LibraryLimits(imports_max=config.imports_max, leases_max=config.leases_max),
        queue=queue,
        arena=arena,
    )
    stack.push_async_callback(library.close)
    return store, library


def _arena_settings(config: StoremgrConfig) -> ArenaSettings:
    return ArenaSettings(
        size_bytes=config.arena_bytes,
        folder=config.arena_dir,
        size_setting=config.setting("arena_bytes"),
        folder_setting=config.setting("arena_dir"),
    )


def _make_arena(
    config: StoremgrConfig, opened: OpenedArena, store: Store, filler: Filler, threads: Executor
) -> Arena:
    index = IndexFile(store.root, opened.memory)

    async def save(models: tuple[Indexed, ...]) -> None:
        await finish(begin(threads, index.write, models))

    return Arena(
        filler,
        NativeDisk(),
        chunk_bytes=chunk_bytes_for(opened.memory.size_bytes),
        policy=CostAware(),
        residency_s=config.arena_residency_s,
        save=save,
    )


def _note_prediction(predicted_s: float, took_s: float) -> None:
    error_s = abs(took_s - predicted_s)
    IO_PREDICTION_ERROR.labels("ssd").observe(error_s)
    IO_PREDICTION_SHARE.labels("ssd").observe(error_s / took_s if took_s else 0.0)


def _open_store(config: StoremgrConfig, peers: GrpcPeers) -> tuple[Store, Catalog, Fetcher]:
    setting = config.setting("data_dir")
    try:
        store = Store(config.data_dir)
        swept = store.sweep()
        fetcher = _fetcher(store, config, peers)
        fetcher.places.sweep()
        loader = probe_loader(store.root)
        found = store.scan()
    except StoreTakenError as error:
        raise ConfigError(setting, "another store manager uses this folder") from error
    except OSError as error:
        raise ConfigError(setting, f"cannot be used: {error.strerror}") from error
    UNUSABLE.set(found.unusable)
    LOADER.labels(loader.implementation, str(loader.direct_io).lower()).set(1)
    log.info(
        "store opened",
        models=len(found.manifests),
        unusable=found.unusable,
        leftovers_removed=swept,
        loader=loader.implementation,
        direct_io=loader.direct_io,
    )
    return store, Catalog(found.manifests), fetcher


def _fetcher(store: Store, config: StoremgrConfig, peers: GrpcPeers) -> Fetcher:
    backoff = Backoff(tries_max=config.source_tries, first_s=0.2, pause_s_max=10.0)
    rules = SourceRules(
        permits=parse_permits(config.sources),
        limits=FetchLimits(streams=config.source_streams, backoff=backoff),
        pace=Pace(config.source_bytes_per_s or None),
        stall_s=config.source_stall_s,
        find_peers=peers.find,
    )
    return Fetcher(rules, Workplaces(store.root / "fetches", keep_s=config.source_keep_s))


if __name__ == "__main__":
    sys.exit(run_service(StoremgrConfig, main, sys.argv[1:]))
