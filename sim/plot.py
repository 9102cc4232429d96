"""The picture beside a page: p99 of the time to the first token, by policy and workload."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sim.runner import Result

WIDTH_INCHES: Final = 10.0
ROW_INCHES: Final = 2.2
COLUMNS: Final = 2
COLOURS: Final = {
    "brisk": "#c2410c",
    "serverlessllm": "#1d4ed8",
    "preempt": "#7c3aed",
    "locality": "#64748b",
    "random": "#cbd5e1",
}


def draw(path: Path, title: str, cells: Sequence[Sequence[Result]]) -> bool:
    """Write an SVG, a panel for each cluster; return False without matplotlib (extra `bench`)."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "brisk"  # equal figures make equal files
    pyplot = importlib.import_module("matplotlib.pyplot")
    groups: dict[str, list[Sequence[Result]]] = {}
    for cell in cells:
        groups.setdefault(cell[0].scenario.group, []).append(cell)
    rows = -(-len(groups) // COLUMNS)
    figure, axes = pyplot.subplots(
        rows,
        COLUMNS,
        figsize=(WIDTH_INCHES, ROW_INCHES * rows + 0.6),
        layout="constrained",
        squeeze=False,
    )
    panels = [panel for row in axes for panel in row]
    for panel, (group, members) in zip(panels, groups.items(), strict=False):
        _panel(panel, group, members)
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(COLOURS), frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def _panel(panel: Any, group: str, cells: Sequence[Sequence[Result]]) -> None:
    names = [cell[0].scenario.name for cell in cells]
    for policy, colour in COLOURS.items():
        values = [
            next((each.outcome.quantile_s(0.99) for each in cell if each.policy == policy), None)
            for cell in cells
        ]
        if any(value is not None for value in values):
            panel.plot(names, values, marker="o", markersize=3, color=colour, label=policy)
    panel.set_yscale("log")
    panel.set_title(group, loc="left", fontsize=9)
    panel.set_ylabel("p99 s", fontsize=8)
    panel.tick_params(axis="x", labelrotation=60, labelsize=6)
    panel.tick_params(axis="y", labelsize=7)
