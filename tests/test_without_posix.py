"""What Windows lacks is absent: a trial, a sweep that is killed and goes on, its report; the records are the same.

`without_posix/` says what is hidden, and what cannot be. The fast test runs a worker of such a system among others.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.records.layout import LOG, RECORD
from finetune.records.result import Result, outcome
from finetune.sweep import launch
from finetune.sweep.launch import LocalLauncher, Slot
from finetune.sweep.run import run_sweep
from finetune.sweep.state import Options
from finetune.sweep.worker import SharedTrial
from tests.faults.invariants import spec_of, sweep_file, terminal_records

ROOT = Path(__file__).parent.parent
GRID = {"model.freeze_depth": {"values": [5, 3]}, "seed": {"values": [0, 1]}}


def ended(launcher: LocalLauncher, words: list[str], folder: Path) -> SharedTrial:
    (job,) = launcher.start([(words, folder)])
    while job.exitcode is None:
        launcher.wait([job])
    assert isinstance(job, SharedTrial)
    return job


def test_trials_of_a_worker_share_a_process_until_one_does_not_end_well(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "FORKS", False)
    launcher = LocalLauncher([Slot(None, 1)])
    words = [*small, "trainer.epochs=1", "model.freeze_depth=5"]
    first = ended(launcher, words, tmp_path / "a")
    second = ended(launcher, [*words, "seed=1"], tmp_path / "b")
    refused = ended(launcher, [*words, "data.root=/no/such/folder"], tmp_path / "c")
    after = ended(launcher, words, tmp_path / "d")

    assert [job.exitcode for job in (first, second, refused, after)] == [0, 0, 2, 0]
    assert first.pid == second.pid == refused.pid != after.pid
    assert {launcher.worker(job) for job in (first, after)} == {"worker 0"}
    logs = [(tmp_path / name / LOG).read_text() for name in "abcd"]
    assert [log.count("record: ") for log in logs] == [1, 1, 0, 1]
    assert "data.root=/no/such/folder is not a folder" in logs[2]
    assert outcome(Result.load(tmp_path / "a")) == outcome(Result.load(tmp_path / "d"))

    (killed,) = launcher.start([([*words, "trainer.epochs=1000"], tmp_path / "e")])
    killed.kill()
    while killed.exitcode is None:
        launcher.wait([killed])
    assert killed.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_sweep_goes_on_and_its_records_are_those_of_a_system_with_posix(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hiding = f"{ROOT / 'tests' / 'without_posix'}{os.pathsep}{ROOT}"
    environment = {**os.environ, "PYTHONPATH": hiding, "PYTHONWARNINGS": "ignore:only soft file lock"}
    del environment["FINETUNE_FAULTS"]

    def start(*words: str, module: str = "finetune.cli") -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", module, *words]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    file = sweep_file(tmp_path, GRID)
    words = [*small, "trainer.epochs=1"]
    sweep = ["sweep", str(file), *words, "--workers", "1", "--no-repeats", "--out", "s"]

    # 1. Killed after some trials, it goes on with the others
    killed = start(*sweep)
    while len(terminal_records(tmp_path / "s")) < 2 and killed.poll() is None:
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    before = terminal_records(tmp_path / "s")
    assert len(before) >= 2

    for command in (sweep, ["report", "s"]):
        process = start(*command)
        said, _ = process.communicate()
        assert process.returncode == 0
        assert "4 complete" in said
    assert before.items() <= terminal_records(tmp_path / "s").items()

    # 2. A trial alone
    one = start(*words, "model.freeze_depth=5", "seed=0", "out=one", module="finetune.train")
    one.communicate()
    assert one.returncode == 0

    # 3. The same with all that is hidden
    run_sweep(spec_of(tmp_path, small, GRID), tmp_path / "posix", Options(workers=1))
    outcomes = {
        name: {file.parent.name: outcome(Result.load(file.parent)) for file in (tmp_path / name).rglob(RECORD)}
        for name in ("s", "posix")
    }
    assert outcomes["s"] == outcomes["posix"]
    same = [trial for trial in outcomes["posix"].values() if trial["freeze_depth"] == 5 and trial["seed"] == 0]
    assert [trial["history"] for trial in same] == [Result.load(tmp_path / "one").history]
