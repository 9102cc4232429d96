"""`brisk grpc`: list, describe and call any service through server reflection."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from brisk_client.cli.options import AsJson
from brisk_client.cli.output import out, print_json, write_text
from brisk_client.endpoint import resolve_endpoint
from brisk_client.errors import InvalidRequestError
from brisk_client.proto_text import spelled
from brisk_client.reflection import ReflectionClient

DATA_CHARACTERS_MAX: Final = 4 * 1024 * 1024
TIMEOUT_S_DEFAULT: Final = 60.0

app = typer.Typer(
    help="List, describe and call any service by reflection, as grpcurl does.",
    no_args_is_help=True,
)

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        "--endpoint",
        "-a",
        metavar="HOST:PORT",
        envvar="BRISK_ENDPOINT",
        help="Any gRPC server; `brisk status` shows those of a local cluster. Left out: the "
        "router.",
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Give up after this long.")
]


@app.command("list")
def list_services(
    service: Annotated[
        str | None, typer.Argument(metavar="SERVICE", help="List its methods instead.")
    ] = None,
    *,
    address: Address = None,
    timeout: Timeout = TIMEOUT_S_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List the services of a server, or the methods of one service.

    For example:

      brisk grpc list

      brisk grpc list brisk.worker.v1.WorkerService --address 127.0.0.1:40123
    """
    with ReflectionClient(resolve_endpoint(address), timeout_s=timeout) as client:
        names = client.methods(service) if service else client.services()
    if as_json:
        print_json(names)
        return
    for name in names:
        out().print(name)


@app.command()
def describe(
    symbol: Annotated[
        str, typer.Argument(metavar="SYMBOL", help="A service, method, message or enum.")
    ],
    *,
    address: Address = None,
    timeout: Timeout = TIMEOUT_S_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Show the definition of a service, method, message or enum.

    For example:

      brisk grpc describe brisk.inference.v1.InferenceService

      brisk grpc describe brisk.common.v1.SamplingParams
    """
    with ReflectionClient(resolve_endpoint(address), timeout_s=timeout) as client:
        text = spelled(client.find(symbol))
    if as_json:
        print_json({"symbol": symbol, "definition": text})
        return
    out().print(text)


@app.command()
def call(
    method: Annotated[
        str, typer.Argument(metavar="SERVICE/METHOD", help="SERVICE.METHOD will do, too.")
    ],
    *,
    data: Annotated[
        str,
        typer.Option(
            "--data", "-d", metavar="JSON", help="The request; @- reads it from standard input."
        ),
    ] = "{}",
    address: Address = None,
    timeout: Timeout = TIMEOUT_S_DEFAULT,
) -> None:
    """Call a method and print each reply as JSON, as it comes. Ctrl-C cancels the call.

    For example:

      brisk grpc call brisk.control.v1.ControlService/ListNodes

      brisk grpc call brisk.inference.v1.InferenceService/Generate
      -d '{"model": "tiny", "prompt": {"text": "Once"}, "sampling": {"maxTokens": 8}}'
    """
    with ReflectionClient(resolve_endpoint(address), timeout_s=timeout) as client:
        for reply in client.call(method, _data(data)):
            write_text(reply + "\n")


def _data(given: str) -> str:
    """Return the request's JSON text: as given, from a file, or from standard input."""
    if not given.startswith("@"):
        return given
    if given == "@-":
        text = sys.stdin.read(DATA_CHARACTERS_MAX + 1)
    else:
        try:
            with Path(given[1:]).open(encoding="utf-8") as file:
                text = file.read(DATA_CHARACTERS_MAX + 1)
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidRequestError(f"cannot read {given[1:]}: {exc}") from exc
    if len(text) > DATA_CHARACTERS_MAX:
        raise InvalidRequestError(f"the request has more than {DATA_CHARACTERS_MAX:,} characters")
    return text
