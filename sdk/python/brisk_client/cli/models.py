"""`brisk deploy`, `import`, `ls` and `rm`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final, cast

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from brisk_client import requests
from brisk_client.cli.options import AsJson, Endpoint, TimeoutS, parse_keep_alive
from brisk_client.cli.output import (
    err,
    human_age,
    human_bytes,
    human_count,
    human_seconds,
    note,
    out,
    print_json,
    table,
)
from brisk_client.errors import BriskError
from brisk_client.requests import ScaleOptions
from brisk_client.results import Deployment, ImportProgress
from brisk_client.sync import Client

_FIELD: Final = "source_path"  # the wire's name, in the store manager's messages
Source = Annotated[
    str | None,  # not Path, to which an empty text is the present folder
    typer.Option(
        "--from",
        "-f",
        metavar="SOURCE",
        help="What to import first: a Hugging Face folder on the cluster's machine, or a URL "
        "(s3://, hf://, https://, http://, file://).",
    ),
]

AsIs = Annotated[
    bool,
    typer.Option("--as-is", help="Keep the weights' files instead of one laid out to load."),
]


def deploy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What requests will call it.")],
    *,
    source: Source = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME[@REVISION]", help="An imported model instead."),
    ] = None,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="How long an idle instance stays: 5m, 0, forever or learned."
        ),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Sequences decoded side by side (4).")] = None,
    context: Annotated[
        int | None, typer.Option(help="Longest sequence in tokens, prompt included.")
    ] = None,
    min_replicas: Annotated[
        int | None, typer.Option("--min", help="Instances that are always there (0).")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option("--max", help="Instances at most (1).")
    ] = None,
    target: Annotated[
        int | None,
        typer.Option("--target", help="Sequences to an instance before another starts (slots)."),
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Requests that may wait for a start (no limit of its own).")
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(help="-10..10: a step counts like having come a turn earlier (0)."),
    ] = None,
    as_is: AsIs = False,
    endpoint: Endpoint = None,
    timeout: TimeoutS = None,
    as_json: AsJson = False,
) -> None:
    """Make a model available under a name; it loads when the first request comes.

    Deploying a name again replaces it. Examples:

      brisk deploy tiny --from ./models/tiny --keep-alive 10m

      brisk deploy tiny --from s3://models/tiny

      brisk deploy tiny-long --model tiny --context 8192 --slots 1

      brisk deploy busy --model tiny --min 1 --max 4 --keep-alive learned
    """
    if (source is None) == (model is None):
        raise typer.BadParameter("give either --from SOURCE or --model NAME")
    if as_is and source is None:
        raise typer.BadParameter("--as-is is for what --from imports")
    _refuse_empty(source)
    model_name, _, revision = (model or "").partition("@")
    scale = {
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "target_concurrency": target,
        "max_queue": max_queue,
        "priority": priority,
    }
    is_learned = keep_alive is not None and keep_alive.strip().lower() == "learned"
    if is_learned:
        scale["learned_keep_alive"] = True
    with Client(endpoint) as client, _naming(source), import_bar() as on_progress:
        deployed = client.deploy(
            name,
            source=source,
            model=model_name or None,
            revision=revision or None,
            keep_alive_s=None if is_learned or keep_alive is None else parse_keep_alive(keep_alive),
            slots=slots,
            context_tokens_max=context,
            as_is=as_is,
            on_progress=on_progress,
            timeout_s=timeout,
            **cast("ScaleOptions", {key: each for key, each in scale.items() if each is not None}),
        )
    if as_json:
        print_json(deployed)
        return
    out().print(
        f"{deployed.name} is deployed: {deployed.model.architecture}, "
        f"{human_count(deployed.model.parameters)} parameters, "
        f"{human_bytes(deployed.device_bytes)} on a device"
    )
    note(f'try: brisk run {deployed.name} "Once upon a time"')


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A Hugging Face folder on that machine, or a URL "
            "(s3://, hf://, https://, http://, file://).",
        ),
    ],
    *,
    name: Annotated[
        str | None, typer.Option(help="The model's name. Left out: the source's.")
    ] = None,
    as_is: AsIs = False,
    endpoint: Endpoint = None,
    timeout: TimeoutS = None,
    as_json: AsJson = False,
) -> None:
    """Bring a Hugging Face folder or repository into the store without deploying it.

    A fetch that was interrupted goes on where it ended. For example:

      brisk import ./models/tiny

      brisk import hf://facebook/opt-125m

      brisk import s3://models/opt-125m --name opt

      brisk import ./models/tiny --name base/tiny --json
    """
    _refuse_empty(source)
    with Client(endpoint) as client, _naming(source), import_bar() as on_progress:
        model = client.import_model(
            source, name=name, as_is=as_is, on_progress=on_progress, timeout_s=timeout
        )
    if as_json:
        print_json(model)
        return
    out().print(
        f"{model.name} is imported at revision {model.revision}: {model.architecture}, "
        f"{human_count(model.parameters)} parameters, {human_bytes(model.weight_bytes)}"
    )


def ls(*, endpoint: Endpoint = None, as_json: AsJson = False) -> None:
    """List the deployments, those at zero included.

    For example:

      brisk ls

      brisk ls --json | jq '.[].name'
    """
    with Client(endpoint) as client:
        deployments = client.list_models()
    if as_json:
        print_json(deployments)
        return
    if not deployments:
        note("nothing is deployed; `brisk deploy NAME --from FOLDER` changes that")
        return
    made = table(
        "NAME", "ARCHITECTURE", ">PARAMS", ">SIZE", ">CONTEXT", "KEEP", "INSTANCES", "SINCE"
    )
    for deployed in deployments:
        made.add_row(
            deployed.name,
            deployed.model.architecture,
            human_count(deployed.model.parameters),
            human_bytes(deployed.model.weight_bytes),
            str(deployed.context_tokens_max or "-"),
            "learned" if deployed.learned_keep_alive else human_seconds(deployed.keep_alive_s),
            _instances(deployed),
            human_age(deployed.created_at),
        )
    out().print(made)


def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="What to remove.")],
    *,
    keep_files: Annotated[
        bool, typer.Option("--keep-files", help="Keep the model's files in the store.")
    ] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Remove deployments; answers under way end well first.

    The model's files in the store go too, unless another deployment uses them or --keep-files
    is given.

    For example:

      brisk rm tiny

      brisk rm tiny --keep-files
    """
    with Client(endpoint) as client:
        for name in names:
            client.delete(name, keep_files=keep_files)
            if not as_json:
                out().print(f"{name} is removed")
    if as_json:
        print_json({"removed": names})


def _instances(deployed: Deployment) -> str:
    if deployed.instances_loading:
        return f"{deployed.instances_ready} ready, {deployed.instances_loading} loading"
    return f"{deployed.instances_ready} ready" if deployed.instances_ready else "at zero"


def _refuse_empty(source: str | None) -> None:
    if source is not None and not source.strip():
        raise typer.BadParameter("the SOURCE to import is empty")


@contextmanager
def _naming(source: str | None) -> Iterator[None]:
    """Let a refusal name the folder that was given, where the service names its own field."""
    try:
        yield
    except BriskError as error:
        if source is None or _FIELD not in error.message:
            raise
        folder = requests.source_path(source)
        message = error.message.replace(_FIELD, folder)
        if error.reason == "SOURCE_NOT_FOUND" and not requests.is_url(source):
            message = f"there is no folder {folder} on the cluster's machine"
        raise type(error)(
            message,
            reason=error.reason,
            retry_after_s=error.retry_after_s,
            metadata=error.metadata,
        ) from error


@contextmanager
def import_bar(verb: str = "importing") -> Iterator[Callable[[ImportProgress], None]]:
    """Show a bar on a terminal, and nothing elsewhere."""
    console = err()
    progress = Progress(
        TextColumn("{task.fields[doing]} {task.fields[file]}"),
        BarColumn(bar_width=30),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task("import", total=None, file="", doing=verb, left="", visible=False)

        def show(event: ImportProgress) -> None:
            progress.update(
                task,
                completed=event.bytes_done,
                total=event.bytes_total or None,
                file=event.file,
                doing=f"fetching from {event.origin}" if event.origin else verb,
                left="" if event.left_s is None else f"{human_seconds(event.left_s)} left",
                visible=True,
            )

        yield show
