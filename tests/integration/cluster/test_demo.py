"""The demo streams from a cold and a warm model, and leaves nothing, however it ends."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.integration.cluster.conftest import until
from tests.integration.cluster.programs import ROOT, ended, environment, processes_of, start

DEMO = ROOT / "scripts" / "demo.py"
NOTHING = "nothing left behind"
# How far the demo has come when it is interrupted: what its output or its folder then has.
MOMENTS = {
    "redis": "run/redis.sock",
    "services": "logs/worker.log",
    "deployed": "store/models",
}


async def test_the_demo_shows_a_cold_and_a_warm_start(tmp_path: Path) -> None:
    demo = await ended(await start(DEMO, env=environment(tmp_path)))
    assert demo.code == 0, demo.out + demo.err
    for text in ("cold start", "warm start", "LlamaForCausalLM", "1.5M parameters"):
        assert text in demo.out
    phases = [line.split()[0] for line in demo.out.splitlines() if line]
    for phase in ("queue", "placement", "fetch", "load", "init"):
        assert phases.count(phase) >= 1
    assert phases.count("first_token") == 2
    assert NOTHING in " ".join(demo.out.split())
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("moment", sorted(MOMENTS))
async def test_ctrl_c_at_any_moment_leaves_nothing(tmp_path: Path, moment: str) -> None:
    process = await start(DEMO, env=environment(tmp_path))

    async def has_come() -> bool:
        return (tmp_path / MOMENTS[moment]).exists()

    await until(has_come, f"the demo comes to {moment}", within_s=120)
    process.send_signal(signal.SIGINT)
    demo = await ended(process)
    assert demo.code == 130, demo.out + demo.err
    assert NOTHING in " ".join(demo.out.split())
    assert "Traceback" not in demo.err
    assert processes_of(tmp_path) == []


async def test_two_ctrl_c_end_it_at_once_and_still_leave_nothing(tmp_path: Path) -> None:
    process = await start(DEMO, env=environment(tmp_path))

    async def has_come() -> bool:
        return (tmp_path / "logs" / "worker.log").exists()

    await until(has_come, "the demo starts its services", within_s=120)
    process.send_signal(signal.SIGINT)
    await asyncio.wait({asyncio.create_task(process.wait())}, timeout=0.1)
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
    demo = await ended(process)
    # The second one may meet a program that has just finished, which it then kills: 130 to a shell.
    assert demo.code in {130, -signal.SIGINT}, demo.out + demo.err
    assert processes_of(tmp_path) == []
