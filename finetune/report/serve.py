"""The report on this machine's loopback, made anew as trials end. Imports no torch."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from finetune.errors import Refused
from finetune.records.layout import PREDICTIONS, RECORD, TRIALS
from finetune.records.read import read_all


def state_of(folders: Sequence[Path]) -> str:
    """A text that changes when a trial ends, or when the winner does."""
    files = [
        file
        for folder in folders
        for name in (RECORD, PREDICTIONS)
        for file in (folder / TRIALS).glob(f"*/{name}")
        if file.is_file()
    ]
    times = sorted((str(file), file.stat().st_mtime_ns) for file in files)
    return hashlib.sha256(repr(times).encode()).hexdigest()[:16]


def server(folders: Sequence[Path], port: int = 0) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, not yet running; port 0 takes a free one.

    It answers `/` with the page, `/state` with what `state_of` says, and nothing else; and only to requests that name
    this machine as their host, so no other site's page can read it through the browser.

    Raises:
        Refused: the port is taken.
    """
    handler = _handler(_LatestPage(folders).read, lambda: state_of(folders).encode())
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise Refused(f"--port {port} cannot be used ({error.strerror}); give another, or 0 for a free one") from error


class _LatestPage:
    """The page of the records as they are now, made once for each state of theirs."""

    def __init__(self, folders: Sequence[Path]):
        self._folders = folders
        self._lock = threading.Lock()
        self._state = ""
        self._page = b""

    def read(self) -> bytes:
        from finetune.report.page.page import page

        with self._lock:  # a page takes seconds to make; two browsers share one
            state = state_of(self._folders)
            if state != self._state:
                text = page(self._folders, read_all(self._folders), live=state)
                self._page, self._state = text.encode(errors="replace"), state
            return self._page


def _handler(page: Callable[[], bytes], state: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    """The class that answers requests; `http.server` makes an object of it for each."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page of another site can make the browser ask here, but under that site's name.
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in ("127.0.0.1", "localhost"):
                self.send_error(403)
            elif self.path == "/":
                self._answer(page(), "text/html; charset=utf-8")
            elif self.path == "/state":
                self._answer(state(), "text/plain")
            else:
                self.send_error(404)

        def _answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Stay quiet: the terminal shows the verdict."""

    return Handler
