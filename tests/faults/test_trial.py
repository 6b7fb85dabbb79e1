"""Rows 12, 19, 25, 26 and 36 to 38 of FAULTS.md: what a trial survives, and what it says when it does not."""

import csv
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.compose import compose_config
from finetune.data import pixels
from finetune.errors import Refused
from finetune.records.layout import CHECKPOINT, HEARTBEAT, LAST, LOG
from finetune.records.result import Result, outcome
from finetune.sweep import launch
from finetune.sweep.children import CONTEXT
from finetune.sweep.launch import LocalLauncher, Slot, _run_trial
from finetune.sweep.run import run_sweep
from finetune.sweep.state import Options, Sweep
from finetune.train import run_trial
from finetune.trial.module import FineTune
from finetune.trial.run import train
from tests.faults.invariants import (
    PATIENCE,
    check_invariants,
    living,
    run,
    spec_of,
    start_anew,
    sweep_file,
    terminal_records,
    wait_for,
)
from tests.forked import Command
from tests.test_wandb import start as start_with
from tests.wandb_server import wandb_server

Arm = Callable[..., Path]
EVERYTHING = ["model.freeze_depth=3", "augment=strong", "model.head.dropout=0.3", "trainer.save_every=0"]
"""All that draws random numbers; saved after each of the three batches of an epoch."""
SETTINGS = {
    "adamw": EVERYTHING,
    "sgd": [*EVERYTHING, "model.freeze_depth=0", "optim=sgd", "trainer.grad_clip=0.5", "optim.lr=0.01"],
    "partly frozen": [*EVERYTHING, "model.freeze_depth=7", "model.freeze_unit=tensor", "model.frozen_bn=stats"],
    "stored": ["model.freeze_depth=4", "cache.mode=on", "model.head.hidden=[8]", "trainer.save_every=0"],
    "several steps at once": [
        *("model.freeze_depth=all", "cache.mode=on", "trainer.epochs=6"),
        *("model.head.hidden=[8]", "model.head.dropout=0.3", "trainer.save_every=0"),
    ],
    "metric": [
        *EVERYTHING,
        "trainer.metric=val/f1",
        "trainer.patience=1",
        "data.class_weights=[1,2,3]",
        "augment.mixup=0.4",
        "augment.cutmix=1",
        "model.head.init=probe",
        "optim.layer_decay=0.7",
        "optim.decay_norms=false",
        "optim.lr=0.01",
    ],
    "window": [*EVERYTHING[1:], "model.freeze_depth=all", "model.train_units=[1,3]", "optim.head_lr=3"],
    "patience": [*EVERYTHING, "model.freeze_depth=all", "trainer.patience=1", "optim.lr=1e-12", "trainer.epochs=9"],
}


def attempt(words: list[str], out: Path) -> int | None:
    """Run a trial as a sweep does; its exit code."""
    launcher = LocalLauncher([Slot(None, 1)])
    (job,) = launcher.start([(words, out)])
    return ended(launcher, job)


def ended(launcher: LocalLauncher, job: Any) -> int | None:
    wait_for(lambda: launcher.wait([job]) or job.exitcode is not None)  # type: ignore[func-returns-value]
    return job.exitcode


def steps(reached: Path) -> int:
    """Batches begun since the last call of `arm`."""
    return sum(line.startswith("step ") for line in reached.read_text().splitlines())


def same(one: Path, other: Path) -> None:
    """Record and checkpoint are equal to the bit."""
    assert outcome(Result.load(one)) == outcome(Result.load(other))
    first, second = (safetensors.torch.load_file(folder / CHECKPOINT) for folder in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    for folder in (one, other):
        assert not (folder / LAST).exists()
        assert not (folder / HEARTBEAT).exists()
        assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_fault_19_a_trial_killed_in_any_step_loses_none_that_was_saved(
    small: list[str], tmp_path: Path, arm: Arm, settings: str
) -> None:
    words = [*small, *SETTINGS[settings]]
    reached = arm()
    assert attempt(words, tmp_path / "whole") == 0, (tmp_path / "whole" / LOG).read_text()
    total = steps(reached)
    assert total == 6
    for killed in (1, 2, 3, 4, 6) if settings == "adamw" else (3, 4, 5):
        out = tmp_path / str(killed)
        arm(f"step {out} {killed} kill")
        assert attempt(words, out) == -signal.SIGKILL
        reached = arm()
        assert attempt(words, out) == 0, (out / LOG).read_text()
        assert steps(reached) == total - max(0, killed - 2)  # the last saved batch is repeated
        same(tmp_path / "whole", out)


@pytest.mark.slow
def test_a_trial_killed_twice_goes_on_from_the_second_save(small: list[str], tmp_path: Path, arm: Arm) -> None:
    words, out = [*small, *SETTINGS["adamw"]], tmp_path / "r"
    assert attempt(words, tmp_path / "whole") == 0
    for _ in range(2):
        arm(f"step {out} 3 kill")  # in the third step of this attempt
        assert attempt(words, out) == -signal.SIGKILL
    reached = arm()
    assert attempt(words, out) == 0
    assert steps(reached) == 4
    same(tmp_path / "whole", out)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "cut", "another trial"])
def test_a_trial_starts_over_where_its_last_checkpoint_cannot_be_used(
    small: list[str], tmp_path: Path, arm: Arm, damage: str
) -> None:
    words, out = [*small, *SETTINGS["adamw"]], tmp_path / "r"
    arm(f"step {out} 3 kill")
    attempt([*words, "seed=1"] if damage == "another trial" else words, out)
    data = bytearray((out / LAST).read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    (out / LAST).write_bytes(data[:-1] if damage == "cut" else data)
    reached = arm()
    assert attempt(words, out) == 0
    assert steps(reached) == 6
    why = "it belongs to another trial" if damage == "another trial" else "its checksum differs"
    assert f"{LAST} cannot be used ({why}" in (out / LOG).read_text()
    assert attempt(words, tmp_path / "whole") == 0
    same(tmp_path / "whole", out)


@pytest.mark.slow
def test_the_file_of_metrics_has_every_epoch_of_a_trial_that_goes_on(
    small: list[str], tmp_path: Path, arm: Arm
) -> None:
    words, out = [*small, *SETTINGS["adamw"], "logger=csv"], tmp_path / "r"
    assert attempt(words, tmp_path / "whole") == 0
    arm(f"step {out} 6 kill")
    attempt(words, out)
    arm()
    assert attempt(words, out) == 0
    rows = []
    for folder in (tmp_path / "whole", out):
        with (folder / "metrics.csv").open() as file:
            rows.append(list(csv.DictReader(file)))
    assert len(rows[0]) == len(rows[1]) == 2
    for whole, resumed in zip(*rows, strict=True):  # what Lightning writes itself went through 32 bits
        assert {k: float(v) for k, v in resumed.items()} == pytest.approx({k: float(v) for k, v in whole.items()})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the client that is killed
def test_the_new_wandb_run_of_a_trial_that_goes_on_has_every_epoch(small: list[str], tmp_path: Path, arm: Arm) -> None:
    out = tmp_path / "r"
    words = [*small, *SETTINGS["adamw"], "trainer.epochs=3", "logger=wandb", f"out={out}"]
    with wandb_server() as server:
        arm(f"step {out} 8 kill")
        for code in (-signal.SIGKILL, 0):
            process = start_with(server, tmp_path, "finetune.train", *words)
            text, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == code, text
            arm()
        killed, whole = server.runs.values()
    history = Result.load(out).history
    assert len(history) == 3
    assert [row["val/acc"] for row in whole.history if "val/acc" in row] == pytest.approx(
        [e["val/acc"] for e in history]
    )
    assert killed.exitcode != 0


def signalled(words: list[str], out: Path, number: int, arm: Arm, step: int) -> int | None:
    """Run a trial and send it a signal while it is in the step of that number; its exit code."""
    reached = arm(f"step {out} {step} hold")
    launcher = LocalLauncher([Slot(None, 1)])
    (job,) = launcher.start([(words, out)])
    wait_for(lambda: steps(reached) == step)
    os.kill(job.pid or 0, number)
    arm()  # only then does the step go on
    return ended(launcher, job)


STOPPING = "stopping after this batch"


STOPS = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGHUP: 143, signal.SIGINT: 130}
AT = [(signal.SIGTERM, 2), (signal.SIGTERM, 3), (signal.SIGUSR1, 2), (signal.SIGHUP, 3), (signal.SIGINT, 2)]
"""Signal and step; the third is the last of an epoch."""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "step"), AT)
def test_fault_26_a_preempted_trial_saves_at_the_end_of_the_batch_and_goes_on(
    small: list[str], tmp_path: Path, arm: Arm, number: signal.Signals, step: int
) -> None:
    words, out = [*small, *SETTINGS["adamw"], "trainer.save_every=1000"], tmp_path / "r"
    assert signalled(words, out, number, arm, step) == STOPS[number]
    record = Result.load(out)
    assert (record.status, record.reason) == ("interrupted", f"stopped by a signal (exit {STOPS[number]})")
    assert (out / LAST).exists()
    assert not (out / HEARTBEAT).exists()
    assert f"to go on: python -m finetune.train {' '.join(map(str, small))}" in (out / LOG).read_text()
    reached = arm()
    assert attempt(words, out) == 0
    assert steps(reached) == 6 - step + 1
    assert attempt(words, tmp_path / "whole") == 0
    same(tmp_path / "whole", out)


def _ended_in_validation(words: list[str], batch: int) -> None:
    """A trial that gets SIGTERM in a batch of its second validation; a `batch` beyond the last is the end of it."""
    seen, validate, conclude = 0, FineTune.validation_step, FineTune.on_validation_epoch_end

    def note(self: FineTune, *given: Any) -> None:
        nonlocal seen
        if self.current_epoch == 1:
            seen += 1
            if seen == batch:
                os.kill(os.getpid(), signal.SIGTERM)
        validate(self, *given)

    def end(self: FineTune) -> None:
        conclude(self)
        if self.current_epoch == 1 and batch > seen:
            os.kill(os.getpid(), signal.SIGTERM)

    FineTune.validation_step, FineTune.on_validation_epoch_end = note, end  # type: ignore[method-assign]
    sys.exit(run_trial(words))


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "left"), [(1, 4), (2, 4), (3, 3)])
def test_fault_26_a_signal_while_validating_loses_no_training(
    small: list[str], tmp_path: Path, arm: Arm, batch: int, left: int
) -> None:
    words = [*small, *SETTINGS["adamw"], "trainer.save_every=1000", "trainer.epochs=3"]
    out = tmp_path / "r"
    child = CONTEXT.Process(target=_ended_in_validation, args=([*words, f"out={out}"], batch))
    child.start()
    child.join()
    assert child.exitcode == 143
    reached = arm()
    assert attempt(words, out) == 0
    assert steps(reached) == left  # one of them again
    assert attempt(words, tmp_path / "whole") == 0
    same(tmp_path / "whole", out)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_fault_25_ctrl_c_saves_the_trial_and_a_second_one_does_not_wait(
    small: list[str], tmp_path: Path, arm: Arm, times: int
) -> None:
    out = tmp_path / "r"
    words = [*small, *SETTINGS["stored"], "trainer.save_every=1000", f"out={out}"]
    reached = arm(f"step {out} 4 hold")
    process = Command("finetune.train", words, tmp_path, os.environ)
    wait_for(lambda: steps(reached) == 4)
    os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: f"{STOPPING}; Ctrl-C again to stop at once" in process.said())
    if times == 2:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE) == -signal.SIGINT  # which a shell calls 130; the step had not ended
        assert not living(str(out))
        return
    arm()
    text, _ = process.communicate(PATIENCE)
    assert not living(str(out))
    assert process.returncode == 130
    (command,) = re.findall("to go on: python -m finetune.train (.*)", text)
    reached = arm()
    again = Command("finetune.train", shlex.split(command), tmp_path, os.environ)
    text, _ = again.communicate(PATIENCE)
    assert again.returncode == 0, text
    assert "going on in epoch 2 after batch 1" in text
    assert steps(reached) == 3
    arm()
    assert attempt(words[:-1], tmp_path / "whole") == 0
    same(tmp_path / "whole", out)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_fault_25_ctrl_c_saves_the_trials_of_a_sweep_and_prints_the_command_that_continues(
    small: list[str], tmp_path: Path, arm: Arm, times: int
) -> None:
    folder = tmp_path / "s"
    file = sweep_file(tmp_path, {"seed": {"values": [0, 1]}})
    words = [
        "sweep",
        file,
        "--no-repeats",
        *small,
        *EVERYTHING,
        "trainer.save_every=1000",
        "--out",
        folder,
        "--workers",
        "1",
    ]
    reached = arm("step * 4 hold")
    process = start_anew(*words)
    wait_for(lambda: steps(reached) == 4)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the trial gets it too
    wait_for(lambda: STOPPING in next(folder.glob(f"trials/*/{LOG}")).read_text())
    if times == 1:
        arm()
    else:
        os.killpg(process.pid, signal.SIGINT)  # ends the step that would not end
    text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert f"to continue, run the same command again: cli.py {' '.join(map(str, words))}" in text
    assert not living(str(folder))
    assert terminal_records(folder) == {}
    assert len(list(folder.glob(f"trials/*/{LAST}"))) == (times == 1)
    reached = arm()
    code, text = run(*words)
    assert code == 0, text
    assert steps(reached) == 12 - (3 if times == 1 else 0)
    check_invariants(folder, {})
    assert len(terminal_records(folder)) == 2
    assert not list(folder.rglob(LAST))


@pytest.mark.slow
def test_fault_36_a_trial_out_of_memory_says_what_it_needed_and_the_next_has_a_fresh_process(
    small: list[str], tmp_path: Path, arm: Arm
) -> None:
    spec = spec_of(tmp_path, [*small, "model.freeze_depth=4"], {"seed": {"values": [0, 1]}})
    processes = dict[str, int]()

    def watch(sweep: Sweep, ended: Result | None) -> None:
        processes.update({trial.folder.name: trial.job.pid for trial in sweep.running})  # type: ignore[attr-defined]

    arm("step * 2 out_of_memory")
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1), watch=watch)
    failed, complete = sweep.results
    assert (failed.status, complete.status) == ("failed", "complete")
    assert re.fullmatch(
        r"OutOfMemoryError: CUDA out of memory\. Tried to allocate 2\.00 GiB\. With data\.batch_size=8 and "
        r"model\.freeze_depth=4, \d+ MiB were in use at the most; lower data\.batch_size or freeze more",
        failed.reason,
    )
    assert len(set(processes.values())) == len(processes) == 2
    arm()
    before = terminal_records(tmp_path / "s")
    run_sweep(spec, tmp_path / "s", Options(workers=1))
    check_invariants(tmp_path / "s", before)
    assert len(before) == 2


@pytest.mark.parametrize("loss", ["inf", "nan"])
def test_fault_37_a_loss_that_is_not_finite_stops_the_trial_within_a_step(
    small: list[str], tmp_path: Path, arm: Arm, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    real, calls = F.cross_entropy, 0

    def spoilt(*given: Any, **named: Any) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return real(*given, **named) * (float(loss) if torch.is_grad_enabled() and calls == 4 else 1)

    monkeypatch.setattr(F, "cross_entropy", spoilt)
    words = [*small, "trainer.epochs=3", "model.freeze_depth=4"]
    config = compose_config([*words, f"out={tmp_path / 'r'}"])
    reached = arm()
    with pytest.raises(FloatingPointError, match=f"train/loss became {loss} in epoch 1; lower optim.lr"):
        train(config, words)
    assert steps(reached) == 5  # it is looked at in the step after, so that a GPU need not wait
    record = Result.load(tmp_path / "r")
    assert (record.status, len(record.history)) == ("failed", 1)
    assert record.reason.startswith(f"FloatingPointError: train/loss became {loss}")
    assert not {CHECKPOINT, LAST} & {path.name for path in (tmp_path / "r").iterdir()}


@pytest.mark.slow
def test_fault_37_a_trial_that_diverged_is_never_the_best(small: list[str], tmp_path: Path) -> None:
    spec = spec_of(tmp_path, [*small, "model.freeze_depth=0"], {"optim.lr": {"values": [1e30, 1e-12]}})
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1))
    (lost,) = (trial.result for trial in sweep.finished if trial.params["optim.lr"] == 1e30)
    assert lost.status == "failed"
    replace(lost, val_acc_best=1.0, best_epoch=0, history=[{"epoch": 0, "val/acc": 1.0}]).save(
        tmp_path / "s" / "trials" / lost.key
    )
    before = terminal_records(tmp_path / "s")
    again = run_sweep(spec, tmp_path / "s", Options(workers=1))
    assert again.best is not None
    assert again.best.key != lost.key
    check_invariants(tmp_path / "s", before)


def _silent_trial(*given: Any) -> None:
    """A trial of a changed module, which leaves the validation loss out of what it logs."""

    def forget(self: FineTune) -> None:
        for epoch in self.history:
            del epoch["val/loss"]

    FineTune.on_train_end = forget  # type: ignore[method-assign]
    sys.exit(_run_trial(*given))


@pytest.mark.slow
def test_fault_38_a_metric_that_was_never_logged_fails_the_trial_and_lists_those_that_were(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = {"name": "val/loss", "goal": "minimize"}
    spec = spec_of(tmp_path, [*small, "model.freeze_depth=5"], {"seed": {"values": [0, 1]}}, metric=metric)
    monkeypatch.setattr(launch, "_run_alone", _silent_trial)
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1))
    reason = "val/loss was never logged; logged were lr, train/acc, train/loss, val/acc"
    assert [(result.status, result.reason) for result in sweep.results] == [("failed", reason)] * 2
    assert sweep.best is None
    before = terminal_records(tmp_path / "s")
    run_sweep(spec, tmp_path / "s", Options(workers=1))
    check_invariants(tmp_path / "s", before)
    assert not list((tmp_path / "s").rglob(CHECKPOINT))


def test_fault_38_a_name_that_no_trial_logs_is_refused_with_those_that_all_do(small: list[str], tmp_path: Path) -> None:
    metric = {"name": "val/accuracy", "goal": "maximize"}
    logged = "val/acc_best, val/acc, val/loss, train/acc, train/loss"
    with pytest.raises(Refused, match=f"metric.name 'val/accuracy' is not reported; choose from {logged}"):
        spec_of(tmp_path, small, {"seed": {"values": [0]}}, metric=metric)


def remove(path: Path) -> None:
    path.unlink()


def change(path: Path) -> None:
    """Other pixels, with the time of change kept."""
    found = path.stat()
    path.write_bytes((path.parent / "0.png").read_bytes())
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [remove, change])
@pytest.mark.parametrize("on_bad", ["refuse", "skip"])
def test_fault_12_a_file_that_changes_while_the_images_are_read_is_named(
    small: list[str],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    disturb: Callable[[Path], None],
    on_bad: str,
) -> None:
    victim, decode = images / "train/class1/7.png", pixels.decode
    words = [*small, f"cache.dir={tmp_path / 'cache'}", f"data.on_bad={on_bad}", f"out={tmp_path / 'r'}"]

    def late(path: Path, *levels: Any) -> Any:
        if path == images / "train/class0/0.png" and not done:
            done.append(disturb(victim))
        return decode(path, *levels)

    done: list[None] = []
    kept = victim.read_bytes(), victim.stat().st_mtime_ns
    monkeypatch.setattr(pixels, "decode", late)
    with pytest.raises(Refused, match=f"^{victim} was changed or removed while the images were read"):
        train(compose_config(words), words)
    assert not (tmp_path / "r").exists()
    victim.write_bytes(kept[0])
    assert train(compose_config(words), words).status == "complete"  # what it left does no harm
    assert len(Result.load(tmp_path / "r").warnings) == 0


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [remove, change])
def test_fault_12_a_file_that_changes_under_a_running_sweep_does_not_matter_to_its_store(
    small: list[str], images: Path, tmp_path: Path, disturb: Callable[[Path], None]
) -> None:
    parameters = {"seed": {"values": [0, 1]}}
    spec = spec_of(tmp_path, [*small, "model.freeze_depth=5", f"cache.dir={tmp_path / 'cache'}"], parameters)
    undisturbed = run_sweep(spec, tmp_path / "whole", Options(workers=1))

    def watch(sweep: Sweep, ended: Result | None) -> None:
        if ended is not None and len(sweep.finished) == 1:
            disturb(images / "train/class1/7.png")

    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1), watch=watch)
    assert [outcome(r) for r in sweep.results] == [outcome(r) for r in undisturbed.results]
    assert not any(result.status == "failed" for result in sweep.results)


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [remove, change])
def test_fault_12_a_file_that_changes_under_a_running_sweep_without_a_store_fails_the_trial_by_name(
    small: list[str], images: Path, tmp_path: Path, disturb: Callable[[Path], None]
) -> None:
    victim, cache = images / "train/class1/7.png", tmp_path / "cache"
    parameters = {"seed": {"values": [0, 1]}}
    spec = spec_of(tmp_path, [*small, "model.freeze_depth=5", f"cache.dir={cache}"], parameters)

    def watch(sweep: Sweep, ended: Result | None) -> None:
        if ended is not None and len(sweep.finished) == 1:
            disturb(victim)
            shutil.rmtree(cache)

    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1), watch=watch)
    whole, failed = sweep.results
    assert (whole.status, failed.status) == ("complete", "failed")
    named = victim.parent if disturb is remove else victim
    assert f"{named} was the last to change: restore it" in failed.reason
    before = terminal_records(tmp_path / "s")
    assert len(before) == 2


@pytest.mark.slow
def test_fault_19_a_sweep_starts_a_killed_trial_again_from_its_last_save(
    small: list[str], tmp_path: Path, arm: Arm
) -> None:
    spec = spec_of(tmp_path, [*small, *EVERYTHING, "data.batch_size=4"], {"seed": {"values": [0, 1]}})
    reached = arm()
    whole = run_sweep(spec, tmp_path / "whole", Options(workers=1))
    assert steps(reached) == 12
    reached = arm("step */s/trials/* 5 kill")
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1))
    assert steps(reached) == 12 + 2  # the step that was killed, and the saved one once more
    assert {r.key: outcome(r) for r in sweep.results} == {r.key: outcome(r) for r in whole.results}
    before = terminal_records(tmp_path / "s")
    run_sweep(spec, tmp_path / "s", Options(workers=1))
    check_invariants(tmp_path / "s", before)
