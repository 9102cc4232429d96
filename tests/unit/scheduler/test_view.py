"""Operators see what the core knows, sorted, with what is left of each keep-alive."""

from services.common.placement import InstanceState
from services.scheduler import view
from services.scheduler.ports import Peer
from tests.unit.scheduler.dialogue import Dialogue


def played(*lines: str) -> Dialogue:
    dialogue = Dialogue()
    for line in lines:
        dialogue.answer(line)
    return dialogue


BUSY = (
    "0.0 learned",
    "0.0 worker w2 cpu:0=100",
    "0.0 worker w1 cpu:0=100",
    "0.0 put beta 40 keep_alive=10",
    "0.0 put alpha 40 keep_alive=ever",
    "0.0 put zero 40",
    "1.0 acquire r1 beta",
    "1.0 acquire r2 alpha",
    "2.0 loaded i1-1",
    "2.0 release r1",
    "4.0 worker w1 | i1-1 idle 2",
    "4.0 worker w2 | i1-2 loading",
)


def test_deployments_are_sorted_and_counted() -> None:
    state = played(*BUSY).state
    assert [
        (each.deployment.name, each.instances_ready, each.instances_loading)
        for each in view.deployments(state)
    ] == [("alpha", 0, 1), ("beta", 1, 0), ("zero", 0, 0)]


def test_an_idle_instance_has_time_left() -> None:
    state = played(*BUSY).state
    loading, idle = view.instances(state, now_s=5.0)
    assert (loading.deployment, loading.state) == ("alpha", InstanceState.LOADING)
    assert loading.idle_s is None
    assert loading.keep_alive_left_s is None
    assert (idle.deployment, idle.device_id, idle.worker_id) == ("beta", "cpu:0", "w1")
    assert idle.idle_s == 3.0
    assert idle.keep_alive_left_s == 7.0
    assert view.instances(state, now_s=50.0, of="beta")[0].keep_alive_left_s == 0.0
    assert view.instances(state, now_s=5.0, of="zero") == ()


def test_what_is_busy_or_kept_for_ever_has_no_end() -> None:
    state = played(
        *BUSY,
        "4.0 loaded i1-2",
        "4.0 release r2",
        "5.0 worker w1 | i1-1 busy 2+1",
        "5.0 worker w2 | i1-2 idle 1",
    ).state
    ever, busy = view.instances(state, now_s=5.0)
    assert ever.idle_s == 1.0
    assert ever.keep_alive_left_s is None
    assert (busy.running, busy.waiting) == (2, 1)
    assert busy.idle_s is None
    assert busy.keep_alive_left_s is None


def test_nodes_are_those_with_a_store_or_a_worker() -> None:
    state = played(*BUSY).state
    stores = (
        Peer(service_id="s1", node_id="n1", address="n1:1"),
        Peer(service_id="s3", node_id="n3", address="n3:1"),
    )
    shown = [
        (node.node_id, node.storemgr_address, [each.worker_id for each in node.workers])
        for node in view.nodes(state, stores, 0.0)
    ]
    assert shown == [("n1", "n1:1", ["w1"]), ("n2", "", ["w2"]), ("n3", "n3:1", [])]
