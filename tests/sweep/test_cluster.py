"""Trials as cluster jobs: by submitit's local executor, and on a real SLURM where tests/slurm.sh has started one."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.errors import Refused
from finetune.records.layout import HEARTBEAT, JOBS
from finetune.records.result import Result
from finetune.sweep import coordinator
from finetune.sweep.cluster import ClusterLauncher, read_cluster
from finetune.sweep.records import heartbeat_of
from finetune.sweep.run import run_sweep
from finetune.sweep.spec import SweepSpec, read_sweep
from finetune.sweep.state import Options, Running, Sweep
from tests.faults.invariants import Clock

slurm = pytest.mark.slurm
needs_slurm = pytest.mark.skipif(
    shutil.which("sbatch") is None or "SLURM_CONF" not in os.environ, reason="needs a SLURM: see tests/slurm.sh"
)


def settings(tmp_path: Path, **given: Any) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"cluster": "local", "parallel": 3, "minutes": 9, "poll_seconds": 1, **given}))
    return str(path)


def spec_of(tmp_path: Path, fast: list[str], parameters: dict[str, Any], epochs: int = 1) -> SweepSpec:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"method": "grid", "parameters": parameters}))
    return read_sweep(tmp_path / "s.yaml", (*fast, f"trainer.epochs={epochs}"))


def statuses(sweep: Sweep) -> dict[Any, str]:
    return {trial.params["optim.lr"]: trial.result.status for trial in sweep.finished}


GRID = {"optim.lr": {"values": [0.01, 1.0e30, 0.001, 0.0001]}, "model.freeze_depth": {"values": [0]}}
EXPECTED = {0.01: "complete", 1.0e30: "failed", 0.001: "complete", 0.0001: "complete"}


@pytest.mark.slow
def test_jobs_leave_the_records_of_local_trials(tmp_path: Path, fast: list[str]) -> None:
    spec = spec_of(tmp_path, fast, GRID)
    jobs = run_sweep(spec, tmp_path / "jobs", Options(launcher=settings(tmp_path)))
    assert statuses(jobs) == EXPECTED
    ended: list[Result] = []
    run_sweep(
        spec,
        tmp_path / "jobs",
        Options(launcher=settings(tmp_path)),
        watch=lambda sweep, result: ended.append(result) if result else None,
    )
    assert ended == []
    here = run_sweep(spec, tmp_path / "here", Options(workers=1))
    assert {result.key for result in here.results} == {result.key for result in jobs.results}
    of_jobs = {result.key: result for result in jobs.results}
    assert [len(of_jobs[result.key].correct) for result in here.results] == [len(r.correct) for r in here.results]
    assert any(result.correct for result in here.results), "which images each epoch got right"


@pytest.mark.slow
def test_a_spent_budget_ends_jobs_that_run(tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(coordinator, "time", clock)

    def watch(sweep: Sweep, ended: Result | None) -> None:
        if any((trial.folder / HEARTBEAT).exists() for trial in sweep.running):
            clock.ahead = 4000

    spec = spec_of(tmp_path, fast, {"optim.lr": {"values": [0.01]}}, epochs=1000)
    sweep = run_sweep(spec, tmp_path / "s", Options(launcher=settings(tmp_path), budget=3600), watch=watch)
    assert (sweep.finished, sweep.out_of_time) == ([], True)
    (job,) = (trial.job for trial in sweep.running)
    assert job.exitcode is not None


REFUSED = {
    "parallel": ("many", "could not be converted to Integer"),
    "paralel": (3, "Key 'paralel' not in 'ClusterSettings'"),
    "cluster": ("pbs", "needs cluster: slurm or local"),
    "minutes": (0, "parallel and minutes above 0"),
    "sbatch": ("--qos x", "give slurm, or a copy of its file"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_bad_settings_are_refused_by_name(tmp_path: Path, key: str) -> None:
    value, message = REFUSED[key]
    with pytest.raises(Refused, match=message):
        read_cluster(settings(tmp_path, **{key: value}))
    with pytest.raises(Refused, match=r"none\.yaml: there is none of that name"):
        read_cluster("none.yaml")


def test_the_shipped_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert (read_cluster("slurm").cluster, read_cluster("slurm").gpus) == ("slurm", 1)


def test_a_machine_without_slurm_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refused, match="there is no sbatch here"):
        read_cluster("slurm")


def fake_slurm(place: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Commands of SLURM that do what `scripts` say, in the shell's words."""
    place.mkdir()
    for name, script in {"srun": "", "sbatch": "echo Submitted batch job 7", **scripts}.items():
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)


def test_a_preempted_job_that_waits_for_its_turn_is_not_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm(tmp_path / "bin", monkeypatch, squeue=f"cat {tmp_path}/queue")
    launcher = ClusterLauncher(read_cluster(settings(tmp_path, cluster="slurm", poll_seconds=0)), tmp_path / "s", {})
    (job,) = launcher.start([([], tmp_path / "t")])
    trial, now = Running({}, tmp_path / "t", job), [0.0]
    (tmp_path / "t" / HEARTBEAT).write_text("9\n")  # of the attempt that was preempted
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for state, idle in (("R", 0), ("R", 1), ("PD", 0), ("CF", 0), ("R", 1), ("CG", 2), ("S", 0), ("R", 1)):
        (tmp_path / "queue").write_text(f"6 R\n7 {state}\n7_0 R\n")
        launcher.wait([job])
        trial.note(heartbeat_of(tmp_path / "t"), wait=0)
        assert (state, trial.idle, job.exitcode) == (state, idle, None)
        now[0] += 1


def test_fault_49_a_job_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm(tmp_path / "bin", monkeypatch, squeue="")
    launcher = ClusterLauncher(read_cluster(settings(tmp_path, cluster="slurm")), tmp_path / "s", {})
    launcher.start([([], tmp_path / "t")])
    scripts = [*(tmp_path / "s" / JOBS).rglob("*.sh")]
    assert f"{shlex.quote(sys.executable)} -P -u -m submitit" in scripts[0].read_text()


@pytest.mark.slow
def test_a_trial_that_the_cluster_does_not_take_is_submitted_again(
    tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm(tmp_path / "bin", monkeypatch, sbatch="echo too [/many] jobs >&2; exit 1", squeue="")
    launcher = settings(tmp_path, cluster="slurm", poll_seconds=0.1)
    spec = spec_of(tmp_path, fast, {"optim.lr": {"values": [0.01, 0.001]}})
    sweep = run_sweep(spec, tmp_path / "s", Options(launcher=launcher))
    reasons = {result.reason for result in sweep.results}
    assert reasons == {"not submitted: too [/many] jobs, at each of 3 starts"}
    assert len(sweep.notes) == 4


@slurm
@needs_slurm
def test_slurm_runs_a_sweep_as_a_job_array(tmp_path: Path, fast: list[str]) -> None:
    launcher = settings(tmp_path, cluster="slurm", cpus=1, memory_gib=2)
    sweep = run_sweep(spec_of(tmp_path, fast, GRID), tmp_path / "s", Options(launcher=launcher))
    assert statuses(sweep) == EXPECTED
    assert len(list((tmp_path / "s" / "jobs").glob("*_2_submitted.pkl"))) == 1  # three at once make an array


@slurm
@needs_slurm
def test_a_cancelled_job_is_started_again_and_a_requeued_one_goes_on(tmp_path: Path, fast: list[str]) -> None:
    """Takes two minutes: SLURM lets a requeued job wait."""
    launcher = settings(tmp_path, cluster="slurm", cpus=1, memory_gib=2)
    spec = spec_of(tmp_path, fast, {"optim.lr": {"values": [0.01, 0.001]}}, epochs=60)
    done: list[str] = []

    def disturb(sweep: Sweep, ended: Result | None) -> None:
        if not done and len(sweep.running) == 2 and all(trial.history for trial in sweep.running):
            for trial, command in zip(sweep.running, (["scontrol", "requeue"], ["scancel"]), strict=True):
                subprocess.run([*command, trial.job.name], check=True)  # type: ignore[attr-defined]
                done.append(command[0])

    sweep = run_sweep(spec, tmp_path / "s", Options(launcher=launcher), watch=disturb)
    assert done == ["scontrol", "scancel"]
    assert statuses(sweep) == {0.01: "complete", 0.001: "complete"}
