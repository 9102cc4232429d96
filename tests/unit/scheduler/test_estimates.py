"""Estimates come near the truth after a few outcomes, and one bad outcome hardly moves them."""

import math
from random import Random

import pytest

from services.common.model import ModelRef, Tier
from services.common.names import parse_model_name
from services.scheduler.estimates import Estimates, Figure, Priors

SSD, DRAM = Tier.SSD, Tier.DRAM


def ref(name: str) -> ModelRef:
    return ModelRef(name=parse_model_name(name), revision="1")


class Node:
    """A node whose loads take `overhead + bytes / bandwidth`, give or take some noise."""

    def __init__(self, name: str, bytes_per_s: float, overhead_s: float = 0.05) -> None:
        self.name = name
        self.bytes_per_s = bytes_per_s
        self.overhead_s = overhead_s
        self.random = Random(name)  # noqa: S311 - a game

    def took_s(self, size_bytes: int) -> float:
        exact_s = self.overhead_s + size_bytes / self.bytes_per_s
        return exact_s * math.exp(self.random.gauss(0.0, 0.02))


def teach(estimates: Estimates, node: Node, name: str, size_bytes: int, times: int = 1) -> None:
    for _ in range(times):
        took_s = node.took_s(size_bytes)
        estimates.learn_load(node.name, SSD, ref(name), size_bytes, transfer_s=took_s, init_s=0.3)


def expect_s(estimates: Estimates, node: Node, name: str, size_bytes: int) -> float:
    return estimates.transfer_s(node.name, SSD, ref(name), size_bytes)


def test_before_anything_is_measured_the_priors_hold() -> None:
    estimates = Estimates(Priors(ssd_bytes_per_s=1e9, overhead_s=0.5, init_s=0.25))
    assert estimates.transfer_s("n1", SSD, ref("a"), 10**9) == pytest.approx(1.5)
    assert estimates.init_s(ref("a")) == pytest.approx(0.25)
    assert estimates.transfer_s("n1", DRAM, ref("a"), 10**9) < 1.0


def test_a_model_that_was_loaded_is_predicted_within_five_percent() -> None:
    estimates, node = Estimates(), Node("n1", 0.4e9)
    teach(estimates, node, "a", 10**9, times=6)
    assert expect_s(estimates, node, "a", 10**9) == pytest.approx(0.05 + 2.5, rel=0.05)
    assert estimates.init_s(ref("a")) == pytest.approx(0.3, rel=0.01)


def test_small_models_teach_the_overhead_and_large_ones_the_bandwidth() -> None:
    estimates, node = Estimates(), Node("n1", 0.5e9, overhead_s=0.2)
    for _ in range(12):
        teach(estimates, node, "small", 6 * 10**6)
        teach(estimates, node, "large", 2 * 10**9)
    # A model of another size, never seen.
    assert expect_s(estimates, node, "new", 5 * 10**8) == pytest.approx(1.2, rel=0.15)


def test_one_small_model_says_little_about_a_large_one() -> None:
    estimates, node = Estimates(), Node("n1", 1.5e9, overhead_s=0.3)
    teach(estimates, node, "small", 6 * 10**6, times=5)
    # At the small one's own pace, 20 MB/s, it would be 130 s.
    assert expect_s(estimates, node, "large", 26 * 10**8) < 10.0


def test_nodes_differ_and_one_that_has_told_nothing_is_average() -> None:
    estimates = Estimates()
    fast, slow = Node("fast", 2e9), Node("slow", 0.5e9)
    for _ in range(10):
        teach(estimates, fast, "a", 10**9)
        teach(estimates, slow, "a", 10**9)
    times = [expect_s(estimates, node, "b", 10**9) for node in (fast, Node("unknown", 1e9), slow)]
    assert times == sorted(times)
    assert times[0] == pytest.approx(fast.took_s(10**9), rel=0.25)
    assert times[2] == pytest.approx(slow.took_s(10**9), rel=0.25)
    assert estimates.slowness("slow", SSD) > 0 > estimates.slowness("fast", SSD)
    assert estimates.slowness("unknown", SSD) == 0


def test_an_outlier_moves_the_estimate_by_less_than_a_tenth() -> None:
    estimates, node = Estimates(), Node("n1", 1e9)
    teach(estimates, node, "a", 10**9, times=15)
    before_s = expect_s(estimates, node, "a", 10**9)
    estimates.learn_load("n1", SSD, ref("a"), 10**9, transfer_s=60.0, init_s=30.0)
    assert expect_s(estimates, node, "a", 10**9) == pytest.approx(before_s, rel=0.1)
    assert estimates.init_s(ref("a")) == pytest.approx(0.3, rel=0.1)


def test_a_lasting_change_wins() -> None:
    estimates, node = Estimates(), Node("n1", 2e9)
    teach(estimates, node, "a", 10**9, times=15)
    node.bytes_per_s = 0.4e9
    teach(estimates, node, "a", 10**9, times=25)
    assert expect_s(estimates, node, "a", 10**9) == pytest.approx(2.55, rel=0.1)


def test_a_load_among_others_teaches_less() -> None:
    alone, among = Estimates(), Estimates()
    for estimates, is_alone in ((alone, True), (among, False)):
        for took_s in (1.0, 1.0, 1.0, 2.0):
            estimates.learn_load(
                "n1", SSD, ref("a"), 10**9, transfer_s=took_s, init_s=None, is_alone=is_alone
            )
    priors_s = Estimates().transfer_s("n1", SSD, ref("a"), 10**9)
    moved = [abs(each.transfer_s("n1", SSD, ref("a"), 10**9) - priors_s) for each in (alone, among)]
    assert moved[1] < moved[0]


def test_a_figure_is_never_moved_past_an_outcome() -> None:
    figure = Figure(0.0)
    for _ in range(50):
        figure.learn(1.0 - figure.log)
        assert figure.log <= 1.0
    assert figure.log == pytest.approx(1.0)


def test_nonsense_durations_do_not_break_the_estimates() -> None:
    estimates = Estimates()
    for took_s in (0.0, -5.0, 1e12, 0.0):
        estimates.learn_load("n1", SSD, ref("a"), 10**9, transfer_s=took_s, init_s=took_s)
        estimates.learn_busy("a", took_s)
        estimates.learn_unload(took_s)
    for figure in (
        estimates.transfer_s("n1", SSD, ref("a"), 10**9),
        estimates.init_s(ref("a")),
        estimates.busy_s("a"),
        estimates.unload_s(),
    ):
        assert math.isfinite(figure)
        assert figure > 0.0


def test_what_goes_on_for_longer_than_usual_goes_on_for_longer_still() -> None:
    estimates = Estimates()
    for _ in range(10):
        estimates.learn_busy("a", 4.0)
    assert estimates.left_s("a", 1.0) == pytest.approx(3.0, rel=0.05)
    assert estimates.left_s("a", 100.0) == pytest.approx(50.0)
    assert estimates.left_s("a", 4.0) > 0.0


def test_what_is_gone_is_forgotten() -> None:
    estimates, node = Estimates(), Node("n1", 0.1e9)
    teach(estimates, node, "a", 10**9, times=5)
    estimates.learn_busy("alpha", 100.0)
    estimates.forget_node("n1")
    estimates.forget_model("alpha", ref("a"))
    assert estimates.busy_s("alpha") == Priors().busy_s
    assert estimates.slowness("n1", SSD) == 0
