"""As much of a W&B server as `wandb sweep`, `wandb agent` and online runs ask for, on loopback."""

import contextlib
import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

KEY = "0123456789" * 4
Json = dict[str, Any]


@dataclass
class Run:
    """What the server knows of a run."""

    name: str
    params: Json
    sweep: str | None = None
    group: str | None = None
    config: Json = field(default_factory=dict)
    history: list[Json] = field(default_factory=list)
    summary: Json = field(default_factory=dict)
    exitcode: int | None = None
    complete: bool = False
    preempting: bool = False
    stop: bool = False

    def settings(self) -> Json:
        """The config as a person sees it."""
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}


class Server:
    """One sweep's controller, and a store of runs and views. Suggestions come from the test."""

    def __init__(self, suggest: Callable[[list[Run]], Json | None] = lambda runs: None):
        self.suggest = suggest
        self.runs: dict[str, Run] = {}
        self.views: dict[str, Json] = {}
        self.sweep: Json | None = None
        self.agents: dict[str, set[str]] = {}
        self.unknown: list[str] = []
        self.lock = threading.RLock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._answer({})

            def do_PUT(self) -> None:
                self._body()
                self._answer({})

            def do_POST(self) -> None:
                body = json.loads(self._body() or b"{}")
                stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
                with owner.lock:
                    if stream:
                        self._answer(owner.stream(stream[1], body))
                    elif self.path.startswith("/graphql"):
                        self._answer({"data": owner.graphql(body["query"], body.get("variables") or {})})
                    else:
                        self._answer({})

            def _body(self) -> bytes:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

            def _answer(self, value: Json) -> None:
                data = json.dumps(value).encode()
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
        mine = self.agents[agent]
        mine &= {name for name in mine if alive.get(name) or not self.runs[name].complete}
        if mine:
            return [{"type": "stop", "run_id": name} for name in mine if self.runs[name].stop]
        params = self.suggest(self.sweep_runs())
        if params is None:
            return [{"type": "exit"}]
        name = f"run{len(self.runs)}"
        self.runs[name] = Run(name, params, sweep="sweep1")
        mine.add(name)
        arguments = {key: {"value": value} for key, value in params.items()}
        return [{"type": "run", "run_id": name, "program": None, "args": arguments, "logs": []}]

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
        return {"exitcode": None, "limits": {}, "stopped": run.stop}

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

    def _Viewer(self, given: Json) -> Json:
        viewer = {"id": "1", "entity": "us", "username": "us", "name": "us", "email": "", "flags": "{}", "admin": False}
        server = {"features": [], "cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None}
        return {"viewer": {**viewer, "teams": {"edges": []}}, "serverInfo": server}

    def _UpsertSweep(self, given: Json) -> Json:
        self.sweep = {"text": given["config"], "project": given.get("projectName") or "uncategorized"}
        project = {"id": "1", "name": self.sweep["project"], "entity": {"id": "1", "name": "us"}}
        return {"upsertSweep": {"sweep": {**self._sweep(), "project": project}, "configValidationWarnings": []}}

    def _sweep(self) -> Json:
        assert self.sweep is not None
        runs = {"edges": [], "pageInfo": {"hasNextPage": False, "endCursor": None}}
        empty = dict.fromkeys(
            ("description", "heartbeatAt", "updatedAt", "bestLoss", "controllerRunName", "controller", "scheduler")
        )
        return {
            **empty,
            "__typename": "Sweep",
            "id": "c3dlZXAx",
            "name": "sweep1",
            "displayName": "sweep1",
            "state": "RUNNING",
            "method": yaml.safe_load(self.sweep["text"])["method"],
            "config": self.sweep["text"],
            "createdAt": "2020-01-01T00:00:00",
            "earlyStopJobRunning": False,
            "runCount": 0,
            "runCountExpected": None,
            "priorRuns": {"edges": []},
            "runs": runs,
        }

    def _SweepWithRuns(self, given: Json) -> Json:
        return {"project": {"id": "1", "sweep": self._sweep() if self.sweep else None}}

    _GetSweep = _GetSweepLegacy = _GetSweepState = _SweepConfig = _SweepWithRuns

    def _CreateAgent(self, given: Json) -> Json:
        name = f"agent{len(self.agents)}"
        self.agents[name] = set()
        return {"createAgent": {"agent": {"id": name}}}

    def _Heartbeat(self, given: Json) -> Json:
        commands = self.heartbeat(given["id"], json.loads(given.get("runState") or "{}"))
        return {"agentHeartbeat": {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}}

    def _UpsertBucket(self, given: Json) -> Json:
        name = given.get("name") or given.get("id") or f"run{len(self.runs)}"
        new = name not in self.runs
        run = self.runs.setdefault(name, Run(name, {}))
        run.group = given.get("groupName") or run.group
        run.config |= json.loads(given.get("config") or "{}")
        run.summary |= json.loads(given.get("summaryMetrics") or "{}")
        return {"upsertBucket": {"bucket": self._bucket(run, given), "inserted": new}}

    def _bucket(self, run: Run, given: Json) -> Json:
        project = {"id": "1", "name": given.get("project") or "p", "entity": {"id": "1", "name": "us"}}
        return {
            "id": run.name,
            "name": run.name,
            "displayName": run.name,
            "sweepName": run.sweep,
            "config": json.dumps(run.config),
            "historyLineCount": len(run.history),
            "project": project,
        }

    def _Runs(self, given: Json) -> Json:
        (wanted,) = json.loads(given["filters"])  # "summary_metrics.NAME"
        name = wanted.removeprefix("summary_metrics.")
        found = [run for run in self.runs.values() if run.summary.get(name) is not None]
        nodes = [{**self._bucket(run, given), **_public(run)} for run in found]
        page = {"endCursor": None, "hasNextPage": False}
        runs = {"edges": [{"node": node, "cursor": node["id"]} for node in nodes], "pageInfo": page}
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}}

    def _RunResumeStatus(self, given: Json) -> Json:
        return {"model": None, "project": None}

    def _CreateRunFiles(self, given: Json) -> Json:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _MarkRunFilesUploaded(self, given: Json) -> Json:
        return {"markRunFilesUploaded": {"success": True}}

    def _OrganizationCoreWeaveOrganizationID(self, given: Json) -> Json:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _View(self, given: Json) -> Json:
        found = [view for view in self.views.values() if view["name"] == given["viewName"]]
        edges = [{"node": {key: view[key] for key in ("id", "displayName", "spec")}} for view in found]
        return {"project": {"allViews": {"edges": edges}}}

    def _UpsertView2(self, given: Json) -> Json:
        name = given.get("id") or f"view{len(self.views)}"
        new = name not in self.views
        self.views[name] = {**given, "id": name}
        return {"upsertView": {"view": {"id": name, "name": given["name"]}, "inserted": new}}


def _public(run: Run) -> Json:
    """What the public API asks of a run besides."""
    return {
        **dict.fromkeys(("group", "jobType", "commit", "description", "notes", "heartbeatAt", "historyKeys")),
        "createdAt": "2020-01-01T00:00:00",
        "projectId": "1",
        "readOnly": False,
        "state": "finished" if run.complete else "running",
        "summaryMetrics": json.dumps(run.summary),
        "systemMetrics": "{}",
        "tags": [],
        "user": {"name": "us", "username": "us"},
    }


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
