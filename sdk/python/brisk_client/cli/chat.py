"""`brisk chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Final

import typer

from brisk_client.cli.answer import end_line, headline, show
from brisk_client.cli.exits import failure
from brisk_client.cli.options import (
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
from brisk_client.cli.output import complain, note
from brisk_client.cli.run import sampling_options
from brisk_client.errors import BriskError, InvalidRequestError, NotFoundError
from brisk_client.requests import SamplingOptions
from brisk_client.results import ChatMessage
from brisk_client.sync import Client

TURNS_MAX: Final = 1_024
_HELP: Final = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def chat(
    model: Model,
    *,
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="Instructions for the model.")
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    show_timings: Timings = False,
    endpoint: Endpoint = None,
    timeout: TimeoutS = None,
) -> None:
    """Hold a conversation with a model that has a chat template.

    Ctrl-C stops an answer and keeps what came of it; Ctrl-D or /exit leaves. Examples:

      brisk chat assistant --system "Answer in one sentence."

      echo "What is a lease?" | brisk chat assistant
    """
    sampling = sampling_options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop,
    )
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415  (gives `input` a history; not everywhere)
    opening = [ChatMessage(role="system", content=system)] if system else []
    with Client(endpoint) as client:
        talk = Conversation(client, model, opening, sampling, timeout_s=timeout)
        if sys.stdin.isatty():
            note(_HELP)
        while (said := _read()) is not None:
            match said.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/clear":
                    talk.clear()
                case "/help" | "/?":
                    note(_HELP)
                case _:
                    talk.say(said, show_timings=show_timings)


class Conversation:
    """The turns so far; the model gets all of them each time."""

    def __init__(
        self,
        client: Client,
        model: str,
        opening: list[ChatMessage],
        sampling: SamplingOptions,
        *,
        timeout_s: float | None,
    ) -> None:
        self._client = client
        self._model = model
        self._opening = opening
        self._turns: list[ChatMessage] = []
        self._sampling = sampling
        self._timeout_s = timeout_s

    def clear(self) -> None:
        """Forget the conversation but not the opening."""
        self._turns.clear()

    def say(self, text: str, *, show_timings: bool) -> None:
        """Send a turn and show the answer. A failure for now is told; the turn can be said again.

        Raises BriskError if the conversation can never work: no such model, no chat template.
        """
        turn = ChatMessage(role="user", content=text)
        heard: list[str] = []
        stream = self._client.chat(
            self._model,
            [*self._opening, *self._turns, turn],
            timeout_s=self._timeout_s,
            want_progress=True,
            **self._sampling,
        )
        try:
            answer = show(stream, heard=heard)
        except KeyboardInterrupt:
            end_line()
            note("(stopped)")
        except (InvalidRequestError, NotFoundError):
            raise
        except BriskError as error:
            end_line()
            told = failure(error)
            complain(told.message, told.hint)
            return
        else:
            end_line()
            if show_timings:
                note(headline(answer))
        said = ChatMessage(role="assistant", content="".join(heard))
        self._turns = [*self._turns, turn, said][-TURNS_MAX:]


def _read() -> str | None:
    """Return the next line that the user types, or None at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        if sys.stdin.isatty():
            end_line()
        return None
