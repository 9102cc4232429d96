"""`brisk explain`: why a model started where it did, and how long each part took."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from rich.table import Table

from brisk_client.cli.options import AsJson, Endpoint
from brisk_client.cli.output import human_age, human_milliseconds, note, out, print_json, table
from brisk_client.explanation import Attempt, Candidate, Choice, Explanation
from brisk_client.results import Phase, StartReport
from brisk_client.sync import Client

_COLUMNS: Final = (
    "", "WAY", "DEVICE", "FROM", ">ROOM", ">QUEUE", ">TRANSFER", ">INIT", ">START", ">LOSS", "NOTE",
)  # fmt: skip
_CHOICES_MAX: Final = 5


def explain(
    name: Annotated[
        str,
        typer.Argument(metavar="ID", help="A request's id, a placement's or an instance's."),
    ],
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every decision, not the last few.")
    ] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Show why a model started where it did: what was compared, chosen, and what really happened.

    Times are milliseconds. START is the estimated time to an instance that serves; LOSS what others
    are expected to wait because of it; the least sum is chosen.

    For example:

      brisk explain 3f0c9a

      brisk explain i18f2a-12 --json
    """
    with Client(endpoint) as client:
        found = client.explain(name)
    if as_json:
        print_json(found)
        return
    console = out()
    console.print(
        f"{found.placement_id}: {found.deployment}, begun {human_age(found.began_at)} ago"
    )
    shown = found.choices if everything else found.choices[-_CHOICES_MAX:]
    if len(shown) < len(found.choices):
        note(f"{len(found.choices) - len(shown)} earlier decisions are left out; see --all")
    for choice in shown:
        console.print(f"\nafter {human_milliseconds(choice.at_s)}: {_verdict(choice)}")
        if choice.considered:
            console.print(_candidates(choice))
    if found.attempts:
        console.print("\nwhat happened")
        console.print(_attempts(found))
    if found.served:
        console.print("\nrequests")
        console.print(_served(found))


def _verdict(choice: Choice) -> str:
    chosen = choice.chosen
    if chosen is None:
        return "nothing was possible"
    return f"{chosen.way} on {_device(chosen)}, ready in {human_milliseconds(chosen.start_s)}"


def _candidates(choice: Choice) -> Table:
    made = table(*_COLUMNS)
    for each in choice.considered:
        made.add_row(
            "*" if each == choice.chosen else "",
            str(each.way),
            _device(each),
            str(each.source),
            *(human_milliseconds(part_s) for part_s in _parts_s(each)),
            each.refused or _victims(each),
        )
    return made


def _parts_s(each: Candidate) -> tuple[float, ...]:
    before_s = (each.room_s, each.queue_s, each.transfer_s, each.init_s)
    return (*before_s, each.start_s, each.loss_s)


def _attempts(found: Explanation) -> Table:
    made = table("INSTANCE", "DEVICE", "FROM", ">EXPECTED", ">TOOK", "PHASES (EXPECTED)")
    for each in found.attempts:
        source = str(each.expected.source if each.report is None else each.report.source)
        made.add_row(
            each.instance_id,
            _device(each.expected),
            source,
            human_milliseconds(each.expected.start_s),
            human_milliseconds(each.took_s),
            each.failure or _phases(each),
        )
    return made


def _phases(attempt: Attempt) -> str:
    """Return what the worker measured beside what was expected of it."""
    report, expected = attempt.report, attempt.expected
    if report is None:
        return ""
    fetched_s, loaded_s = report.duration_s(Phase.FETCH), report.duration_s(Phase.LOAD)
    moved_s = (fetched_s or 0.0) + (loaded_s or 0.0)
    parts = [
        f"transfer {human_milliseconds(moved_s)} "
        f"({human_milliseconds(expected.queue_s + expected.transfer_s)})"
    ]
    if (init_s := report.duration_s(Phase.INIT)) is not None:
        parts.append(f"init {human_milliseconds(init_s)} ({human_milliseconds(expected.init_s)})")
    return ", ".join(parts)


def _served(found: Explanation) -> Table:
    made = table("REQUEST", "START", ">WAITED", "PHASES")
    for each in found.served:
        made.add_row(
            each.request_id,
            "cold" if each.start.cold else "warm",
            human_milliseconds(each.start.total_s),
            _spans(each.start),
        )
    return made


def _spans(start: StartReport) -> str:
    return ", ".join(
        f"{entry.phase} {human_milliseconds(entry.duration_s)}" for entry in start.phases
    )


def _device(candidate: Candidate) -> str:
    return f"{candidate.node_id}/{candidate.worker_id}/{candidate.device_id}"


def _victims(candidate: Candidate) -> str:
    if not candidate.victims:
        return ""
    verb = "evicts" if candidate.way == "evict" else "needs"
    return f"{verb} {', '.join(candidate.victims)}"
