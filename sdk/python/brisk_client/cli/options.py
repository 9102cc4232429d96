"""Options that several commands share, and the texts they parse."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Final

import typer

from brisk_client.local.paths import DATA_FOLDER_VARIABLE, DataFolder

_DURATION: Final = re.compile(r"^(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?"
                              r"(?:(\d+(?:\.\d+)?)s?)?$")  # fmt: skip
_PARTS_S: Final = (86_400, 3_600, 60, 1)

Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        "-e",
        metavar="HOST:PORT",
        envvar="BRISK_ENDPOINT",
        help="The router. Left out: the cluster that `brisk up` runs here, else 127.0.0.1:7480.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TimeoutS = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Give up after this long."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        envvar=DATA_FOLDER_VARIABLE,
        help="The cluster's data folder. Left out: $XDG_DATA_HOME/brisk or ~/.local/share/brisk.",
    ),
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The deployment's name.")]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", "-n", help="Tokens to produce at most (256).")
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", "-t", help="0 takes the most likely token (1)."),
]
TopP = Annotated[float | None, typer.Option("--top-p", help="Probability to choose from (1).")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Tokens to choose from (all).")]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", help="Least probability, as a share of the most likely token's (0)."),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option("--presence-penalty", help="-2 to 2, for tokens that the answer has (0)."),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option("--frequency-penalty", help="-2 to 2, for each time that it has them (0)."),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option("--repetition-penalty", help="A factor for tokens of prompt and answer (1)."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same answer.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End here. May be repeated.")
]
Timings = Annotated[
    bool,
    typer.Option("--timings", "--verbose", "-v", help="Show where the time went, afterwards."),
]


def folder_of(data_dir: Path | None) -> DataFolder:
    """Return the data folder that an option or the environment names."""
    return DataFolder.default() if data_dir is None else DataFolder.at(data_dir)


def parse_keep_alive(text: str) -> float:
    """Return seconds for "5m", "1h30m", "90", "0" or "forever". Raises BadParameter."""
    if text.strip().lower() in {"forever", "inf", "infinite"}:
        return math.inf
    match = _DURATION.match(text.strip().lower())
    if match is None or not any(match.groups()):
        raise typer.BadParameter(
            f"{text!r} is not a length of time such as 30s, 5m, 1h30m, 0 or forever"
        )
    return sum(
        float(part) * size_s
        for part, size_s in zip(match.groups(), _PARTS_S, strict=True)
        if part is not None
    )
