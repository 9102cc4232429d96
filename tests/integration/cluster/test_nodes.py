"""Several nodes on one machine: each has its own store, and models go where there is room."""

from pathlib import Path

from brisk_client import AsyncClient
from brisk_client.local.spec import NodeSpec
from brisk_client.local.sync import LocalCluster

from tests.integration.cluster.conftest import until
from tests.models import DEMO_MODEL

NODES = (
    NodeSpec(node_id="first", devices=("cpu:0=20MiB",)),
    NodeSpec(node_id="second", devices=("cpu:0=20MiB",)),
)


async def test_a_model_is_served_on_every_node_that_has_room(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, nodes=NODES) as cluster:
        assert [state.name for state in cluster.services if state.kind == "storemgr"] == [
            "storemgr-0",
            "storemgr-1",
        ]
        async with AsyncClient(cluster.router_address, timeout_s=60) as client:
            answers = []

            async def both_known() -> bool:
                return sum(len(node.workers) for node in (await client.nodes()).nodes) == 2

            await until(both_known, "the scheduler knows both workers")
            for name in ("one", "two"):
                await client.deploy(name, source=DEMO_MODEL)
                answer = client.generate(name, "You may copy", max_tokens=8, temperature=0)
                answers.append(await answer.text())
            view = await client.nodes()
            instances = await client.instances()
    assert answers[0] == answers[1]
    assert [node.node_id for node in view.nodes] == ["first", "second"]
    assert len({node.storemgr_address for node in view.nodes}) == 2
    assert len({instance.worker_id for instance in instances}) == 2  # one does not fit twice
    for node in ("first", "second"):
        assert list((tmp_path / "nodes" / node / "store" / "models").iterdir())
    assert cluster.traces.leftovers() == []
