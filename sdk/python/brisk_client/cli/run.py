"""`brisk run`: one prompt, one answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final, cast

import typer

from brisk_client.cli.answer import end_line, headline, show, timings
from brisk_client.cli.options import (
    AsJson,
    Endpoint,
    FrequencyPenalty,
    MaxTokens,
    MinP,
    Model,
    PresencePenalty,
    RepetitionPenalty,
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
    min_p: MinP = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on past the model's end token.")
    ] = False,
    min_tokens: Annotated[
        int | None, typer.Option("--min-tokens", help="Tokens to produce at least (0).")
    ] = None,
    top_logprobs: Annotated[
        int | None,
        typer.Option("--top-logprobs", help="With --json, tell how likely this many were (none)."),
    ] = None,
    json_schema: Annotated[
        Path | None,
        typer.Option("--json-schema", metavar="FILE", help="Answer with JSON of this schema."),
    ] = None,
    regex: Annotated[
        str | None, typer.Option("--regex", help="Answer with a match of this expression.")
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option("--grammar", metavar="FILE", help="Answer by this grammar (Lark or GBNF)."),
    ] = None,
    show_timings: Timings = False,
    endpoint: Endpoint = None,
    timeout: TimeoutS = None,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt and show the answer as it comes. Ctrl-C cancels the request.

    For example:

      brisk run tiny "Once upon a time" -n 64 --temperature 0

      brisk run tiny --timings < prompt.txt

      brisk run tiny "A user as JSON:" --json-schema user.json
    """
    text = _prompt(prompt)
    sampling = sampling_options(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos or None,
        top_logprobs=top_logprobs,
        json_schema=_content(json_schema, "--json-schema"),
        regex=regex,
        grammar=_content(grammar, "--grammar"),
    )
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


def sampling_options(**given: float | str | list[str] | None) -> SamplingOptions:
    """Return the options that were given; the server knows the defaults of the others."""
    return cast(
        SamplingOptions, {name: value for name, value in given.items() if value is not None}
    )


def _content(file: Path | None, option: str) -> str | None:
    """Return what is in a file that an option names. The server knows how long it may be."""
    if file is None:
        return None
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(PROMPT_CHARACTERS_MAX)
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise typer.BadParameter(f"{file} cannot be read: {problem}", param_hint=option) from error


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
