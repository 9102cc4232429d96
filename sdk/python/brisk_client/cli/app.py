"""The commands put together, and the one place where failures become exit codes."""

from __future__ import annotations

import json
import os
import sys
from typing import Final

import typer

from brisk_client.cli import chat, explain, grpc_tool, models, nodes, run, store, up, view
from brisk_client.cli.exits import HELP, ExitCode, Failure, failure
from brisk_client.cli.output import complain
from brisk_client.errors import BriskError
from brisk_client.local.errors import LocalClusterError

_EXAMPLES: Final = """
Examples:

  brisk up --detach

  brisk deploy tiny --from ./my-hugging-face-folder

  brisk run tiny "Once upon a time"

  brisk down
"""

app = typer.Typer(
    name="brisk",
    help="Brisk: any of hundreds of models answers within seconds, though few fit in memory.\n\n"
    + _EXAMPLES,
    epilog=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up", rich_help_panel="This machine")(up.up)
app.command("down", rich_help_panel="This machine")(up.down)
app.command("deploy", rich_help_panel="Models")(models.deploy)
app.command("import", rich_help_panel="Models")(models.import_model)
app.command("ls", rich_help_panel="Models")(models.ls)
app.command("rm", rich_help_panel="Models")(models.rm)
app.command("run", rich_help_panel="Answers")(run.run)
app.command("chat", rich_help_panel="Answers")(chat.chat)
app.command("ps", rich_help_panel="Cluster")(view.ps)
app.command("nodes", rich_help_panel="Cluster")(nodes.nodes)
app.command("top", rich_help_panel="Cluster")(nodes.top)
app.command("explain", rich_help_panel="Cluster")(explain.explain)
app.command("status", rich_help_panel="Cluster")(view.status)
app.command("version", rich_help_panel="Cluster")(view.version)
app.add_typer(store.app, name="store", rich_help_panel="Cluster")
app.add_typer(grpc_tool.app, name="grpc", rich_help_panel="Cluster")


def execute(arguments: list[str]) -> int:
    """Run one command and return its exit code. Never raises, never prints a traceback."""
    try:
        app(arguments, prog_name="brisk")
    except SystemExit as ended:
        return _exit_code(ended)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except OSError as error:
        return _report_system(error, as_json="--json" in arguments)
    except BriskError as error:
        return _report(failure(error), error.reason, as_json="--json" in arguments)
    except LocalClusterError as error:
        ended_badly = Failure(code=ExitCode.FAILED, message=str(error), hint=None)
        return _report(ended_badly, type(error).__name__, as_json="--json" in arguments)
    return ExitCode.OK


def _report(failed: Failure, reason: str, *, as_json: bool) -> int:
    if as_json:
        text = {"error": {"reason": reason, "message": failed.message, "hint": failed.hint}}
        typer.echo(json.dumps(text), err=True)
        return failed.code
    complain(failed.message, failed.hint)
    return failed.code


def _report_system(error: OSError, *, as_json: bool) -> int:
    """Tell what the system refused; without a file's name it was our output."""
    # Nowhere with what is still buffered: Python would complain once more at its exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return ExitCode.FAILED  # the reader has left, as `head` does
    why = error.strerror or str(error)
    where = "the output cannot be written" if error.filename is None else str(error.filename)
    ended_badly = Failure(code=ExitCode.FAILED, message=f"{where}: {why}", hint=None)
    return _report(ended_badly, type(error).__name__, as_json=as_json)


def _exit_code(ended: SystemExit) -> int:
    if isinstance(ended.code, int):
        return ended.code
    return ExitCode.OK if ended.code is None else ExitCode.FAILED
