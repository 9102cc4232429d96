"""Bars with their spread, as a picture beside a page of docs/benchmarks/."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BAR_INCHES, WIDTH_INCHES = 0.28, 8.0
OURS, LIMIT, OTHERS = "#c2410c", "#111827", "#94a3b8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One loader's speeds in GB/s."""

    label: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median."""
        return statistics.median(self.values)

    @property
    def colour(self) -> str:
        """Return ours, the limit's or the peers' colour."""
        if self.label.startswith("brisk"):
            return OURS
        return LIMIT if self.label.startswith("fio") else OTHERS


def draw(path: Path, title: str, bars: Sequence[Bar]) -> None:
    """Write an SVG: bars at the medians, whiskers from the least to the most.

    Raises ImportError without matplotlib, which the extra `bench` brings.
    """
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "brisk"  # equal figures make equal files
    pyplot = importlib.import_module("matplotlib.pyplot")
    size = (WIDTH_INCHES, BAR_INCHES * (len(bars) + 4))
    figure, axis = pyplot.subplots(figsize=size, layout="constrained")
    ordered = sorted(bars, key=lambda bar: bar.median)
    below = [bar.median - min(bar.values) for bar in ordered]
    above = [max(bar.values) - bar.median for bar in ordered]
    axis.barh(
        [bar.label for bar in ordered],
        [bar.median for bar in ordered],
        xerr=[below, above],
        color=[bar.colour for bar in ordered],
        ecolor="#475569",
        capsize=2,
    )
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel("GB/s, median and range")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
