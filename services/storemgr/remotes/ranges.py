"""Reads of a part of a file over HTTP, which is how all remote sources are read.

A read gets exactly the bytes asked for, of exactly the version that was listed, or it raises.
Redirects are followed as far as the operator's rules allow; credentials never go to another host.
"""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urljoin, urlsplit

from services.common.clock import wall_clock
from services.storemgr.ports import JobStoppedError
from services.storemgr.remotes.lines import Line, Lines
from services.storemgr.remotes.locations import HttpLocation
from services.storemgr.remotes.pace import Pace
from services.storemgr.remotes.refusals import (
    PassingError,
    changed,
    forbidden,
    not_found,
    unusable,
)

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_REDIRECTS_MAX: Final = 5
_HARMLESS: Final = ("Accept-Encoding", "User-Agent", "Range", "If-Match")  # for other hosts, too
_GONE: Final = (404, 410)
_FORBIDDEN: Final = (401, 403, 407)
_CHANGED: Final = (412, 416)
_PASSING: Final = (408, 425, 429)
_SERVERS: Final = 500  # from here on it is the server's fault
_OK, _PART = 200, 206
_SLICE_BYTES: Final = 256 << 10  # after so many, others may cut in: stop, stall, cap
_CAPPED_SLICES_PER_S: Final = 8
_SLICE_BYTES_MIN: Final = 4 << 10
_LOOK_S: Final = 0.1  # how soon a pause notices that the import was stopped
_PART_OF: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A file that can be read in parts, and which version of it."""

    what: str  # its name, for messages
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)  # credentials
    size_bytes: int
    etag: str | None
    advice: str  # what to do if it must not be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a server says of a file."""

    size_bytes: int
    etag: str | None


class RangeReader:
    """Reads parts. Its methods may be called by any thread; each try is one call."""

    def __init__(
        self,
        lines: Lines,
        *,
        pace: Pace,
        is_stopped: Callable[[], bool],
    ) -> None:
        self._lines = lines
        self._pace = pace
        self._is_stopped = is_stopped

    def read_into(self, target: Target, offset: int, view: memoryview) -> None:
        """Fill `view` with the target's bytes from `offset` on.

        Raises PassingError, BriskError for what another try cannot mend, and JobStoppedError.
        """
        last = offset + len(view) - 1
        headers = {**target.headers, "Range": f"bytes={offset}-{last}"}
        if target.etag is not None and not target.etag.startswith("W/"):
            headers["If-Match"] = target.etag
        with _Exchange(self, "GET", target.url, headers) as exchange:
            answer = exchange.answer
            _check_status(answer, target.what, target.advice)
            _check_part(answer, target, offset, len(view))
            exchange.receive(view)

    def facts(self, what: str, url: str, headers: Mapping[str, str], advice: str) -> Facts:
        """Return size and version of a file. Raises what `read_into` raises."""
        with _Exchange(self, "HEAD", url, headers) as exchange:
            answer = exchange.answer
            _check_status(answer, what, advice)
            length = answer.getheader("Content-Length") or ""
            if answer.status != _OK or not length.isdecimal() or len(length) > 18:  # noqa: PLR2004
                raise unusable(f"the source's server does not tell the size of {what}")
            return Facts(size_bytes=int(length), etag=answer.getheader("ETag"))

    def read_small(
        self, what: str, url: str, headers: Mapping[str, str], advice: str, *, bytes_max: int
    ) -> bytes:
        """Return all of a small file. Raises what `read_into` raises."""
        with _Exchange(self, "GET", url, headers) as exchange:
            answer = exchange.answer
            _check_status(answer, what, advice)
            if answer.length is not None and answer.length <= bytes_max:
                content = bytearray(answer.length)
                exchange.receive(memoryview(content))
                return bytes(content)
            found = exchange.receive_up_to(bytes_max + 1)
            if len(found) > bytes_max:
                raise unusable(f"{what} has more than {bytes_max} bytes")
            return found

    def pause_s(self, size_bytes: int) -> float:
        """Return how long the cap on bandwidth asks to wait after `size_bytes` more."""
        return self._pace.pause_s(size_bytes)

    def rest(self, pause_s: float) -> None:
        """Wait so long. Raises JobStoppedError as soon as the import is stopped."""
        self.check_stopped()
        while pause_s > 0:
            time.sleep(min(pause_s, _LOOK_S))
            pause_s -= _LOOK_S
            self.check_stopped()

    @property
    def slice_bytes(self) -> int:
        """How much to receive at a time."""
        cap = self._pace.bytes_per_s
        if cap is None:
            return _SLICE_BYTES
        return max(_SLICE_BYTES_MIN, min(_SLICE_BYTES, cap // _CAPPED_SLICES_PER_S))

    def check_stopped(self) -> None:
        """Raise JobStoppedError if the import was stopped."""
        if self._is_stopped():
            raise JobStoppedError

    def take(self, place: HttpLocation) -> Line:
        """Return a line to the place."""
        return self._lines.take(place)

    def give_back(self, line: Line, *, is_reusable: bool) -> None:
        """Return a line."""
        self._lines.give_back(line, is_reusable=is_reusable)


class _Exchange:
    """One request and its answer, redirects included. For use as a context."""

    def __init__(
        self, reader: RangeReader, method: str, url: str, headers: Mapping[str, str]
    ) -> None:
        self._reader = reader
        self._method = method
        self._url = url
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "brisk", **headers}
        self._line: Line | None = None
        self._whole = False  # the answer was read to its end
        self.answer: http.client.HTTPResponse

    def __enter__(self) -> _Exchange:
        try:
            self._follow()
        except BaseException:
            self._hang_up()
            raise
        return self

    def _follow(self) -> None:
        """Ask, and ask again wherever the answer sends us."""
        first = place_of(self._url)
        for _ in range(_REDIRECTS_MAX + 1):
            place = place_of(self._url)
            if (place.scheme, place.host, place.port) != (first.scheme, first.host, first.port):
                self._headers = {
                    name: value for name, value in self._headers.items() if name in _HARMLESS
                }
            if first.scheme == "https" and place.scheme == "http":
                raise unusable("the source redirects from https to http, which is not followed")
            self.answer = self._ask(place)
            if self.answer.status not in _REDIRECTS:
                return
            target = self.answer.getheader("Location") or ""
            self._hang_up()
            self._url = urljoin(self._url, target)
        raise unusable(f"the source redirects more than {_REDIRECTS_MAX} times")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._method == "HEAD":
            self._whole = not self.answer.read()  # nothing, but only then it counts as read
        self._hang_up(is_reusable=kind is None and self._whole and not self.answer.will_close)

    def receive(self, view: memoryview) -> None:
        """Fill `view` with the answer's body, which must have just that length."""
        done, step = 0, self._reader.slice_bytes
        with self._faults():
            while done < len(view):
                got = self.answer.readinto(view[done : done + step])
                if not got and self._line is not None and self._line.is_cut:
                    raise PassingError("the source stalled")
                if not got:
                    raise PassingError(f"the answer ended after {done} of {len(view)} bytes")
                done += got
                self._rest(got)
            self._whole = not self.answer.read(1)

    def receive_up_to(self, bytes_max: int) -> bytes:
        """Return the answer's body, or its beginning if it has more than `bytes_max` bytes."""
        found = bytearray()
        with self._faults():
            while len(found) < bytes_max and (part := self.answer.read1(_SLICE_BYTES)):
                found += part
                self._rest(len(part))
        return bytes(found)

    def _rest(self, got: int) -> None:
        """Note that something came, and wait if that was too fast."""
        pause_s = self._reader.pause_s(got)
        if self._line is not None:
            self._line.alive(pause_s)
        self._reader.rest(pause_s)

    def _ask(self, place: HttpLocation) -> http.client.HTTPResponse:
        self._line = self._reader.take(place)
        parts = urlsplit(self._url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        with self._faults():
            self._line.open()
            self._line.connection.request(self._method, path, headers=self._headers)
            return self._line.connection.getresponse()

    def _faults(self) -> _Faults:
        return _Faults(self._reader, self._line)

    def _hang_up(self, *, is_reusable: bool = False) -> None:
        if self._line is not None:
            if not is_reusable and hasattr(self, "answer"):
                self.answer.close()
            self._reader.give_back(self._line, is_reusable=is_reusable)
            self._line = None


class _Faults:
    """Turns what a connection raises into our own."""

    def __init__(self, reader: RangeReader, line: Line | None) -> None:
        self._reader = reader
        self._line = line

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if not isinstance(error, (OSError, http.client.HTTPException, ValueError)):
            return
        self._reader.check_stopped()
        if isinstance(error, TimeoutError) or (self._line is not None and self._line.is_cut):
            raise PassingError("the source stalled") from error
        raise PassingError(f"the connection failed: {_words(error)}") from error


def place_of(url: str) -> HttpLocation:
    """Return host and port of a URL. Raises BriskError (SOURCE_UNUSABLE) if it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise unusable("the source redirects to something that is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise unusable("the source redirects to something that is no web address")
    usual = {"http": 80, "https": 443}[parts.scheme]
    return HttpLocation(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or usual,
        path=parts.path or "/",
        weights=None,
    )


def _check_status(answer: http.client.HTTPResponse, what: str, advice: str) -> None:
    status = answer.status
    if status in (_OK, _PART):
        return
    if status in _GONE:
        raise not_found(what)
    if status in _FORBIDDEN:
        raise forbidden(what, f"it answered {status}: {advice}")
    if status in _CHANGED:
        raise changed(what)
    if status in _PASSING or status >= _SERVERS:
        raise PassingError(f"the source answered {status}", retry_after_s=_retry_after_s(answer))
    raise unusable(f"the source answered {status} for {what}")


def _check_part(answer: http.client.HTTPResponse, target: Target, offset: int, length: int) -> None:
    """Refuse an answer that is not the part that was asked for, of the version that was."""
    etag = answer.getheader("ETag")
    if target.etag is not None and etag is not None and etag != target.etag:
        raise changed(target.what)
    if answer.status == _OK:
        if offset != 0 or length != target.size_bytes:
            raise unusable("the source's server does not serve ranges of files, which are needed")
    else:
        part = _PART_OF.fullmatch(answer.getheader("Content-Range") or "")
        if part is None:
            raise PassingError("the source answered with an unknown part of the file")
        first, last, total = map(int, part.groups())
        if total != target.size_bytes:
            raise changed(target.what)
        if (first, last) != (offset, offset + length - 1):
            raise PassingError("the source answered with another part than was asked for")
    promised = answer.getheader("Content-Length")
    if promised is not None and promised != str(length):
        raise PassingError(f"the source promised {promised} bytes, {length} were asked for")


def _retry_after_s(answer: http.client.HTTPResponse) -> float | None:
    given = answer.getheader("Retry-After")
    if given is None:
        return None
    if given.isdecimal():
        return float(given[:6])
    try:
        return max(0.0, (parsedate_to_datetime(given) - wall_clock()).total_seconds())
    except (TypeError, ValueError):
        return None


def _words(error: BaseException) -> str:
    """Return what happened without addresses or paths."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
