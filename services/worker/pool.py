"""Memory that models are read into, faulted in once when the worker starts.

Faulting fresh memory in is slower than the disk, so a pool is what makes a load as fast as reading.
A load that does not fit into what is free of it goes to fresh memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import brisk_native
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.clock import monotonic_s
from services.common.errors import ConfigError
from services.common.log import get_logger
from services.worker.config import WorkerConfig

log = get_logger(__name__)


def refuse_too_much(config: WorkerConfig, limit_bytes: int) -> None:
    """Refuse a pool that does not fit beside what instances may reserve.

    Weights that find no room in the pool go to fresh memory, so in the worst case both are used up.
    Raises ConfigError naming both settings.
    """
    reserved_bytes = sum(config.budgets.values())
    pool, devices = config.setting("pool_bytes"), config.setting("devices")
    if config.pool_bytes > reserved_bytes:
        raise ConfigError(
            pool,
            f"{config.pool_bytes} bytes are more than {devices} lets instances reserve, "
            f"{reserved_bytes}: no model could use the rest",
        )
    if config.pool_bytes and config.pool_bytes + reserved_bytes > limit_bytes:
        raise ConfigError(
            pool,
            f"{config.pool_bytes} bytes and the {reserved_bytes} of {devices} are more than the "
            f"memory that this process may use, {limit_bytes}: make one of them smaller",
        )


def open_pool(size_bytes: int, *, setting: str) -> brisk_native.Pool | None:
    """Return a pool that is being faulted in in the background; None for 0 bytes.

    Raises ConfigError naming `setting` if the machine does not have the memory.
    """
    if not size_bytes:
        return None
    try:
        pool = brisk_native.Pool(size_bytes)
    except (MemoryError, OSError) as error:
        raise ConfigError(setting, f"{size_bytes} bytes of memory cannot be had") from error
    threading.Thread(target=_tell, args=(pool,), name="pool", daemon=True).start()
    return pool


def _tell(pool: brisk_native.Pool) -> None:
    """Log what the pool became, once it is faulted in."""
    began_s = monotonic_s()
    try:
        pool.wait_populated()
        facts = {"bytes": pool.size_bytes, "kind": pool.kind, "is_huge": pool.huge_pages}
    except ValueError:  # closed meanwhile
        return
    seconds = monotonic_s() - began_s
    if facts["is_huge"]:
        log.info("pool ready", seconds=seconds, **facts)
    else:
        log.warning("pool ready, in small pages: loads are slower", seconds=seconds, **facts)


class LoadMetrics(Collector):
    """What the loader itself counts, for Prometheus."""

    def __init__(self, pool: brisk_native.Pool | None) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """Yield the loader's counters and the state of the pool."""
        counters = brisk_native.counters()
        read = CounterMetricFamily(
            "brisk_load_bytes", "Bytes read from files, by way.", labels=["mode"]
        )
        read.add_metric(["direct"], counters.direct_bytes)
        read.add_metric(["buffered"], counters.buffered_bytes)
        yield read
        pages = CounterMetricFamily(
            "brisk_load_page_bytes", "Bytes read into memory, by kind of pages.", labels=["pages"]
        )
        pages.add_metric(["huge"], counters.huge_page_bytes)
        pages.add_metric(["small"], counters.small_page_bytes)
        yield pages
        yield CounterMetricFamily(
            "brisk_load_verified_bytes",
            "Bytes whose checksum was compared while reading.",
            value=counters.verified_bytes,
        )
        if self._pool is not None and not self._pool.closed:
            pool = GaugeMetricFamily("brisk_pool_bytes", "The pool's memory.", labels=["state"])
            free = self._pool.free_bytes
            pool.add_metric(["free"], free)
            pool.add_metric(["used"], self._pool.size_bytes - free)
            yield pool


def export(pool: brisk_native.Pool | None) -> LoadMetrics:
    """Let Prometheus see what the loader counts; unregister what this returns in the end."""
    metrics = LoadMetrics(pool)
    REGISTRY.register(metrics)
    return metrics
