"""What a pretended W&B server answers: its runs, and a method for each question, named as the client names it."""

import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

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
    begun: bool = False
    """Whether a trial has logged in as it."""
    crashed: bool = False
    """Whether it was given up, as W&B does after minutes of silence; what comes late of it changes nothing."""
    files: dict[str, bytes] = field(default_factory=dict)
    """What it keeps, by name."""

    @property
    def state(self) -> str:
        if self.complete:
            return "finished" if self.exitcode == 0 else "failed"
        if self.crashed:
            return "crashed"
        if self.begun:
            return "preempting" if self.preempting else "running"
        return "preempted" if self.preempting else "pending"

    def settings(self) -> Json:
        """The config as a person sees it."""
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}


class Answers:
    """One sweep, its queue and agents, and a store of runs and views."""

    url: str

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.views: dict[str, Json] = {}
        self.sweep: Json | None = None
        self.queue: list[str] = []
        """Runs that a scheduler enqueued, oldest first."""
        self.agents: dict[str, set[str]] = {}

    @property
    def is_scheduled(self) -> bool:
        """Whether the sweep was made for a scheduler."""
        return self.sweep is not None and "scheduler" in yaml.safe_load(self.sweep["text"])

    def new_run(self, params: Json) -> str:
        name = f"run{len(self.runs)}"
        config = {key: {"value": value, "desc": None} for key, value in params.items()}
        self.runs[name] = Run(name, params, sweep="sweep1", config=config)
        return name

    def heartbeat(self, agent: str, alive: Json) -> list[Json]:
        """Commands for an agent."""
        raise NotImplementedError

    def _Viewer(self, given: Json) -> Json:
        viewer = {"id": "1", "entity": "us", "username": "us", "name": "us", "email": "", "flags": "{}", "admin": False}
        features = [{"name": "SWEEPS_LOCAL_SCHEDULER", "isEnabled": True}]
        server = {"features": features, "cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None}
        return {"viewer": {**viewer, "teams": {"edges": []}}, "serverInfo": server}

    def _UpsertSweep(self, given: Json) -> Json:
        if self.sweep is not None and given.get("state"):
            self.sweep["state"] = given["state"]
            return {"upsertSweep": {"sweep": {"name": "sweep1"}}}

        project = given.get("projectName") or "uncategorized"
        self.sweep = {"text": given["config"], "project": project, "state": "RUNNING"}
        place = {"id": "1", "name": project, "entity": {"id": "1", "name": "us"}}
        return {"upsertSweep": {"sweep": {**self._sweep(), "project": place}, "configValidationWarnings": []}}

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
            "state": self.sweep["state"],
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
        run.begun = True
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

    def _EnqueueSweepRun(self, given: Json) -> Json:
        if not self.is_scheduled:
            raise ValueError("sweep sweep1 is not using local scheduler")  # wandb/wandb#12637
        name = self.new_run(json.loads(given["config"]))
        self.queue.append(name)
        return {"enqueueSweepRun": {"id": name, "runQueueItemId": name}}

    def _StopRun(self, given: Json) -> Json:
        run = self.runs[given["id"]]
        run.stop = True
        if run.name in self.queue:
            self.queue.remove(run.name)
            run.crashed = True
        return {"stopRun": {"success": True}}

    def _Runs(self, given: Json) -> Json:
        found = [run for run in self.runs.values() if _matches(run, json.loads(given["filters"] or "{}"))]
        nodes = [{**self._bucket(run, given), **_public(run)} for run in found]
        page = {"endCursor": None, "hasNextPage": False}
        runs = {"edges": [{"node": node, "cursor": node["id"]} for node in nodes], "pageInfo": page}
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}}

    def _Run(self, given: Json) -> Json:
        run = self.runs.get(given["name"])
        return {"project": {"run": run and {**self._bucket(run, given), **_public(run)}}}

    def _RunSampledHistory(self, given: Json) -> Json:
        """All rows that have every key: none is so long that W&B would leave some out."""
        (spec,) = map(json.loads, given["specs"])
        rows = [
            {key: row[key] for key in spec["keys"]}
            for row in self.runs[given["name"]].history
            if row.keys() >= set(spec["keys"])
        ]
        return {"project": {"run": {"sampledHistory": [rows]}}}

    def _RunFiles(self, given: Json) -> Json:
        run = self.runs[given["name"]]
        found = [name for name in run.files if name in given["fileNames"] or not given["fileNames"]]
        nodes = [
            {
                **dict.fromkeys(("mimetype", "updatedAt", "md5")),
                "id": name,
                "name": name,
                "url": self.address(run.name, name),
                "directUrl": self.address(run.name, name),
                "sizeBytes": len(run.files[name]),
            }
            for name in found
        ]
        page = {"endCursor": None, "hasNextPage": False}
        files = {"edges": [{"node": node, "cursor": node["id"]} for node in nodes], "pageInfo": page}
        return {"project": {"internalId": "1", "run": {"fileCount": len(found), "files": files}}}

    def address(self, run: str, file: str) -> str:
        """Where a run's file is written and read."""
        return f"{self.url}/upload/{run}/{urllib.parse.quote(file)}"

    def _RunResumeStatus(self, given: Json) -> Json:
        return {"model": None, "project": None}

    def _CreateRunFiles(self, given: Json) -> Json:
        files = [{"name": name, "uploadUrl": self.address(given["run"], name)} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _MarkRunFilesUploaded(self, given: Json) -> Json:
        return {"markRunFilesUploaded": {"success": True}}

    def _ArtifactType(self, given: Json) -> Json:
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, given: Json) -> Json:
        sequence = {"latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": "a1", "state": "PENDING", "artifactSequence": sequence}}}

    def _CreateArtifactManifest(self, given: Json) -> Json:
        file = {"id": "m1", "uploadUrl": f"{self.url}/artifact", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m1", "file": file}}}

    def _UpdateArtifactManifest(self, given: Json) -> Json:
        file = {"id": "m1", "uploadUrl": f"{self.url}/artifact", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": "m1", "file": file}}}

    def _CreateArtifactFiles(self, given: Json) -> Json:
        nodes = [
            {
                "id": "f1",
                "name": file["name"],
                "storagePath": file["name"],
                "uploadUrl": f"{self.url}/artifact",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": "a1"},
            }
            for file in given["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, given: Json) -> Json:
        return {"commitArtifact": {"artifact": {"id": "a1", "digest": ""}}}

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


def _matches(run: Run, wanted: Mapping[str, Any]) -> bool:
    """Whether a run passes a filter, as far as our questions have them."""
    for key, value in wanted.items():
        if key in ("$or", "$and"):
            fits = (any if key == "$or" else all)(_matches(run, part) for part in value)
        elif key.startswith("summary_metrics."):
            fits = run.summary.get(key.removeprefix("summary_metrics.")) is not None
        elif isinstance(value, dict):
            fits = getattr(run, key) in value["$in"]
        else:
            fits = getattr(run, key) == value
        if not fits:
            return False
    return True


def _public(run: Run) -> Json:
    """What the public API asks of a run besides."""
    return {
        "group": run.group,
        **dict.fromkeys(("jobType", "commit", "description", "notes", "heartbeatAt", "historyKeys")),
        "createdAt": "2020-01-01T00:00:00",
        "projectId": "1",
        "readOnly": False,
        "state": run.state,
        "summaryMetrics": json.dumps(run.summary),
        "systemMetrics": "{}",
        "tags": [],
        "user": {"name": "us", "username": "us"},
    }
