"""A seed gives the same run to the byte, in any process, whatever its hash seed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.metrics import outcome
from sim.runner import NAMES, play
from sim.scenarios import Scenario
from sim.workload import Kind, Workload
from tests.unit.sim.small import SHORT, setup

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from sim.metrics import bytes_moved, line
from sim.runner import NAMES, play
from tests.unit.sim.test_repeats import scenario

for policy in NAMES:
    world, _ = play(scenario(), policy, 7)
    sys.stdout.writelines([policy, "\\n", *(line(each) for each in world.requests)])
    print(world.agenda.done, world.migrations, bytes_moved(world.stores))
"""


def scenario() -> Scenario:
    return Scenario(
        group="test",
        name="test",
        setup=setup(*"abcdefgh"),
        workload=Workload(kind=Kind.FUNCTIONS, rate=1.5, cv=4.0, duration_s=200.0, lengths=SHORT),
        warm_up_s=0.0,
        load=0.5,
    )


def printed(hash_seed: str) -> bytes:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
    ).stdout


def test_two_processes_with_different_hash_seeds_print_the_same_bytes() -> None:
    first, second = printed("1"), printed("2")
    assert first.count(b"\n") > 5 * 150
    assert all(f"{name}\n".encode() in first for name in NAMES)
    assert first == second


@pytest.mark.parametrize("policy", ["random", "brisk"])
def test_another_seed_is_another_run(policy: str) -> None:
    models = scenario().setup.models
    digests = {outcome(play(scenario(), policy, seed)[0], models, 0.0).digest for seed in (1, 2, 1)}
    assert len(digests) == 2
