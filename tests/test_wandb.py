"""Sweeps under the real W&B client, against a server on loopback."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.compose import compose_config
from finetune.config import flat
from finetune.records.result import STATUSES, Result
from finetune.report import wandb as dashboard
from tests.faults.invariants import PATIENCE, set_traps, wait_for
from tests.wandb_server import Run, Server, wandb_server

VALUES: dict[str, list[Any]] = {
    "optim.lr": [0.00001, 0.01],
    "trainer.patience": [None, 3],
    "model.head.hidden": [[], [16, 8]],
    "optim.weight_decay": [0, 0.5],
    "optim.momentum": [0.9],
}
"""Every form of value that an agent passes; together with texts below."""


def start(server: Server, folder: Path, *words: str, **more: str) -> "subprocess.Popen[str]":
    """A command in `folder`, pointed at the server; `more` is added to its environment."""
    binaries = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= server.environment() | more
    environment |= {"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": f"{binaries}:{os.environ['PATH']}"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", *words],  # as the commands `wandb` and `finetune` do
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def made(server: Server, folder: Path, fast: list[str], epochs: int, **more: Any) -> str:
    """`wandb sweep` on a file of `fast` trials; returns what `wandb agent` takes."""
    command = ["${env}", "${interpreter}", "-P", "-m", "finetune.train", *fast, f"trainer.epochs={epochs}"]
    raw = {
        "name": "real",
        "method": "grid",
        "metric": {"name": "val/acc_best", "goal": "maximize"},
        "command": [*command, "${args_no_hyphens}"],
        "parameters": {key: {"values": values} for key, values in VALUES.items()},
        **more,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(raw))
    printed, _ = start(server, folder, "wandb", "sweep", "--project", "p", "sweep.yaml").communicate(timeout=PATIENCE)
    found = re.search(r"wandb agent (\S+)", re.sub(r"\x1b\[[0-9;]*m", "", printed))
    assert found, printed
    return found[1]


def one_after_the_other(trials: list[dict[str, Any]]) -> Callable[[list[Run]], dict[str, Any] | None]:
    return lambda runs: trials[len(runs)] if len(runs) < len(trials) else None


TRIALS = [
    {"optim.lr": 1e-05, "trainer.patience": None, "model.head.hidden": [], "optim.weight_decay": 0},
    {"optim.lr": 0.01, "trainer.patience": 3, "model.head.hidden": [16, 8], "optim.weight_decay": 0.5},
    {"model.head.activation": "gelu", "optim.name": "sgd", "optim.momentum": 0.9, "model.freeze_depth": 17},
]


@pytest.mark.slow
def test_two_plain_agents_run_the_trials_that_the_server_suggests(tmp_path: Path, fast: list[str]) -> None:
    def learning(runs: list[Run]) -> dict[str, Any] | None:
        """As a bayes search does, the last suggestion builds on what the first runs reported."""
        if len(runs) == 2:
            best = max(runs, key=lambda run: run.summary.get("val/acc_best", -1.0))
            TRIALS[2]["optim.lr"] = best.params["optim.lr"]
        return one_after_the_other(TRIALS)(runs)

    planted = set_traps(tmp_path)  # modules of the user's own
    with wandb_server(learning) as server:
        sweep = made(server, tmp_path, fast, epochs=2)
        agents = [start(server, tmp_path, "wandb", "agent", sweep) for _ in range(2)]
        outputs = [agent.communicate(timeout=PATIENCE)[0] for agent in agents]
        assert [agent.returncode for agent in agents] == [0, 0], outputs
        assert planted() == []
        assert server.unknown == []
        runs = server.sweep_runs()
    assert list(server.runs) == ["run0", "run1", "run2"]  # no second run beside the agent's
    records = [Result.load(file.parent) for file in tmp_path.glob("runs/*/*/result.json")]
    for run, params in zip(runs, TRIALS, strict=True):
        assert (run.complete, run.exitcode) == (True, 0)
        config = run.settings()
        expected = flat(compose_config([*fast, *(f"{key}={json.dumps(value)}" for key, value in params.items())]))
        (record,) = (record for record in records if record.config["out"] == config["out"])
        expected["trainer.precision"] = record.precision  # as its machine decided
        varying = ("out", "cache.dir", "trainer.epochs")
        assert {key: config[key] for key in expected if key not in varying} == {
            key: value for key, value in expected.items() if key not in varying
        }
        assert [row["val/acc"] for row in run.history if "val/acc" in row] == pytest.approx(
            [epoch["val/acc"] for epoch in record.history]
        )
        assert run.summary["val/acc_best"] == pytest.approx(record.val_acc_best)
        assert len(record.correct) == len(record.history), "which images each epoch got right"
        assert {"images_per_second", "seconds/total", "peak_memory_mb", "freeze_depth"} <= set(run.summary)
        assert not run.preempting


@pytest.mark.slow
@pytest.mark.long
def test_our_agent_forks_trials_and_ends_those_the_server_stops(tmp_path: Path, fast: list[str]) -> None:
    """And the dashboard that watches it goes on until the sweep has ended."""
    trials = [{"optim.lr": 0.01, "trainer.epochs": 1000}, {"optim.lr": 0.01, "trainer.epochs": 1}]
    planted = set_traps(tmp_path)
    with wandb_server(one_after_the_other(trials)) as server:
        sweep = made(server, tmp_path, fast[:-2] + fast[-1:], epochs=1)
        agent = start(server, tmp_path, "finetune.cli", "agent", sweep, "--workers", "1")
        wait_for(lambda: "run0" in server.runs and server.runs["run0"].history)
        watching = start(server, tmp_path, "finetune.cli", "dashboard", "us/p/sweep1", "--watch")
        server.runs["run0"].stop = True
        output, _ = agent.communicate(timeout=PATIENCE)
        assert agent.returncode == 0, output
        seen, _ = watching.communicate(timeout=PATIENCE)
        assert (watching.returncode, "sweep1: 2 trials, " in seen) == (0, True), seen
        assert planted() == []
        stopped, whole = server.sweep_runs()
    assert (stopped.exitcode, stopped.preempting) == (0, False)
    assert (whole.exitcode, len(whole.history)) == (0, 1)
    folder = tmp_path / "runs" / "real-sweep1"
    records = {record.status: record for record in (Result.load(path) for path in (folder / "trials").iterdir())}
    assert records["pruned"].reason == "stopped by W&B"
    assert records["complete"].config["trainer.epochs"] == 1
    assert "validation accuracy per freeze depth" in output


@pytest.mark.slow
def test_a_preempted_agent_marks_its_run_so_that_it_is_handed_out_again(tmp_path: Path, fast: list[str]) -> None:
    with wandb_server(one_after_the_other([{"trainer.epochs": 1000}])) as server:
        sweep = made(server, tmp_path, fast, epochs=1)
        agent = start(server, tmp_path, "finetune.cli", "agent", sweep, "--workers", "1")
        wait_for(lambda: "run0" in server.runs and server.runs["run0"].history)
        os.kill(agent.pid, signal.SIGTERM)
        agent.communicate(timeout=PATIENCE)
        (run,) = server.sweep_runs()
        assert (run.preempting, run.exitcode) == (True, 143)
    assert agent.returncode == 143


@pytest.mark.slow
def test_a_trial_goes_on_when_the_server_goes_away(tmp_path: Path, fast: list[str]) -> None:
    with wandb_server() as server:
        words = [*fast, "trainer.epochs=30", "logger=wandb", f"out={tmp_path / 'r'}"]
        trial = start(server, tmp_path, "finetune.train", *words)
        wait_for(lambda: any(run.history for run in server.runs.values()))
    wait_for((tmp_path / "r" / "result.json").exists)
    os.killpg(trial.pid, signal.SIGKILL)  # the client keeps trying to upload
    trial.communicate()
    assert Result.load(tmp_path / "r").status == "complete"


@pytest.mark.slow
def test_a_local_sweep_is_uploaded_once_in_a_group_of_its_name(tmp_path: Path, fast: list[str]) -> None:
    grid = {"method": "grid", "parameters": {"model.freeze_depth": {"values": [16, 17]}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(grid))
    with wandb_server() as server:
        ran = start(server, tmp_path, "finetune.cli", "sweep", "mine.yaml", "--no-repeats", *fast)
        assert ran.communicate(timeout=PATIENCE)
        assert ran.returncode == 0
        assert server.runs == {}
        for uploaded in (2, 0):
            sync = start(server, tmp_path, "finetune.cli", "sync", "runs/mine", "--project", "us/p")
            output, _ = sync.communicate(timeout=PATIENCE)
            assert f"uploaded {uploaded} trials" in output
        runs = list(server.runs.values())
    records = {record.freeze_depth: record for record in map(Result.load, tmp_path.glob("runs/mine/trials/*"))}
    assert [run.name for run in runs][2:] == ["mine-summary"]
    for run in runs[:2]:
        record = records[run.summary["freeze_depth"]]
        assert (run.group, run.complete, run.exitcode) == ("mine", True, 0)
        assert run.settings() == record.config
        assert [row["val/acc"] for row in run.history] == [epoch["val/acc"] for epoch in record.history]
        assert run.summary["val/acc_best"] == record.val_acc_best


@pytest.mark.slow
def test_the_dashboard_sums_up_what_an_uploaded_sweep_found(tmp_path: Path, fast: list[str]) -> None:
    grid = {"method": "grid", "parameters": {"model.freeze_depth": {"values": [16, 17]}, "seed": {"values": [0, 1]}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(grid))
    with wandb_server() as server:
        for words in (["sweep", "mine.yaml", *fast], ["sync", "runs/mine", "--project", "us/p"]):
            done = start(server, tmp_path, "finetune.cli", *words)
            printed, _ = done.communicate(timeout=PATIENCE)
            assert done.returncode == 0, printed
        said = [
            start(server, tmp_path, "finetune.cli", "dashboard", f"us/p{sweep}", "--watch").communicate(
                timeout=PATIENCE
            )[0]
            for sweep in ("", "/mine", "/other")
        ]
        unknown, runs = server.unknown, server.runs
    assert "mine: 4 trials, " in said[0], said[0]
    assert "mine: 4 trials, " in said[1], said[1]  # the same run, resumed
    assert "refused: us/p has no runs of a sweep or group other" in said[2], said[2]
    assert unknown == []
    assert len(runs) == 5
    summary = runs["mine-summary"]
    records = [Result.load(folder) for folder in tmp_path.glob("runs/mine/trials/*")]
    assert summary.summary["trials"] == {"complete": 4}
    assert "It cost" in summary.summary["verdict"]
    means = [sum(r.accuracy for r in records if r.freeze_depth == depth) / 2 for depth in (16, 17)]
    assert summary.summary["best/mean"] == pytest.approx(max(means))
    assert {"report.html", "sweep.json"} <= summary.files.keys()
    (table,) = (json.loads(data) for name, data in summary.files.items() if "media/table/depths" in name)
    assert (table["columns"][0], [row[0] for row in table["data"]]) == ("depth", ["k=16", "k=17"])
    (curve,) = (json.loads(data) for name, data in summary.files.items() if name.startswith("media/plotly"))
    drawn = [trace for trace in curve["data"] if trace.get("error_y", {}).get("visible")]
    assert [trace["x"] for trace in drawn] == [[16, 17]]


def test_a_trial_that_is_to_go_on_is_not_uploaded_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "_upload", lambda record, *_: record.key)
    for status in STATUSES:
        Result(status, status, "", 0, "block", 0, None, None, 0, {}).save(tmp_path / "trials" / status)
    assert sorted(dashboard.sync_records(tmp_path, "p")) == ["complete", "failed", "pruned"]


@pytest.mark.slow
def test_the_dashboard_shows_runs_whose_column_had_its_old_name(tmp_path: Path) -> None:
    with wandb_server() as server:
        server.runs["old"] = Run("old", {}, summary={"frozen/depth": 9, "val/acc_best": 0.5}, complete=True)
        server.runs["under_way"] = Run("under_way", {}, summary={"frozen/depth": 4})
        server.runs["new"] = Run("new", {}, summary={"freeze_depth": 3}, complete=True)
        said = [
            start(server, tmp_path, "finetune.cli", "dashboard", "us/p").communicate(timeout=PATIENCE)[0] for _ in "12"
        ]
    assert "1 run of an earlier version got the column freeze_depth" in said[0]
    assert "earlier version" not in said[1]
    assert server.runs["old"].summary == {"frozen/depth": 9, "val/acc_best": 0.5, "freeze_depth": 9}
    assert server.runs["under_way"].summary == {"frozen/depth": 4}
    assert server.runs["new"].summary == {"freeze_depth": 3}


@pytest.mark.slow
def test_the_dashboard_is_created_once_and_then_brought_up_to_date(tmp_path: Path) -> None:
    with wandb_server() as server:
        for _ in range(2):
            output, _ = start(server, tmp_path, "finetune.cli", "dashboard", "us/p").communicate(timeout=PATIENCE)
            assert "/us/p?nw=finetune" in output
        (view,) = server.views.values()
    spec = view["spec"]
    titles = ["Validation accuracy against freeze depth", "The same, coloured by learning rate", "against seconds"]
    for text in [*titles, "Parallel Coordinates Plot", "Parameter Importance", "Learning curves", "freeze_depth"]:
        assert text in spec
