"""`python -m services.worker`: read the settings, wire the parts, serve."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import brisk_native
from brisk.worker.v1 import worker_service_pb2_grpc
from prometheus_client import REGISTRY

from services.common.channel import ChannelPool
from services.common.clock import wall_clock
from services.common.errors import InternalError, Reason
from services.common.keys import ServiceKind
from services.common.leader import LeaderLocator
from services.common.lifecycle import Ready, run_service, serve
from services.common.memory import memory_limit_bytes
from services.common.metrics import start_metrics
from services.common.names import new_id
from services.common.redis_client import connect_or_refuse
from services.common.registry import Registration, Registry, ServiceFacts
from services.common.server import INTERNAL_LIMITS, create_server
from services.worker.adapters import NodeStore, SchedulerReports
from services.worker.config import WorkerConfig
from services.worker.engine import DeviceEngine
from services.worker.instances import Instances
from services.worker.pool import export, open_pool, refuse_too_much
from services.worker.ports import ModelStarter, ModelStore
from services.worker.reports import Identity, StateSource, report_forever
from services.worker.residency import Ledger
from services.worker.service import SERVICE_NAME, WorkerServicer

START_THREADS: Final = 4  # each load uses two at a time
TEXT_THREADS: Final = 2
GRAMMAR_THREADS: Final = 2
ENGINE_END_S_MAX: Final = 10.0  # a step under way cannot be interrupted
WATCH_SHARE: Final = 0.25  # of the longest step: how often to look
CUT_OFF_SHARE: Final = 0.9  # of the drain; the rest lets the last answers leave

MakeStarter = Callable[[ModelStore, Executor, brisk_native.Pool | None], ModelStarter]


async def main(config: WorkerConfig) -> None:
    """Serve until told to stop."""
    refuse_too_much(config, memory_limit_bytes())
    worker_id = new_id("worker")
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
            setting=config.setting("listen"),
            advertise=config.advertise,
        )
        pool = open_pool(config.pool_bytes, setting=config.setting("pool_bytes"))
        if pool is not None:
            stack.callback(pool.close)
        stack.callback(REGISTRY.unregister, export(pool))
        make_starter = await asyncio.to_thread(warm_up, config)
        channels = ChannelPool()
        stack.push_async_callback(channels.close)
        store = NodeStore(Registry(redis), channels, node_id=config.node_id, holder=worker_id)
        engines = start_engines(config.budgets, stack)
        instances = Instances(
            ledger=Ledger(config.budgets),
            engines=engines,
            starter=make_starter(store, stack_executor(stack, START_THREADS, "start"), pool),
            text_executor=stack_executor(stack, TEXT_THREADS, "text"),
            grammar_executor=stack_executor(stack, GRAMMAR_THREADS, "grammar"),
            waiting_max=config.waiting_max,
        )
        stack.push_async_callback(instances.close)
        source = StateSource(
            Identity(worker_id=worker_id, node_id=config.node_id, address=server.address),
            instances,
        )
        worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(
            WorkerServicer(instances, source), server.server
        )
        facts = ServiceFacts(
            kind=ServiceKind.WORKER,
            service_id=worker_id,
            node_id=config.node_id,
            address=server.address,
            metrics_address=metrics.address,
            started_at=wall_clock(),
        )
        leader = SchedulerReports(LeaderLocator(redis), channels)
        await serve(
            server,
            Registration(redis, facts).run(),
            report_forever(source, instances.changed, leader),
            *(
                watch(engine, config.step_s_max, partial(instances.give_up, device_id))
                for device_id, engine in engines.items()
            ),
            announce_s=config.announce_s,
            drain_s=config.drain_s,
            before_drain=partial(
                instances.drain, config.announce_s + config.drain_s * CUT_OFF_SHARE
            ),
            ready=Ready(
                path=config.ready_file,
                service=config.service,
                service_id=worker_id,
                metrics_address=metrics.address,
            ),
        )


def warm_up(config: WorkerConfig) -> MakeStarter:
    """Import torch and transformers and return what needs them. Blocks for seconds.

    Sets the environment that they read when imported: nothing is ever fetched from a hub.
    """
    os.environ.update(
        {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    )
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    # Not at the top: a refused setting should be told at once, not after these imports.
    from services.worker.decoder import Decoders  # noqa: PLC0415
    from services.worker.preload import preload  # noqa: PLC0415
    from services.worker.start import Starter  # noqa: PLC0415

    preload(config.threads)
    decoders = Decoders(exact=config.exact, shares_prefixes=config.prefix_cache)
    return partial(Starter, decoders=decoders)


def start_engines(budgets: Mapping[str, int], stack: AsyncExitStack) -> dict[str, DeviceEngine]:
    """Return a running engine for each device; the stack ends them."""
    engines = {device_id: DeviceEngine(device_id) for device_id in budgets}
    for engine in engines.values():
        engine.start()
        stack.callback(engine.close, ENGINE_END_S_MAX)
    return engines


async def watch(engine: DeviceEngine, step_s_max: float, give_up: Callable[[], None]) -> None:
    """Raise what ended the engine's thread, or that a step does not end; else watch for ever.

    A step that hangs cannot be interrupted. So its sequences are told by `give_up` that they must
    go on elsewhere, and the worker leaves.
    """
    death = asyncio.wrap_future(engine.death)
    try:
        while not death.done():
            await asyncio.wait((death,), timeout=step_s_max * WATCH_SHARE)
            if engine.step_s > step_s_max:
                give_up()
                raise InternalError(
                    f"a decode step has not ended within {step_s_max:g} s",
                    reason=Reason.ENGINE_FAILED,
                )
        await death
    finally:
        death.cancel()


def stack_executor(stack: AsyncExitStack, threads: int, name: str) -> ThreadPoolExecutor:
    """Return an executor that the stack shuts down."""
    executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
    stack.callback(executor.shutdown, wait=False, cancel_futures=True)
    return executor


if __name__ == "__main__":
    sys.exit(run_service(WorkerConfig, main, sys.argv[1:]))
