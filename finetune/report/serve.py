"""The report on loopback, made anew as trials end. Imports no torch."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from finetune.errors import Refused
from finetune.records.layout import PREDICTIONS, RECORD
from finetune.records.read import read_all


def state_of(folders: Sequence[Path]) -> str:
    """Changes when a trial ends, or the winner does."""
    files = [file for folder in folders for name in (RECORD, PREDICTIONS) for file in folder.glob(f"trials/*/{name}")]
    seen = sorted((str(file), file.stat().st_mtime_ns) for file in files if file.is_file())
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def server(folders: Sequence[Path], port: int = 0) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, not yet running; port 0 takes a free one.

    It answers `/` with the page, `/state` with what `state_of` says, and nothing else; and only to requests that name
    this machine as their host, so no other site's page can read it through the browser.

    Raises:
        Refused: the port is taken.
    """
    from finetune.report.page.page import page

    made: dict[str, bytes] = {}
    lock = threading.Lock()

    def current() -> bytes:
        with lock:  # a page takes seconds to make; two browsers share one
            state = state_of(folders)
            if state not in made:
                made.clear()
                made[state] = page(folders, read_all(folders), live=state).encode(errors="replace")
            return made[state]

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), _handler(current, lambda: state_of(folders).encode()))
    except OSError as error:
        raise Refused(f"--port {port} cannot be used ({error.strerror}); give another, or 0 for a free one") from error


def _handler(current: Callable[[], bytes], state: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in ("127.0.0.1", "localhost"):
                self.send_error(403)
            elif self.path == "/":
                self._answer(current(), "text/html; charset=utf-8")
            elif self.path == "/state":
                self._answer(state(), "text/plain")
            else:
                self.send_error(404)

        def _answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Stay quiet: the terminal shows the verdict."""

    return Handler
