import gc
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from finetune.compose import compose_config
from finetune.config import flat, key_of, trial_key
from finetune.errors import Refused
from finetune.records.layout import CHECKPOINT, HEARTBEAT, LAST, LOG, RECORD, STOP
from finetune.records.metric import Incumbent
from finetune.records.ranking import ACCURACY, Objective
from finetune.records.read import finished_record
from finetune.records.result import Result, outcome
from finetune.report.winner import find_winner
from finetune.sharing.facts import Facts, ImageFacts, SplitFacts
from finetune.sweep import coordinator
from finetune.sweep.children import CONTEXT
from finetune.sweep.folder import alone, claim, refuse_another
from finetune.sweep.launch import LocalLauncher, Slot, local_slots
from finetune.sweep.prepare import Prepared
from finetune.sweep.records import trial_settings
from finetune.sweep.run import in_order, run_sweep
from finetune.sweep.search import Params, Search, planned_trials
from finetune.sweep.spec import SweepSpec
from finetune.sweep.state import Options, Sweep
from finetune.trial.run import train
from tests.faults.invariants import PATIENCE, Clock, living, start, sweep_file, wait_for
from tests.sweep.conftest import Pretender, spec_of

Arm = Callable[..., Path]

GRID = {
    "model.freeze_depth": {"values": [2, 5]},
    "optim.lr": {"values": [0.001, 0.01]},
}


def records(folder: Path) -> dict[str, dict[str, object]]:
    return {file.parent.name: outcome(Result.load(file.parent)) for file in folder.glob(f"trials/*/{RECORD}")}


def test_a_grid_leaves_one_record_a_trial_and_only_the_best_checkpoint(tmp_path: Path, small: list[str]) -> None:
    sweep = run_sweep(spec_of(tmp_path, small, GRID), tmp_path / "s", Options(workers=2))
    found = records(tmp_path / "s")
    assert len(found) == 4
    assert {(r["freeze_depth"], r["params"]["optim.lr"]) for r in found.values()} == {
        (k, lr) for k in (2, 5) for lr in (0.001, 0.01)
    }
    assert all(r["status"] == "complete" and r["key"] == key for key, r in found.items())
    assert sweep.best is not None
    assert sweep.best.val_acc_best == max(r["val_acc_best"] for r in found.values())
    assert [p.parent.name for p in (tmp_path / "s").glob(f"trials/*/{CHECKPOINT}")] == [sweep.best.key]


@pytest.mark.slow
def test_workers_do_not_change_the_trials_and_nothing_runs_twice(tmp_path: Path, small: list[str]) -> None:
    spec = spec_of(tmp_path, small, GRID)
    run_sweep(spec, tmp_path / "one", Options(workers=1))
    run_sweep(spec, tmp_path / "two", Options(workers=2))
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert {key: record["params"] for key, record in one.items()} == {k: record["params"] for k, record in two.items()}
    for key, record in one.items():  # a trial alone has all the threads, whose sums differ in the last bits
        assert record["last"]["train/loss"] == pytest.approx(two[key]["last"]["train/loss"], rel=1e-3)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").glob(f"trials/*/{RECORD}")}
    ended: list[Result] = []
    again = run_sweep(spec, tmp_path / "one", watch=lambda sweep, result: ended.append(result) if result else None)
    assert (len(again.finished), ended) == (4, [])
    assert {file: file.stat().st_mtime_ns for file in times} == times


@pytest.mark.slow
def test_the_quick_settings_of_a_trial_are_those_of_its_composed_config(tmp_path: Path, small: list[str]) -> None:
    space = {
        "optim.lr": {"values": [1, 0.5, 1.0e-5]},
        "trainer.precision": {"values": [32, "bf16"]},
        "trainer.patience": {"values": [None, 3]},
        "model.head.hidden": {"values": [[], [256, 128]]},
        "model.freeze_depth": {"values": ["all", 5]},
        "data.root": {"values": ["a b", "c=d", "it's"]},
    }
    spec = spec_of(tmp_path, small, space)
    settings_of, search = trial_settings(spec), Search(spec)
    trials = [params for i in range(144) if (params := search.propose()) is not None and i % 7 == 0]
    for params in trials:
        composed = flat(compose_config([*spec.overrides(params), "out=x"]))
        assert {**settings_of(params), "out": "x"} == composed
        assert key_of(settings_of(params)) == key_of(composed)
    assert len({key_of(settings_of(params)) for params in trials}) == len(trials) == 21


class LettingGo:
    """Has trials wait in their last batch until the sweep has told them to stop, however slow it is in that.

    A batch has several steps where a head trains alone on stored features: here all three of an epoch.
    """

    def __init__(self, arm: Arm, spec: SweepSpec, last_batch: int, losers: Sequence[Params]):
        self._arm = arm
        self._held = [f"step *{key_of(trial_settings(spec)(params))} {last_batch} hold" for params in losers]
        arm(*self._held)

    def __call__(self, sweep: Sweep, ended: Result | None) -> None:
        for trial in sweep.running:
            if (trial.folder / STOP).exists():
                self._held = [line for line in self._held if trial.folder.name not in line]
                self._arm(*self._held)


@pytest.mark.slow
def test_the_worst_trials_are_stopped_early_and_say_why(tmp_path: Path, small: list[str], arm: Arm) -> None:
    losers = [{"model.freeze_depth": 5, "optim.lr": rate} for rate in (1e-9, 1e-10)]
    space = {"model.freeze_depth": {"values": [5]}, "optim.lr": {"values": [0.01, 1e-9, 1e-10]}}
    stopping = {"type": "hyperband", "min_iter": 1, "eta": 3}
    spec = spec_of(tmp_path, small, space, early_terminate=stopping)
    spec = replace(spec, fixed=(*small, "trainer.epochs=12"), metric="val/loss", goal="minimize")
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1), watch=LettingGo(arm, spec, 12, losers))
    first, *others = sweep.results
    assert (first.status, len(first.history)) == ("complete", 12)
    for result in others:
        assert result.status == "pruned"
        assert len(result.history) < 12
        assert re.fullmatch(r"stopped at epoch \d+: 1\.\d+ above \d\.\d+", result.reason)
    again = run_sweep(spec, tmp_path / "s", Options(workers=1))
    assert again.results == sweep.results


@pytest.mark.slow
def test_a_sweep_with_a_margin_repeats_what_decides_and_keeps_the_winners_model(
    tmp_path: Path, small: list[str]
) -> None:
    space = {"optim.lr": {"values": [0.02, 0.001]}, "model.freeze_depth": {"values": [3, 5]}}
    spec = spec_of(tmp_path, small, space)
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1, margin=0.02))
    assert sweep.repeats is not None
    assert sweep.repeats.done
    repeats = [result for result in sweep.results if result.seed != 0]
    assert {result.seed for result in repeats} >= {1, 2, 3}
    assert len(repeats) == sum(sweep.repeats.wanted.values())

    winner = find_winner(tmp_path / "s")
    assert 0 not in winner.group.seeds
    kept = [file.parent.name for file in (tmp_path / "s" / "trials").glob(f"*/{CHECKPOINT}")]
    assert kept == [winner.best.key]

    again = run_sweep(spec, tmp_path / "s", Options(workers=1, margin=0.02))
    assert {outcome(r)["key"] for r in again.results} == {outcome(r)["key"] for r in sweep.results}
    plain = run_sweep(spec, tmp_path / "s", Options(workers=1))
    assert len(plain.finished) == 4, "without a margin the file's trials are all"


def test_trials_of_one_cut_run_side_by_side_unless_the_sweep_may_end_early(tmp_path: Path, small: list[str]) -> None:
    space = {"optim.lr": {"values": [0.1, 0.01]}, "model.freeze_depth": {"values": [1, "all", 3]}}
    spec = spec_of(tmp_path, small, space)
    plain = Sweep(spec, tmp_path, 6, ACCURACY)
    ordered = list(in_order(plain, 0, None))
    assert [trial["model.freeze_depth"] for trial in ordered] == ["all", "all", 3, 3, 1, 1]
    as_written = list(planned_trials(spec))
    assert sorted(map(str, ordered)) == sorted(map(str, as_written))
    assert [trial["model.freeze_depth"] for trial in as_written] == [1, "all", 3, 1, "all", 3]
    all_over = list(in_order(plain, 0, 600))
    assert sorted(map(str, all_over)) == sorted(map(str, as_written))
    assert {trial["model.freeze_depth"] for trial in all_over[:3]} == {1, 3, "all"}


@pytest.mark.slow
def test_a_sweep_prepares_once_what_its_trials_share(tmp_path: Path, small: list[str]) -> None:
    space = {"optim.lr": {"values": [0.1, 0.01, 0.001]}, "model.freeze_depth": {"values": [2, 5]}}
    spec = spec_of(tmp_path, [*small, f"cache.dir={tmp_path / 'cache'}", "cache.mode=on"], space)
    shown: list[tuple[str, int, int]] = []
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=2), show=lambda *step: shown.append(step))
    stores = {path.parent.name for path in (tmp_path / "cache" / "activations").glob("*/manifest.json")}
    assert len(stores) == 4  # two cuts of two splits
    assert [(what.partition(",")[0], done) for what, done, total in shown if done == total] == [
        ("decoding train images", 24),
        ("decoding val images", 12),
        ("frozen layers", 24),
        ("frozen layers", 12),
    ]
    for result in sweep.results:
        assert (result.cache["train"], result.cache["val"]) == ("stored", "stored")
        assert result.cache["saved_seconds"] > 0
        log = (tmp_path / "s" / "trials" / result.key / LOG).read_text()
        assert "frozen layers" not in log
        assert "decoding" not in log


def test_only_a_trial_that_is_better_than_the_incumbent_writes_a_checkpoint(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr("finetune.trial.folder.save_checkpoint", lambda path, *rest: written.append(path))
    words = [*small, "model.freeze_depth=5", "trainer.epochs=1"]
    for name, value in (("none", None), ("low", 0.0), ("high", 1.0)):
        config = compose_config([*words, f"out={tmp_path / name}"])
        train(config, words, incumbent=None if value is None else Incumbent("val/acc_best", "maximize", value))
    assert [path.parent.name for path in written] == ["none", "low"]


@pytest.mark.slow
def test_a_target_ends_the_search_and_a_budget_interrupts_it(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = {"name": "val/acc_best", "goal": "maximize", "target": 0.0}
    spec = spec_of(tmp_path, small, GRID, metric=metric)
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1))
    assert (len(sweep.finished), sweep.ended) == (1, "val/acc_best reached its target 0")
    clock = Clock()
    monkeypatch.setattr(coordinator, "time", clock)

    def watch(sweep: Sweep, ended: Result | None) -> None:
        """An hour and more passes once the trial runs."""
        if any((trial.folder / HEARTBEAT).exists() for trial in sweep.running):
            clock.ahead = 4000

    endless = spec_of(tmp_path, small, {"trainer.epochs": {"values": [100_000]}})
    late = run_sweep(endless, tmp_path / "l", Options(budget=3600), watch=watch)
    assert (late.finished, late.ended, late.out_of_time) == ([], "the budget is spent", True)
    assert multiprocessing.active_children() == []


def test_a_budget_counts_from_the_start_of_the_command(
    tmp_path: Path, small: list[str], pretended: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    clock.ahead = 4000  # which preparing the images took
    monkeypatch.setattr(coordinator, "time", clock)
    late = run_sweep(spec_of(tmp_path, small, GRID), tmp_path / "s", Options(budget=3600))
    assert (late.finished, late.out_of_time) == ([], True)
    assert not list(tmp_path.glob("s/trials/*"))


@pytest.mark.parametrize("budget", [None, 3600.0])
def test_under_a_budget_nothing_is_stored_that_may_never_be_reached(
    tmp_path: Path, small: list[str], pretended: Pretender, monkeypatch: pytest.MonkeyPatch, budget: float | None
) -> None:
    stored: list[bool] = []

    def prepare(configs: list[object], stores: bool = True, *rest: object) -> Prepared:
        stored.append(stores)
        return Prepared("", ("pixels_labels",), ("weights",), ())

    monkeypatch.setattr("finetune.sweep.run.check_and_prepare", prepare)
    run_sweep(spec_of(tmp_path, small, GRID), tmp_path / "s", Options(budget=budget))
    assert any(stored) == (budget is None)


def test_a_race_keeps_its_order_under_a_budget(tmp_path: Path, small: list[str]) -> None:
    space = {"optim.lr": {"values": [0.1, 0.01]}, "model.freeze_depth": {"values": [1, "all", 3]}}
    spec = spec_of(tmp_path, small, space)
    race = Sweep(spec, tmp_path, 6, Objective(explored_by=0))
    for budget in (None, 600):
        trials = list(in_order(race, 0, budget))
        assert [trial["model.freeze_depth"] for trial in trials] == ["all", "all", 3, 3, 1, 1]
        assert [trial["optim.lr"] for trial in trials] == [0.1, 0.01] * 3

    loss = Sweep(replace(spec, metric="val/loss", goal="minimize"), tmp_path, 6, Objective(explored_by=0))
    assert {trial["model.freeze_depth"] for trial in list(in_order(loss, 0, 600))[:3]} == {1, 3, "all"}


@pytest.mark.slow
def test_a_sweep_that_may_end_early_starts_all_over_its_grid(tmp_path: Path, small: list[str]) -> None:
    spec = spec_of(tmp_path, small, GRID)
    for options, whole in ((Options(workers=1), [5, 5, 2, 2]), (Options(workers=1, budget=600), [5, 2, 5, 2])):
        sweep = run_sweep(spec, tmp_path / "s", options)  # the second takes the trials of the first
        assert [trial.params["model.freeze_depth"] for trial in sweep.finished] == whole


@pytest.mark.slow
def test_records_of_other_folders_count_where_the_settings_are_the_same(tmp_path: Path, small: list[str]) -> None:
    grid = {"model.freeze_depth": {"values": [4, 5]}}
    run_sweep(spec_of(tmp_path, small, grid), tmp_path / "a")
    by_hand = [*small, "trainer.epochs=1", "model.freeze_depth=3"]
    train(config := compose_config([*by_hand, f"out={tmp_path / 'runs' / 'x'}"]), by_hand)
    (tmp_path / "runs" / "x").rename(tmp_path / "runs" / trial_key(config))
    grown = spec_of(tmp_path, small, {"model.freeze_depth": {"values": [2, 3, 4, 5]}})
    with pytest.raises(Refused, match=r"--out ANOTHER --reuse .*/a"):
        run_sweep(grown, tmp_path / "a")
    ended: list[Result] = []
    sweep = run_sweep(
        grown,
        tmp_path / "b",
        Options(reuse=(tmp_path / "a", tmp_path / "runs")),
        watch=lambda sweep, result: ended.append(result) if result else None,
    )
    assert [result.freeze_depth for result in ended] == [2]
    assert [result.freeze_depth for result in sweep.results] == [5, 4, 3, 2]
    assert sweep.taken == 3
    assert len(records(tmp_path / "b")) == 4


@pytest.mark.slow
def test_the_same_images_under_another_path_are_the_same_sweep(
    tmp_path: Path, small: list[str], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"model.freeze_depth": {"values": [4, 5]}}
    monkeypatch.chdir(tmp_path)

    def at(root: str) -> SweepSpec:
        return spec_of(
            tmp_path, [*(word for word in small if not word.startswith("data.root")), f"data.root={root}"], grid
        )

    run_sweep(at("images"), tmp_path / "s")
    before = records(tmp_path / "s")
    for spelling in ("images/", "./images", str(images), f"{tmp_path}/../{tmp_path.name}/images//"):
        run_sweep(at(spelling), tmp_path / "s")
        assert records(tmp_path / "s") == before
    with pytest.raises(Refused, match=r"data.root was images and would now be .*--out ANOTHER --reuse"):
        run_sweep(at(str(tmp_path)), tmp_path / "s")

    images.rename(tmp_path / "moved")  # to another disk, say
    moved = run_sweep(at("moved"), tmp_path / "t", Options(reuse=(tmp_path / "s",)))
    assert moved.taken == 2
    assert {result.config["data.root"] for result in moved.results} == {"moved"}
    assert {result.key for result in moved.results} == {path.name for path in (tmp_path / "t" / "trials").iterdir()}
    shutil.copy(tmp_path / "moved/train/class0/0.png", tmp_path / "moved/train/class0/more.png")
    assert run_sweep(at("moved"), tmp_path / "u", Options(reuse=(tmp_path / "s",))).taken == 0


@pytest.mark.slow
def test_three_trials_that_fail_alike_end_the_sweep_until_asked_to_retry(tmp_path: Path, small: list[str]) -> None:
    grid = {"optim.lr": {"values": [1e30]}, "seed": {"values": [0, 1, 2, 3, 4]}}
    spec = spec_of(tmp_path, [*small, "model.freeze_depth=0"], grid)
    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1))
    assert len(sweep.finished) == 3
    assert sweep.ended.startswith("the first 3 trials failed alike: FloatingPointError: train/loss became")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob(f"s/trials/*/{RECORD}")}
    run_sweep(spec, tmp_path / "s", Options(workers=1))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob(f"s/trials/*/{RECORD}")} == before
    run_sweep(spec, tmp_path / "s", Options(workers=1, retry_failed=True))
    assert all(file.stat().st_mtime_ns > time for file, time in before.items())


def test_gpus_that_are_not_there_are_refused(tmp_path: Path, small: list[str]) -> None:
    with pytest.raises(Refused, match="--gpus 7: there is no GPU '7'; "):
        run_sweep(spec_of(tmp_path, small, GRID), tmp_path / "s", Options(gpus="7"))


def test_slots_share_gpus_and_cores() -> None:
    assert [slot.gpu for slot in local_slots(["0", "2"])] == ["0", "2"]
    assert [slot.gpu for slot in local_slots(["0", "2"], per_gpu=2)] == ["0", "2", "0", "2"]
    assert [slot.gpu for slot in local_slots([], workers=3)] == [None] * 3
    cores = len(os.sched_getaffinity(0))
    assert all(slot.threads == max(1, cores // 2) for slot in local_slots([], workers=2))


def test_a_trial_sees_the_gpu_of_its_slot_and_no_other(tmp_path: Path) -> None:
    launcher = LocalLauncher([Slot("3", 1), Slot("GPU-ab12", 1)])
    jobs = launcher.start([(["data.root=${oc.env:CUDA_VISIBLE_DEVICES}"], tmp_path / name) for name in ("a", "b")])
    while any(job.exitcode is None for job in jobs):
        launcher.wait(jobs)
    assert [job.exitcode for job in jobs] == [2, 2]
    assert "data.root=3 is not a folder" in (tmp_path / "a" / LOG).read_text()
    assert "data.root=GPU-ab12 is not a folder" in (tmp_path / "b" / LOG).read_text()


def test_a_failed_trial_is_recorded_and_the_others_go_on(tmp_path: Path, small: list[str]) -> None:
    grid = {"model.freeze_depth": {"values": [0]}, "optim.lr": {"values": [1e30, 0.001]}}
    sweep = run_sweep(spec_of(tmp_path, small, grid), tmp_path / "s", Options(workers=1))
    statuses = {result.params["optim.lr"]: (result.status, result.reason) for result in sweep.results}
    assert statuses[0.001] == ("complete", "")
    assert statuses[1e30][0] == "failed"
    assert "lower optim.lr" in statuses[1e30][1]


def test_a_trial_killed_from_outside_is_recorded_with_the_signal(tmp_path: Path, small: list[str]) -> None:
    spec = spec_of(tmp_path, small, {"trainer.epochs": {"values": [1000]}})

    def kill(sweep: Sweep, ended: Result | None) -> None:
        for trial in sweep.running:
            if (trial.folder / "progress.json").exists():
                os.kill(trial.job.pid or 0, signal.SIGKILL)

    sweep = run_sweep(spec, tmp_path / "s", Options(workers=1), watch=kill)
    reason = "killed by signal 9, at each of 3 starts"
    assert [(r.status, r.reason) for r in sweep.results] == [("failed", reason)]


@pytest.mark.slow
def test_random_and_bayes_run_their_cap(tmp_path: Path, small: list[str]) -> None:
    space = {
        "model.freeze_depth": {"values": [2, 4, 5]},
        "optim.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
    }
    for method in ("random", "bayes"):
        spec = spec_of(tmp_path, small, space, method=method, run_cap=3)
        sweep = run_sweep(spec, tmp_path / method, Options(workers=2))
        assert len(records(tmp_path / method)) == len(sweep.finished) == 3
        assert all(1e-4 <= r.params["optim.lr"] <= 1e-2 for r in sweep.results)
        again = run_sweep(spec, tmp_path / method, Options(workers=2))
        assert len(records(tmp_path / method)) == len(again.finished) == 3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model.freeze_depth": {"values": [3, 6]}}, r"freeze_depth=6 is out of range"),
        ({"optim.lr": {"values": [0.1, -1]}}, r"optim\.lr=-1\.0 is out of range"),
        ({"model.frozen_bn": {"values": ["eval", "evil"]}}, "did you mean eval"),
        ({"data.root": {"values": ["/no/such/folder"]}}, "is not a folder"),
    ],
)
def test_bad_values_are_refused_before_any_trial(
    tmp_path: Path, small: list[str], parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(Refused, match=message):
        run_sweep(spec_of(tmp_path, small, parameters), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_another_sweep_in_the_folder_is_left_alone(tmp_path: Path, small: list[str]) -> None:
    one = spec_of(tmp_path, small, {"model.freeze_depth": {"values": [5]}})
    run_sweep(one, tmp_path / "s")
    before = records(tmp_path / "s")
    other = spec_of(tmp_path, small, {"model.freeze_depth": {"values": [4, 5]}})
    with pytest.raises(Refused, match=r"holds a sweep whose model.freeze_depth was 5 and would now be 4, 5"):
        run_sweep(other, tmp_path / "s")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(Refused, match="holds other files and no sweep"):
        run_sweep(one, tmp_path / "mine")
    assert records(tmp_path / "s") == before


@pytest.mark.slow
def test_a_sweep_killed_at_five_random_moments_ends_with_the_records_of_an_undisturbed_one(
    tmp_path: Path, small: list[str]
) -> None:
    grid = {"optim.lr": {"values": [0.01, 0.001, 0.0001]}, "seed": {"values": list(range(10))}}
    spec = spec_of(tmp_path, [*small, "model.freeze_depth=5"], grid)
    run_sweep(spec, tmp_path / "whole", Options(workers=2))
    assert len(records(tmp_path / "whole")) == 30
    killed, moments = tmp_path / "killed", random.Random(7)
    words = ["sweep", tmp_path / "s.yaml", *spec.fixed, "--out", killed, "--workers", "2"]
    for _ in range(5):
        before, more = len(records(killed)), moments.randint(0, 4)
        process = start(*words)
        if more:
            wait_for(lambda goal=before + more: len(records(killed)) >= goal)  # type: ignore[misc]
        else:  # while it starts
            time.sleep(2 * moments.random())
        process.kill()
        process.communicate()
        assert not living(str(killed))
        assert len(records(killed)) < 30
    assert records(killed)
    run_sweep(spec, killed, Options(workers=2))
    assert records(killed) == records(tmp_path / "whole")
    assert not list(killed.rglob("*.tmp"))


def test_interrupting_a_sweep_stops_its_children_and_says_how_to_go_on(tmp_path: Path, small: list[str]) -> None:
    file = sweep_file(tmp_path, {"seed": {"values": [0, 1]}})
    process = start("sweep", file, *small, "trainer.epochs=1000", "--out", tmp_path / "s", "--workers", "2")
    wait_for(lambda: list(tmp_path.glob("s/trials/*/progress.json")))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(PATIENCE)
    assert process.returncode == 130
    assert "run the same command again: " in output
    assert f"sweep {file}" in output
    assert not living(str(tmp_path / "s"))
    assert all(finished_record(trial) is None for trial in (tmp_path / "s" / "trials").iterdir())


LR = {"optim.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}}


def begin(trial: Path, words: Sequence[str]) -> None:
    """What a trial killed in its second epoch leaves."""
    (trial / ".hydra").mkdir(parents=True)
    (trial / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(words)))
    (trial / LAST).touch()


def test_a_bayes_sweep_starts_a_dead_trial_again_and_no_other_twice(
    tmp_path: Path, small: list[str], pretended: Pretender
) -> None:
    spec = spec_of(tmp_path, small, LR, method="bayes", run_cap=4)
    pretended.status = lambda given: "complete" if len(pretended.started) > 1 else ""
    sweep = run_sweep(spec, tmp_path / "s")
    assert len(sweep.finished) == len(records(tmp_path / "s")) == 4
    first, *others, last = (repr(words) for words in pretended.started)
    assert first == last
    assert len({first, *others}) == 4


def test_a_bayes_sweep_goes_on_with_the_trials_that_were_under_way(
    tmp_path: Path, small: list[str], pretended: Pretender
) -> None:
    spec = spec_of(tmp_path, small, LR, method="bayes", run_cap=4)
    run_sweep(spec, tmp_path / "s", Options(), watch=_after(2))
    killed, interrupted = ({"optim.lr": lr} for lr in (0.0012345, 0.0054321))
    for params in (killed, interrupted):
        place = tmp_path / "s" / "trials" / key_of(trial_settings(spec)(params))
        begin(place, spec.overrides(params))
    example = Result.load(next((tmp_path / "s").glob(f"trials/*/{RECORD}")).parent)
    replace(example, key=place.name, status="interrupted", params=interrupted).save(place)
    pretended.started.clear()
    sweep = run_sweep(spec, tmp_path / "s")
    assert len(sweep.finished) == len(records(tmp_path / "s")) == 4
    assert sorted(words[-1] for words in pretended.started) == ["optim.lr=0.0012345", "optim.lr=0.0054321"]


def _after(trials: int) -> Callable[[Sweep, Result | None], None]:
    def stop(sweep: Sweep, ended: Result | None) -> None:
        if len(sweep.finished) == trials:
            sweep.ended = "enough"

    return stop


def test_a_bayes_sweep_asked_to_retry_runs_the_failed_trials_and_not_others(
    tmp_path: Path, small: list[str], pretended: Pretender
) -> None:
    spec = spec_of(tmp_path, small, LR, method="bayes", run_cap=4)
    pretended.status = lambda given: "failed" if len(pretended.started) == 2 else "complete"
    run_sweep(spec, tmp_path / "s")
    failed = pretended.started[1]
    pretended.started.clear()
    pretended.status = lambda given: "complete"
    run_sweep(spec, tmp_path / "s", Options(retry_failed=True))
    assert pretended.started == [failed]
    assert [record["status"] for record in records(tmp_path / "s").values()] == ["complete"] * 4


def test_failures_end_no_sweep_that_had_a_success(tmp_path: Path, small: list[str], pretended: Pretender) -> None:
    spec = spec_of(tmp_path, small, {"optim.lr": {"values": [0.1, 0.2, 0.3, 0.4, 0.5]}})
    pretended.status = lambda given: "failed" if float(given["optim.lr"]) < 0.35 else "complete"
    (success,) = run_sweep(spec_of(tmp_path, small, {"optim.lr": {"values": [0.4]}}), tmp_path / "one").results
    success.save(tmp_path / "s" / "trials" / success.key)
    claim(spec, tmp_path / "s", 0, ("pixels_labels", "weights"), 5, ACCURACY)
    assert len(run_sweep(spec, tmp_path / "s").finished) == 5


def test_records_that_another_rule_or_other_labels_or_weights_made_do_not_count(
    tmp_path: Path, small: list[str], pretended: Pretender
) -> None:
    spec = spec_of(tmp_path, small, {"seed": {"values": [0, 1]}})
    pretended.status = lambda given: "pruned" if given["seed"] == "1" else "complete"
    run_sweep(spec, tmp_path / "a")
    pretended.status = lambda given: "complete"
    reuse = Options(reuse=(tmp_path / "a",))
    assert run_sweep(spec, tmp_path / "b", reuse).taken == 1  # not the one that was stopped
    digests = pretended.digests
    for name in ("split", "weights"):
        pretended.digests = {**digests, name: "corrected"}
        assert run_sweep(spec, tmp_path / name, reuse).taken == 0
        with pytest.raises(Refused, match=r"data was .*labels.* and would now be .*corrected"):
            run_sweep(spec, tmp_path / "a")


def test_labels_count_as_data_of_a_sweep() -> None:
    def datasets(split: str) -> tuple[str, ...]:
        splits = {"train": SplitFacts("pixels", (0, 1)), "val": SplitFacts("others", (0, 1))}
        return Facts(images={"x": ImageFacts(("a", "b"), splits, split, (), ())}).datasets

    assert datasets("labels") == ("pixels-others_labels",)
    assert datasets("corrected") != datasets("labels")


def test_more_trials_may_be_of_more_data(tmp_path: Path, small: list[str], pretended: Pretender) -> None:
    spec = spec_of(tmp_path, small, {"seed": {"values": [0]}})
    for data in (("a", "w"), ("a", "b", "w"), ("a", "w")):
        refuse_another(spec, tmp_path / "s", 0, data)
        claim(spec, tmp_path / "s", 0, data, 1, ACCURACY)
    with pytest.raises(Refused, match=r"data was \['a', 'b', 'w'\] and would now be \['a', 'c', 'w'\]"):
        refuse_another(spec, tmp_path / "s", 0, ("a", "c", "w"))


def test_the_key_of_a_trial_with_interpolated_values_is_that_of_its_record(
    tmp_path: Path, small: list[str], pretended: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", str(tmp_path))
    roots = {"data.root": {"values": ["${oc.env:DATA}/images"]}}
    rates = {"optim.lr": {"values": [0.01, 0.1]}}
    for name, spec in (
        ("root", spec_of(tmp_path, small, roots)),
        ("decay", spec_of(tmp_path, [*small, "optim.weight_decay=${optim.lr}"], rates)),
    ):
        sweep = run_sweep(spec, tmp_path / name)
        assert sweep.best is not None
        assert all(record["key"] == key for key, record in records(tmp_path / name).items())
        assert [p.parent.name for p in (tmp_path / name).glob(f"trials/*/{CHECKPOINT}")] == [sweep.best.key]


def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_prepared(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.sweep.run.check_and_prepare", None)
    spec = spec_of(tmp_path, small, {"seed": {"values": [0]}})
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "s"):
        with pytest.raises(Refused, match=r"/file is no folder; give --out another folder"):
            run_sweep(spec, place)
    with alone(tmp_path / "s"), pytest.raises(Refused, match=r"/s is running already; wait for it"):
        run_sweep(spec, tmp_path / "s")
    monkeypatch.setattr("os.access", lambda place, mode: mode == os.F_OK and Path(place).exists())
    with pytest.raises(Refused, match=rf"{tmp_path} cannot be written; give --out another folder"):
        run_sweep(spec, tmp_path / "new" / "s")


def test_a_record_is_taken_over_after_its_model(
    tmp_path: Path, small: list[str], pretended: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, small, {"seed": {"values": [0]}})
    run_sweep(spec, tmp_path / "a")

    def crash(path: Path, data: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr("finetune.sweep.records.write_durably", crash)
    with pytest.raises(MemoryError):
        run_sweep(spec, tmp_path / "b", Options(reuse=(tmp_path / "a",)))
    assert records(tmp_path / "b") == {}


def test_children_of_this_process_are_gone() -> None:
    assert multiprocessing.active_children() == []


def test_the_sweep_file_of_a_folder_is_json_without_secrets(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "0123456789abcdef" * 2
    monkeypatch.setenv("WANDB_API_KEY", secret)  # children have it too
    run_sweep(spec_of(tmp_path, small, {"model.freeze_depth": {"values": [5]}}), tmp_path / "s")
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["space"] == {"model.freeze_depth": "5"}
    written = [file for file in (tmp_path / "s").rglob("*") if file.is_file()]
    assert len(written) > 3
    assert not [file for file in written if secret.encode() in file.read_bytes()]


def _with_garbage_frozen() -> None:
    sys.exit(0 if gc.isenabled() and gc.get_freeze_count() > 100_000 and "finetune.train" in sys.modules else 1)


def test_children_have_what_the_server_imported_out_of_collections() -> None:
    child = CONTEXT.Process(target=_with_garbage_frozen)
    child.start()
    child.join()
    assert child.exitcode == 0


def test_a_launcher_keeps_no_file_open_for_trials_that_ended(tmp_path: Path) -> None:
    launcher = LocalLauncher([Slot(None, 1)])
    opened = []
    for i in range(4):
        (job,) = launcher.start([(["data.root=/no/such/folder"], tmp_path / str(i))])
        assert launcher.worker(job) == "worker 0"
        while job.exitcode is None:
            launcher.wait([job])
        del job
        opened.append(len(list(Path("/proc/self/fd").iterdir())))
    assert opened[1] == opened[3]
