"""Carry a sequence's tokens from its device's thread to the event loop, bounded.

The thread counts what it has put, the loop what it has taken; each writes its own counter only, so
no lock is needed. A client that stops reading fills its buffer, and then only its own sequence
pauses.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from services.common.errors import BriskError
from services.worker.text import Decoded

BUFFERED_TOKENS_MAX: Final = 64


class TokenStream:
    """A TokenSink whose other end is awaited."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        wake: Callable[[], None],
        ended: Callable[[], None],
        buffered_max: int = BUFFERED_TOKENS_MAX,
    ) -> None:
        """`wake` is called when there is room again, `ended` once; both on the loop."""
        self._loop = loop
        self._wake = wake
        self._ended = ended
        self._buffered_max = buffered_max
        self._put = 0  # written by the device's thread
        self._taken = 0  # written by the loop
        self._arrived: deque[Decoded] = deque()
        self._error: BriskError | None = None
        self._is_over = False
        self._changed = asyncio.Event()

    def has_room(self) -> bool:
        """Return whether another token may be put. Device's thread."""
        return self._put - self._taken < self._buffered_max

    def put(self, decoded: Decoded) -> None:
        """Hand a token to the loop. Device's thread."""
        self._put += 1
        self._post(self._on_token, decoded)

    def end(self, error: BriskError | None, last: Decoded | None = None) -> None:
        """Say that nothing comes after `last`. Device's thread, once."""
        self._put += last is not None
        self._post(self._on_end, error, last)

    async def take(self) -> tuple[Decoded, ...]:
        """Return all tokens that have come, at least one, or none at the end.

        Raises the error that ended the sequence, once all tokens before it were taken.
        """
        while not self._arrived:
            if self._is_over:
                if self._error is not None:
                    raise self._error
                return ()
            self._changed.clear()
            await self._changed.wait()
        tokens = tuple(self._arrived)
        self._arrived.clear()
        was_full = not self.has_room()
        self._taken += len(tokens)
        if was_full:
            self._wake()
        return tokens

    def fail(self, error: BriskError | None) -> None:
        """End the stream from the loop: for sequences that never reached their device."""
        self._on_end(error, None)

    def _post(self, call: Callable[..., None], *args: object) -> None:
        # The loop is closed only after a drain that ran out of time: nobody is listening.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _on_token(self, decoded: Decoded) -> None:
        self._arrived.append(decoded)
        self._changed.set()

    def _on_end(self, error: BriskError | None, last: Decoded | None) -> None:
        if self._is_over:
            return
        if last is not None:
            self._arrived.append(last)
        self._is_over = True
        self._error = error
        self._changed.set()
        self._ended()
