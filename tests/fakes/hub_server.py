"""A hub that speaks as huggingface.co does: a repository's commit and files, and their bytes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Has one repository, with the files of `folder` at one commit."""

    def __init__(self, repository: str, folder: Path, *, token: str | None = None) -> None:
        self.repository = repository
        self.folder = folder
        self.token = token  # what it wants to see; None: nothing
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        """Return what HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        """Serve for the block."""
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).lstrip("/")
            hub.asked.append(path)
            if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._answer(401, b"gated")
            elif path == f"api/models/{hub.repository}/revision/main":
                self._answer(200, json.dumps(self._commit()).encode())
            elif path.startswith(f"{hub.repository}/resolve/{COMMIT}/"):
                self._file(hub.folder / path.rpartition("/")[2])
            else:
                self._answer(404, b"not found")

        def _commit(self) -> dict[str, object]:
            files = [
                {"rfilename": path.name, "size": path.stat().st_size}
                for path in sorted(hub.folder.iterdir())
            ]
            return {"id": hub.repository, "sha": COMMIT, "siblings": files}

        def _file(self, path: Path) -> None:
            content = path.read_bytes()
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
