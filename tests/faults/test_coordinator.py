import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from finetune.config import key_of
from finetune.errors import Refused
from finetune.records.layout import HEARTBEAT
from finetune.records.result import Result, outcome
from finetune.storage.system import is_stopped
from finetune.sweep import jobs, state
from finetune.sweep import run as run_module
from finetune.sweep.launch import Slot
from finetune.sweep.records import heartbeat_of, trial_settings
from finetune.sweep.run import run_sweep
from finetune.sweep.search import planned_trials
from finetune.sweep.spec import SweepSpec
from finetune.sweep.state import Options, Running, Sweep
from tests.faults.invariants import (
    PATIENCE,
    Clock,
    check_invariants,
    living,
    run,
    spec_of,
    start,
    start_anew,
    sweep_file,
    terminal_records,
    wait_for,
)
from tests.models import finetune
from tests.sweep.conftest import Pretended

DEPTHS = {"model.freeze_depth": {"values": [3, 4, 5]}}
Arm = Callable[..., Path]


def ended(sweep: Sweep) -> dict[object, tuple[str, str]]:
    return {trial.params["model.freeze_depth"]: (trial.result.status, trial.result.reason) for trial in sweep.finished}


def outcomes(folder: Path) -> dict[str, dict[str, object]]:
    return {key: outcome(Result.load(folder / "trials" / key)) for key in terminal_records(folder)}


def key_at(spec: SweepSpec, depth: int) -> str:
    return key_of(trial_settings(spec)({"model.freeze_depth": depth}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["images", *(pytest.param(what, marks=pytest.mark.slow) for what in ("space", "metric"))]
)
def test_fault_14_another_space_metric_or_data_are_refused_and_another_sweep_counts_what_fits(
    tmp_path: Path, small: list[str], images: Path, what: str
) -> None:
    spec = spec_of(tmp_path, small, {"model.freeze_depth": {"values": [4, 5]}})
    run_sweep(spec, tmp_path / "s")
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    if what == "space":
        spec = spec_of(tmp_path, small, DEPTHS)
        message = r"model.freeze_depth was 4, 5 and would now be 3, 4, 5"
    elif what == "metric":
        spec = replace(spec, metric="val/loss", goal="minimize")
        message = r"search was grid, maximize val/acc_best, .* would now be grid, minimize val/loss"
    else:
        file = next((images / "train" / "class0").iterdir())
        Image.open(file).rotate(180).save(file)
        message = r"data was \['\w+-\w+', '\w+'\] and would now be \['\w+-\w+', '\w+'\]"
    with pytest.raises(Refused, match=message) as refusal:
        run_sweep(spec, tmp_path / "s")
    assert str(refusal.value).endswith(
        f"to continue it, or `--out ANOTHER --reuse {tmp_path / 's'}` to start another that counts what fits"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()} == before
    other = run_sweep(spec, tmp_path / "t", Options(reuse=(tmp_path / "s",)))
    assert all(result.status == "complete" for result in other.results)
    kept = {(result.key, str(result.seconds)) for result in map(Result.load, (tmp_path / "s" / "trials").iterdir())}
    again = {(result.key, str(result.seconds)) for result in other.results}
    assert len(kept & again) == (0 if what == "images" else 2)  # what was found on other images does not count
    assert {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_fault_21_a_result_that_the_search_was_not_told_counts_once(tmp_path: Path, small: list[str], arm: Arm) -> None:
    file = sweep_file(tmp_path, DEPTHS)
    words = ["sweep", file, "--no-repeats", *small, "trainer.epochs=1", "--workers", 1, "--out", tmp_path / "s"]
    arm(f"tell {tmp_path}/s/trials/* 2 kill")
    assert run(*words)[0] == -signal.SIGKILL
    before = terminal_records(tmp_path / "s")
    assert len(before) == 2
    arm()
    seen: list[str] = []
    spec = spec_of(tmp_path, small, DEPTHS)
    sweep = run_sweep(spec, tmp_path / "s", watch=lambda _, result: seen.append(result.key) if result else None)
    assert (len(sweep.finished), len(seen)) == (3, 1)
    assert not {*seen} & {*before}
    check_invariants(tmp_path / "s", before)


@pytest.mark.slow
def test_fault_23_a_killed_coordinator_takes_its_workers_along_and_the_same_command_goes_on(
    tmp_path: Path, small: list[str], arm: Arm
) -> None:
    depths = {"model.freeze_depth": {"values": [3, 4]}}  # whose batches are steps
    file = sweep_file(tmp_path, depths)
    words = [*small, "trainer.save_every=0"]
    spec = replace(spec_of(tmp_path, words, depths), fixed=tuple(words))
    run_sweep(spec, tmp_path / "whole", Options(workers=2))
    reached = arm(*(f"step *{key_at(spec, depth)} 3 hold" for depth in (3, 4)))
    process = start("sweep", file, "--no-repeats", *words, "--workers", 2, "--out", tmp_path / "s")
    wait_for(lambda: reached.read_text().count("step ") == 6)
    process.kill()
    process.communicate()
    assert not living(str(tmp_path / "s"))
    before = terminal_records(tmp_path / "s")
    arm()
    run_sweep(spec, tmp_path / "s", Options(workers=2))
    logs = [log.read_text() for log in (tmp_path / "s").glob("trials/*/log.txt")]
    assert all("going on in epoch" in log for log in logs)
    assert outcomes(tmp_path / "s") == outcomes(tmp_path / "whole")
    check_invariants(tmp_path / "s", before)


@pytest.mark.slow
def test_fault_24_a_killed_data_process_is_noticed_and_started_again(
    tmp_path: Path, small: list[str], arm: Arm
) -> None:
    spec = spec_of(tmp_path, [*small, f"cache.dir={tmp_path / 'cache'}"], DEPTHS)
    reached = arm(f"rename {tmp_path}/cache/pixels/???????????? 1 kill")
    sweep = run_sweep(spec, tmp_path / "s")
    assert [status for status, _ in ended(sweep).values()] == ["complete"] * 3
    lines = reached.read_text().splitlines()
    renamed = [line for line in lines if line.startswith(f"rename {tmp_path}/cache/pixels") and ".part" not in line]
    assert len(renamed) == 3  # two stores, the first twice
    check_invariants(tmp_path / "s", {}, tmp_path / "cache")
    arm(f"rename {tmp_path}/other/pixels/* 0 kill")
    with pytest.raises(RuntimeError, match="died 3 times, with exit code -9"):
        run_sweep(spec_of(tmp_path, [*small, f"cache.dir={tmp_path / 'other'}"], DEPTHS), tmp_path / "t")


def hanging(reached: Path, key: str, *steps: int) -> Callable[[Sweep, Result | None], None]:
    """Watch a sweep in which trial `key` hangs in these of its steps: once it does, it was idle for long enough."""
    hung = set[int]()

    def watch(sweep: Sweep, ended: Result | None) -> None:
        begun = len([line for line in reached.read_text().splitlines() if line.endswith(key) and "step" in line])
        for trial in (trial for trial in sweep.running if trial.folder.name == key):
            if trial.stuck:
                hung.add(trial.job.pid)
            elif len(hung) < len(steps) and begun >= steps[len(hung)]:
                trial.idle = float("inf")

    return watch


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not end when asked to is killed at once."""
    monkeypatch.setattr(jobs, "_GRACE", 0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_fault_27_a_trial_that_hangs_is_ended_and_started_once_more(tmp_path: Path, small: list[str], arm: Arm) -> None:
    spec = spec_of(tmp_path, small, DEPTHS)
    slow = key_at(spec, 4)
    reached = arm(f"step *{slow} 2 sleep:1000")
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=2), watch=hanging(reached, slow, 2))
    assert [status for status, _ in ended(sweep).values()] == ["complete"] * 3
    assert sweep.notes == [f"trial {slow} made no progress; it was started again"]
    check_invariants(tmp_path / "s", {})


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_fault_27_a_trial_that_hangs_twice_fails(tmp_path: Path, small: list[str], arm: Arm) -> None:
    spec = spec_of(tmp_path, small, {"model.freeze_depth": {"values": [4, 5]}})
    reached = arm(f"step *{key_at(spec, 5)} 0 sleep:1000")
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=2), watch=hanging(reached, key_at(spec, 5), 1, 2))
    assert ended(sweep)[5] == ("failed", "no sign of progress, so it was ended, at each of 2 starts")
    assert ended(sweep)[4][0] == "complete"
    check_invariants(tmp_path / "s", {})


@pytest.mark.slow
def test_fault_28_a_trial_that_dies_at_every_start_fails_after_two_more(
    tmp_path: Path, small: list[str], arm: Arm
) -> None:
    spec = spec_of(tmp_path, small, DEPTHS)
    doomed = key_at(spec, 4)
    reached = arm(f"step *{doomed} 0 kill")
    sweep = run_sweep(spec, tmp_path / "s")
    assert ended(sweep)[4] == ("failed", "killed by signal 9, at each of 3 starts")
    assert [ended(sweep)[depth][0] for depth in (3, 5)] == ["complete"] * 2
    assert len([line for line in reached.read_text().splitlines() if line.endswith(doomed) and "step" in line]) == 3
    check_invariants(tmp_path / "s", {})


@pytest.mark.slow
def test_fault_42_an_unhealthy_worker_is_set_aside_and_the_others_go_on(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, small, {"model.freeze_depth": {"values": [0, 1, 2, 3, 4, 5]}})
    broken = Slot(None, 0)  # torch accepts no zero threads, so whatever runs there dies
    monkeypatch.setattr(run_module, "local_slots", lambda *_: [Slot(None, 1), broken])
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=2))
    assert [status for status, _ in ended(sweep).values()] == ["complete"] * 6
    assert "worker 1 was set aside: 3 trials in a row failed there" in sweep.notes
    assert sum("started again" in note for note in sweep.notes) >= 3
    check_invariants(tmp_path / "s", {})


def test_fault_43_what_fails_every_trial_alike_stops_the_sweep_and_is_told_once(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path, {"seed": {"values": [0, 1, 2, 3, 4, 5]}})
    words = [*small, "model.freeze_depth=0", "optim.lr=1e30", "trainer.epochs=1"]
    assert finetune(monkeypatch, "sweep", file, *words, "--workers", 1, "--out", tmp_path / "s") == 4
    said = capfd.readouterr().out
    assert len(terminal_records(tmp_path / "s")) == 3
    (told,) = [line for line in said.splitlines() if line.startswith("ended early: ")]
    assert told.startswith("ended early: the first 3 trials failed alike: FloatingPointError: train/loss became")
    check_invariants(tmp_path / "s", {})


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["the trials", pytest.param("the coordinator", marks=pytest.mark.slow)])
def test_fault_44_clocks_and_stopped_processes_declare_no_live_trial_dead(
    tmp_path: Path, small: list[str], arm: Arm, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    """Each of the hours that pass is longer than a trial may be stuck."""
    spec = spec_of(tmp_path, small, {"model.freeze_depth": {"values": [3, 4]}})
    clock, hours = Clock(), 0
    monkeypatch.setattr(state, "time", clock)
    if stopped == "the trials":  # which are looked at all the while
        monkeypatch.setattr(state, "_GLANCE", 7200.0)
    reached = arm(*(f"step *{key_at(spec, depth)} 2 hold" for depth in (3, 4)))

    def disturb(sweep: Sweep, result: Result | None) -> None:
        """In their second steps, stop the trials, or what is the same, do not look; put their files an hour off."""
        nonlocal hours
        pids = [trial.job.pid or 0 for trial in sweep.running]
        if reached.read_text().count("step ") < 4 or hours == 4:
            return
        for trial in sweep.running:
            for file, off in ((trial.folder / HEARTBEAT, 3600), (trial.folder / "log.txt", -3600)):
                os.utime(file, (time.time() + off,) * 2)
        if stopped == "the trials":
            for pid in pids:
                os.kill(pid, signal.SIGCONT if hours == 3 else signal.SIGSTOP)
            wait_for(lambda: hours == 3 or all(map(is_stopped, pids)))
        if hours == 3:
            arm()
        else:
            clock.ahead += 3600
        hours += 1

    sweep = run_sweep(spec, tmp_path / "s", Options(workers=2), watch=disturb)
    assert hours == 4
    assert [status for status, _ in ended(sweep).values()] == ["complete"] * 2
    assert sweep.notes == []
    assert len(terminal_records(tmp_path / "s")) == 2
    check_invariants(tmp_path / "s", {})


@pytest.mark.slow
def test_fault_44_a_coordinator_that_was_stopped_and_continued_declares_no_live_trial_dead(
    tmp_path: Path, small: list[str]
) -> None:
    file = sweep_file(tmp_path, {"model.freeze_depth": {"values": [4, 5]}})
    words = [*small[:-2], small[-1], "trainer.epochs=60"]
    process = start(
        "sweep", file, "--no-repeats", *words, "--workers", 2, "--out", tmp_path / "s", "--stuck-after", "20s"
    )
    wait_for(lambda: list((tmp_path / "s").glob(f"trials/*/{HEARTBEAT}")))
    process.send_signal(signal.SIGSTOP)
    time.sleep(22)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "no progress" not in said
    assert len(terminal_records(tmp_path / "s")) == 2
    check_invariants(tmp_path / "s", {})


def test_a_sweep_that_ended_early_does_not_wait_for_a_trial_that_was_to_start_again(
    tmp_path: Path, small: list[str], arm: Arm
) -> None:
    metric = {"name": "val/acc_best", "goal": "maximize", "target": 0.0}  # which any trial reaches
    spec = spec_of(tmp_path, small, {"model.freeze_depth": {"values": [5, 4, 3]}}, metric=metric)
    first, second, _ = planned_trials(spec, may_end_early=True)
    arm(f"step *{key_at(spec, first['model.freeze_depth'])} 1 kill")
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1))
    assert list(ended(sweep)) == [second["model.freeze_depth"]]
    assert sweep.ended == "val/acc_best reached its target 0"
    assert [folder.name for folder in (tmp_path / "s" / "trials").iterdir() if not (folder / "result.json").exists()]
    check_invariants(tmp_path / "s", {})


@pytest.mark.slow
def test_ctrl_c_while_the_server_of_trials_imports_is_no_traceback(tmp_path: Path, small: list[str]) -> None:
    file = sweep_file(tmp_path, {"model.freeze_depth": {"values": [5]}})
    process = start_anew("sweep", file, "--no-repeats", *small, "--out", tmp_path / "s")
    wait_for(lambda: any("forkserver" in command for command in commands_below(process.pid)))
    for pid in (process.pid, *commands_below(process.pid).values()):
        os.kill(pid, signal.SIGINT)  # as a terminal does, to all of them
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "to continue, run the same command again" in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_fault_26_a_coordinator_that_is_taken_back_saves_its_trials(
    tmp_path: Path, small: list[str], number: signal.Signals
) -> None:
    file = sweep_file(tmp_path, {"model.freeze_depth": {"values": [5]}})
    process = start("sweep", file, "--no-repeats", *small, "trainer.epochs=1000", "--out", tmp_path / "a [/b]")
    wait_for(lambda: list((tmp_path / "a [/b]").glob(f"trials/*/{HEARTBEAT}")))
    process.send_signal(number)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert f"--out '{tmp_path}/a [/b]'" in said  # to be typed again as it is
    (record,) = (Result.load(trial) for trial in (tmp_path / "a [/b]" / "trials").iterdir())
    assert record.status == "interrupted"


def commands_below(parent: int) -> dict[str, int]:
    """Of the processes that `parent` started: the command line, and the process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found[(folder / "cmdline").read_text().replace(chr(0), " ")] = int(folder.name)
    return found


@pytest.mark.slow
def test_a_second_coordinator_is_refused_until_the_first_has_gone(tmp_path: Path, small: list[str]) -> None:
    spec = spec_of(tmp_path, small, DEPTHS)
    refused: list[str] = []

    def second(sweep: Sweep, result: Result | None) -> None:
        if result is not None and not refused:
            with pytest.raises(Refused) as caught:
                run_sweep(spec, tmp_path / "s")
            refused.append(str(caught.value))

    run_sweep(spec, tmp_path / "s", watch=second)
    assert refused == [f"the sweep in {tmp_path / 's'} is running already; wait for it, or give --out another folder"]
    assert len(run_sweep(spec, tmp_path / "s").finished) == 3


def test_time_counts_as_idle_only_while_it_was_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    trial = Running({}, tmp_path, job=Pretended(0))
    for moment, idle in ((0, 0), (1, 0), (2, 0)):
        now[0] = moment
        trial.note(heartbeat_of(tmp_path), wait=0)
        assert trial.idle == idle  # nothing has begun
    (tmp_path / "log.txt").touch()
    for moment, idle in ((3, 0), (4, 1), (4.5, 1.5), (4000, 3.5), (4001, 4.5)):
        now[0] = moment
        trial.note(heartbeat_of(tmp_path), wait=0)
        assert trial.idle == idle
    (tmp_path / HEARTBEAT).write_text("1\n")
    trial.note(heartbeat_of(tmp_path), wait=0)
    assert trial.idle == 0
    now[0] = 5000
    trial.note(heartbeat_of(tmp_path), wait=10)
    assert trial.idle == 12  # a cluster is looked at more rarely
