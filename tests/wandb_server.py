"""As much of a W&B server as `wandb sweep`, `wandb agent`, online runs and a scheduler ask for, on loopback.

Of what the server does with the runs that a scheduler puts into a sweep's queue, W&B's client shows the questions and
the form of the answers; docs/log.md says what of it is our assumption.
"""

import contextlib
import gzip
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.wandb_answers import Answers, Json, Run

__all__ = ["Run", "Server", "wandb_server"]
KEY = "0123456789" * 4


class Server(Answers):
    """One sweep's controller, and a store of runs and views. Suggestions come from the test, or from a scheduler."""

    def __init__(self, suggest: Callable[[list[Run]], Json | None] = lambda runs: None):
        super().__init__()
        self.suggest = suggest
        self.unknown: list[str] = []
        self.lock = threading.RLock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                name, file = self._stored()
                with owner.lock:
                    self._send(owner.runs[name].files[file] if name in owner.runs else b"{}")

            def do_PUT(self) -> None:
                name, file = self._stored()
                body = self._body()
                with owner.lock:
                    if name in owner.runs:
                        owner.runs[name].files[file] = body
                self._answer({})

            def _stored(self) -> tuple[str, str]:
                """Run and file of an address that `Server.address` made."""
                _, _, name, *rest = [*urllib.parse.unquote(self.path).split("/"), "", ""]
                return name, "/".join(rest).strip("/")

            def do_POST(self) -> None:
                body = json.loads(self._body() or b"{}")
                stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
                with owner.lock:
                    if stream:
                        self._answer(owner.stream(stream[1], body))
                    elif self.path.startswith("/graphql"):
                        self._answer(owner.answer(body["query"], body.get("variables") or {}))
                    else:
                        self._answer({})

            def _body(self) -> bytes:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

            def _answer(self, value: Json) -> None:
                self._send(json.dumps(value).encode())

            def _send(self, data: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *arguments: None  # type: ignore[method-assign]  # clients drop connections
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def environment(self) -> dict[str, str]:
        """What points a client here."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ENTITY": "us",
            "WANDB_MODE": "online",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        }

    def sweep_runs(self) -> list[Run]:
        return [run for run in self.runs.values() if run.sweep]

    def heartbeat(self, agent: str, alive: Json) -> list[Json]:
        """Commands for an agent: stop what should stop; when it has nothing to do, the next trial or the end."""
        assert self.sweep is not None
        mine = self.agents[agent]
        mine &= {name for name in mine if alive.get(name) or not (self.runs[name].complete or name in self.queue)}
        if mine:
            return [{"type": "stop", "run_id": name} for name in mine if self.runs[name].stop]
        if self.is_scheduled:
            return self.from_queue(mine)
        params = self.suggest(self.sweep_runs())
        if params is None:
            self.sweep["state"] = "FINISHED"
            return [{"type": "exit"}]
        return [self.hand_out(self.new_run(params), mine)]

    def from_queue(self, mine: set[str]) -> list[Json]:
        """What an idle agent gets of a scheduled sweep: the oldest run; nothing while there is none; then the end."""
        assert self.sweep is not None
        if self.sweep["state"] != "RUNNING":
            return [{"type": "exit"}]
        return [self.hand_out(self.queue.pop(0), mine)] if self.queue else []

    def hand_out(self, name: str, mine: set[str]) -> Json:
        mine.add(name)
        run = self.runs[name]
        arguments = {key: {"value": value} for key, value in run.params.items()}
        kind = "resume" if run.preempting else "run"
        run.preempting = False
        return {"type": kind, "run_id": name, "program": None, "args": arguments, "logs": []}

    def lose(self, agent: str) -> None:
        """Take note that an agent is gone, as W&B does of runs that are silent for minutes: they have crashed."""
        for name in self.agents[agent]:
            self.runs[name].crashed = not self.runs[name].complete

    def stream(self, name: str, body: Json) -> Json:
        run = self.runs[name]
        for file, chunk in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if file.endswith((".jsonl", ".json")) else []
            if file == "wandb-history.jsonl":
                run.history[chunk.get("offset", 0) :] = lines
            elif file == "wandb-summary.json" and lines:
                run.summary = lines[-1]
        run.preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            run.complete, run.exitcode = True, body.get("exitcode")
            if run.preempting and run.exitcode and self.is_scheduled:  # W&B hands it out again
                run.complete = run.begun = False
                self.queue.insert(0, name)
        return {"exitcode": None, "limits": {}, "stopped": run.stop}

    def answer(self, query: str, given: Json) -> Json:
        try:
            return {"data": self.graphql(query, given)}
        except ValueError as error:
            return {"data": None, "errors": [{"message": str(error), "path": []}]}

    def graphql(self, query: str, given: Json) -> Json:
        name = (re.search(r"\b(?:query|mutation)\s+(\w+)", query) or ["", ""])[1]
        answer = getattr(self, f"_{name}", None)
        if answer is not None:
            return dict(answer(given))
        if "viewer" in query or "serverInfo" in query:
            return self._Viewer(given)
        if "__type" in query or "__schema" in query:
            return {}
        self.unknown.append(name)
        return {}


@contextlib.contextmanager
def wandb_server(suggest: Callable[[list[Run]], Json | None] = lambda runs: None) -> Iterator[Server]:
    """Serve while the block runs."""
    server = Server(suggest)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
