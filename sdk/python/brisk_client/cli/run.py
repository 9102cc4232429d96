"""`brisk run`: one prompt, one answer."""

from __future__ import annotations

import sys
from typing import Annotated, Final

import typer

from brisk_client.cli.answer import end_line, headline, show, timings
from brisk_client.cli.options import (
    AsJson,
    Endpoint,
    MaxTokens,
    Model,
    Seed,
    Stop,
    Temperature,
    TimeoutS,
    Timings,
    TopK,
    TopP,
)
from brisk_client.cli.output import err, print_json
from brisk_client.requests import SamplingOptions
from brisk_client.sync import Client

PROMPT_CHARACTERS_MAX: Final = 1024 * 1024


def run(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What to continue. Left out or -: standard input."),
    ] = None,
    *,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on past the model's end token.")
    ] = False,
    show_timings: Timings = False,
    endpoint: Endpoint = None,
    timeout: TimeoutS = None,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt and show the answer as it comes. Ctrl-C cancels the request.

    For example:

      brisk run tiny "Once upon a time" -n 64 --temperature 0

      brisk run tiny --timings < prompt.txt
    """
    text = _prompt(prompt)
    sampling = sampling_options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop,
    )
    if ignore_eos:
        sampling["ignore_eos"] = True
    with Client(endpoint) as client:
        if as_json:
            print_json(client.generate(model, text, timeout_s=timeout, **sampling).result())
            return
        stream = client.generate(model, text, timeout_s=timeout, want_progress=True, **sampling)
        answer = show(stream)
        end_line()
    if show_timings:
        console = err()
        console.print(f"\n{headline(answer)}", style="dim")
        console.print(timings(answer))


def sampling_options(
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    stop: list[str] | None = None,
) -> SamplingOptions:
    """Return the options that were given; the server knows the defaults of the others."""
    options = SamplingOptions()
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    if top_p is not None:
        options["top_p"] = top_p
    if top_k is not None:
        options["top_k"] = top_k
    if seed is not None:
        options["seed"] = seed
    if stop:
        options["stop"] = stop
    return options


def _prompt(given: str | None) -> str:
    """Return the prompt from the argument or from standard input."""
    if given is not None and given != "-":
        return given
    if sys.stdin.isatty():
        raise typer.BadParameter("give a PROMPT, or pipe one in")
    text = sys.stdin.read(PROMPT_CHARACTERS_MAX + 1)
    if len(text) > PROMPT_CHARACTERS_MAX:
        raise typer.BadParameter(f"the prompt has more than {PROMPT_CHARACTERS_MAX:,} characters")
    return text
