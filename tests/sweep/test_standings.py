"""A sweep from exploration to verdict: which trials run does not depend on who runs them, nor on when."""

import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from finetune.compose import compose_config, override_values
from finetune.config import flat, key_of, typed
from finetune.records.correct import pack
from finetune.records.layout import PROGRESS, STOP, UNSETTLED
from finetune.records.metric import Incumbent
from finetune.records.ranking import REPEATED, Objective, read_objective
from finetune.records.read import read_records
from finetune.records.result import Result
from finetune.report.table import tabulate
from finetune.report.verdict import Conclusions, conclude
from finetune.sweep.run import run_sweep
from finetune.sweep.standings import next_of_race, why_lost
from finetune.sweep.state import Finished, Options, Running, Sweep, Waiting
from tests.sweep.conftest import Pretender, spec_of

IMAGES, EPOCHS = 300, 6
COMPLETE = {"status": "complete", "val_labels": "", "val_images": IMAGES}
SPACE = {
    "model.freeze_depth": {"values": [0, 4, 8, 14]},
    "optim.lr": {"values": [0.001, 0.01, 0.1]},
}
BEST = {0: 0.60, 4: 0.74, 8: 0.78, 14: 0.70}
SUITS = {0: 0.001, 4: 0.01, 8: 0.01, 14: 0.1}
OF_NETWORKS = {
    ("narrow_resnet50", 0): (0.1, 0.70),
    ("narrow_resnet50", 0.5): (0.1, 0.74),
    ("narrow_resnet50", 1): (0.1, 0.60),
    ("cnn5", 0): (0.001, 0.50),
    ("cnn5", 0.5): (0.001, 0.45),
    ("cnn5", 1): (0.001, 0.40),
}
"""The rate that suits, and what it comes to: small rates win at every depth of one network, large ones of the other."""


def curve(settings: dict[str, Any]) -> list[float]:
    """Accuracy after each epoch; a depth has a rate that suits it, smaller where more is trained."""
    depth, rate = settings["model.freeze_depth"], float(settings["optim.lr"])
    network = settings["model.backbone"] if settings["model.freeze_unit"] == "share" else ""
    suits, best = OF_NETWORKS[network, depth] if network else (SUITS[depth], BEST[depth])
    distance = abs(np.log10(rate / suits))
    rng = np.random.default_rng([int(100 * depth if network else depth), int(1000 * rate), int(settings["seed"])])
    last = best - 0.12 * distance + 0.01 * rng.normal() - 0.02 * len(settings["model.head.hidden"])
    return [last - 0.25 * 0.5**epoch - 0.05 * distance * 0.5**epoch for epoch in range(EPOCHS)]


@functools.cache
def composed(words: tuple[str, ...]) -> dict[str, Any]:
    return flat(compose_config(words))


@dataclass
class Drawn:
    """A trial that is drawn instead of trained: each look of the coordinator may end an epoch."""

    words: list[str]
    folder: Path
    exitcode: int | None = None
    pid: int | None = None
    waits: bool = False
    done: int = 0

    def __post_init__(self) -> None:
        swept = [word for word in self.words if word.partition("=")[0] in (*SPACE, *REPEATED)]
        values = {key: typed(key, value) for key, value in override_values(swept).items()}
        fixed = composed(tuple(word for word in self.words if word not in swept))
        self.settings: dict[str, Any] = {**fixed, **values, "out": str(self.folder)}
        self.curve = curve(self.settings)
        ease = np.random.default_rng(0).random(IMAGES)
        noise = np.random.default_rng([self.settings["seed"], 1]).normal(size=IMAGES)
        self.judged = np.ones(IMAGES, np.bool_)
        if self.settings["data.folds"]:
            self.judged = np.arange(IMAGES) % self.settings["data.folds"] == self.settings["data.fold"]
        self.correct = [(ease + 0.03 * noise < accuracy)[self.judged] for accuracy in self.curve]
        self.history = [
            {"epoch": i, "val/acc": float(right.mean()), "val/loss": 1.0} for i, right in enumerate(self.correct)
        ]

    def terminate(self) -> None:
        self.exitcode = -15

    def kill(self) -> None:
        self.exitcode = -9

    def step(self) -> None:
        self.done += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        history = self.history[: self.done]
        stop = self.folder / STOP
        if stop.exists():
            self._record("pruned", stop.read_text())
        elif self.done == EPOCHS:
            self._record("complete", "")
        else:
            state = {"history": history, "epochs": EPOCHS, "images": int(self.judged.sum())}
            (self.folder / PROGRESS).write_text(json.dumps(state))

    def _record(self, status: str, reason: str) -> None:
        history = self.history[: self.done]
        best = max(range(self.done), key=lambda i: history[i]["val/acc"])
        swept = {word.partition("=")[0] for word in self.words}
        split = f"fold {self.settings['data.fold']}" if self.settings["data.folds"] else "labels"
        Result(
            key=key_of(self.settings),
            status=status,
            reason=reason,
            freeze_depth=self.settings["model.freeze_depth"],
            freeze_unit=self.settings["model.freeze_unit"],
            seed=self.settings["seed"],
            val_acc_best=history[best]["val/acc"],
            best_epoch=best,
            trained_parameters=1,
            params={key: self.settings[key] for key in swept if key in self.settings},
            config=self.settings,
            history=history,
            correct=[pack(right) for right in self.correct[: self.done]],
            val_images=int(self.judged.sum()),
            seconds={"total": float(self.done)},
            digests={"dataset": "pixels", "split": split, "weights": "weights"},
        ).save(self.folder)
        self.exitcode = 0


class Drawer:
    """Runs drawn trials, some at a time, each as fast as chance has it."""

    longest_wait = 0.0

    def __init__(
        self,
        capacity: int,
        chance: int | None = None,
        looks: int | None = None,
        pace: float = 0.5,
        dying: Sequence[int] = (),
    ) -> None:
        """`dying` are the trials, in the order of their starts, that end without a record."""
        self.capacity, self._pace = capacity, pace
        self._started, self._dying = 0, dying
        self._chance = None if chance is None else random.Random(chance)
        self._looks = looks
        """After so many looks the sweep is killed."""

    def start(self, trials: Sequence[tuple[Sequence[str], Path]], incumbent: Incumbent | None = None) -> list[Drawn]:
        jobs = [Drawn(list(words), folder) for words, folder in trials]
        for job in jobs:
            job.exitcode = -9 if self._started in self._dying else None
            self._started += 1
        return jobs

    def wait(self, jobs: Sequence[Drawn]) -> None:
        if self._looks is not None:
            self._looks -= 1
            if self._looks < 0:
                raise KeyboardInterrupt
        for job in jobs:
            if self._chance is None or self._chance.random() < self._pace:
                job.step()

    def worker(self, job: Drawn) -> str:
        return ""

    def set_aside(self, worker: str) -> None: ...
    def end(self, jobs: Sequence[Drawn]) -> None: ...


Runner = Callable[..., Sweep]


@pytest.fixture
def drawn(tmp_path: Path, fast: list[str], pretended: Pretender, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run the sweep in a folder with a launcher."""

    def run(name: str, launcher: Drawer, margin: float | None = 0.02, **more: Any) -> Sweep:
        monkeypatch.setattr("finetune.sweep.run.LocalLauncher", lambda *arguments: launcher)
        spec = spec_of(tmp_path, [*fast, *more.pop("words", ())], more.pop("space", SPACE), **more)
        return run_sweep(spec, tmp_path / name, Options(margin=margin))

    return run


def conclusions(folder: Path) -> Conclusions:
    records = read_records(folder)
    return conclude(records, tabulate(records, read_objective([folder])))


def state_of(folder: Path) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Each trial with its end, and the verdict without its cost."""
    trials = {record.key: (record.status, record.reason) for record in read_records(folder)}
    said = [sentence for sentence in conclusions(folder).sentences if "cost" not in sentence]
    assert not list(folder.glob(f"trials/*/{UNSETTLED}"))
    return trials, said


def test_a_sweep_explores_repeats_and_ends_with_a_verdict(tmp_path: Path, drawn: Runner) -> None:
    sweep = drawn("s", Drawer(1))
    explored = [record for record in sweep.results if record.seed == 0]
    repeats = [record for record in sweep.results if record.seed != 0]
    assert len(explored) == 12
    assert {record.status for record in explored} == {"complete", "pruned"}
    assert {record.status for record in repeats} == {"complete"}
    assert {record.freeze_depth for record in repeats} <= {4, 8, 14}
    assert all(record.params["seed"] == record.seed for record in repeats)

    assert sweep.best is not None
    found = conclusions(tmp_path / "s")
    assert found.judged
    best = next(depth for depth in found.depths if depth.standing == "best")
    assert best.group.freeze_depth == 8
    assert 0 not in best.group.seeds, "the seed that explored chose, so it does not judge"
    assert any(sentence.startswith("Expect 0.7") for sentence in found.sentences)
    assert sweep.total == len(sweep.finished) == len(explored) + len(repeats)


@pytest.mark.parametrize("chance", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 5))])
def test_workers_and_their_speed_decide_nothing(tmp_path: Path, drawn: Runner, chance: int) -> None:
    drawn("one", Drawer(1))
    drawn("some", Drawer(2 + chance % 3, chance))
    assert state_of(tmp_path / "some") == state_of(tmp_path / "one")


@pytest.mark.parametrize("chance", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 4))])
def test_a_larger_head_that_won_at_no_deeper_cut_is_not_started(tmp_path: Path, drawn: Runner, chance: int) -> None:
    heads = SPACE | {"model.head.hidden": {"values": [[64], []]}}
    drawn("one", Drawer(1), space=heads)
    explored = [record for record in read_records(tmp_path / "one") if record.seed == 0]
    ran = {record.freeze_depth for record in explored if record.history and record.params["model.head.hidden"]}
    assert ran == {14}, "at the deepest cut all are tried"
    assert any("this head lost to a smaller one" in record.reason for record in explored)

    drawn("some", Drawer(2 + chance, chance), space=heads)
    assert state_of(tmp_path / "some") == state_of(tmp_path / "one")


def test_of_a_race_those_start_first_that_do_not_run_in_vain() -> None:
    grid = [{"model.freeze_depth": k, "optim.lr": rate} for k in (17, 14, 8, 4) for rate in (0.1, 0.01, 0.001)]
    spec, job, trained = (cast(Any, SimpleNamespace(**of)) for of in ({"method": "grid"}, {}, COMPLETE))
    sweep = Sweep(spec, Path(), len(grid), Objective())
    sweep.ahead = [Waiting(params, Path(), place) for place, params in enumerate(grid)]

    def start() -> int:
        trial = next_of_race(sweep)
        sweep.ahead.remove(trial)
        sweep.running.append(Running(trial.params, Path(), job, trial.place))
        return trial.place

    assert start() == 0, "nothing comes before it"
    assert [start() for _ in range(3)] == [2, 5, 8], "the smallest rate lost to no smaller one, here and further on"
    assert start() == 1, "the depth after these waits"

    def finish(place: int, accuracy: float) -> None:
        running = next(trial for trial in sweep.running if trial.place == place)
        sweep.running.remove(running)
        sweep.finished.append(Finished(running.params, trained, [0.5, accuracy], place))

    finish(0, 0.60)
    finish(1, 0.65)
    assert start() == 11, "all of 17 have started, but 14 waits for the last of them"
    assert start() == 4, "what was best one cut deeper"
    finish(2, 0.70)
    assert (next_of_race(sweep).place, why_lost(3, grid[3], (), 0, sweep)[:10]) == (3, "not needed")  # type: ignore[index]


def test_a_trial_that_is_started_again_is_waited_for(tmp_path: Path, drawn: Runner) -> None:
    """What it will show of its depth decides about those after it, though they have ended by then."""
    drawn("whole", Drawer(1))
    drawn("restless", Drawer(1, dying=range(0, 9, 2)))
    assert state_of(tmp_path / "restless") == state_of(tmp_path / "whole")


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_killed_at_ten_moments_a_sweep_ends_with_the_same_verdict_from_the_same_trials(
    tmp_path: Path, drawn: Runner, workers: int
) -> None:
    drawn("whole", Drawer(1))
    for moment in range(10):
        with pytest.raises(KeyboardInterrupt):
            drawn("killed", Drawer(workers, moment, looks=(12 + 4 * moment) // workers, pace=0.25))
    drawn("killed", Drawer(workers))
    assert state_of(tmp_path / "killed") == state_of(tmp_path / "whole")


def test_without_a_margin_the_files_trials_are_run_whole_and_no_others(tmp_path: Path, drawn: Runner) -> None:
    plain = drawn("s", Drawer(1), margin=None)
    assert [record.status for record in plain.results] == ["complete"] * 12
    assert any("one seed says too little" in sentence for sentence in conclusions(tmp_path / "s").sentences)

    on = drawn("s", Drawer(1))
    assert {record.status for record in on.results} == {"complete"}, "what ran whole stays whole"
    assert {record.seed for record in on.results} >= {0, 1, 2, 3}


def test_a_file_that_sweeps_the_seed_is_run_as_it_is_and_its_repeats_judge(tmp_path: Path, drawn: Runner) -> None:
    space = {**SPACE, "optim.lr": {"values": [0.01]}, "seed": {"values": [0, 1, 2]}}
    sweep = drawn("s", Drawer(2, 1), space=space)
    assert [record.status for record in sweep.results] == ["complete"] * 12
    found = conclusions(tmp_path / "s")
    assert found.judged
    assert all(depth.group.seeds == (0, 1, 2) for depth in found.depths)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "bayes"])
def test_other_searches_end_with_a_verdict_and_go_on_after_a_kill(tmp_path: Path, drawn: Runner, method: str) -> None:
    more = {"method": method, "run_cap": 9}
    whole = drawn("whole", Drawer(1), **more)
    assert whole.repeats is not None
    for looks in (12, 25, 30):
        with pytest.raises(KeyboardInterrupt):
            drawn("killed", Drawer(1, looks=looks), **more)
    drawn("killed", Drawer(1), **more)
    assert state_of(tmp_path / "killed") == state_of(tmp_path / "whole")


def test_repeats_are_judged_on_the_folds_in_turn(tmp_path: Path, drawn: Runner) -> None:
    sweep = drawn("s", Drawer(1), words=["data.folds=4"])
    folds = {(record.seed, record.config["data.fold"]) for record in sweep.results}
    assert {(0, 0), (1, 0), (2, 1), (3, 2)} <= folds <= {(0, 0), *((i, (i - 1) % 4) for i in range(1, 9))}

    found = conclusions(tmp_path / "s")
    assert found.judged
    assert found.by_image
    (best,) = (depth for depth in found.depths if depth.standing == "best")
    assert best.group.freeze_depth == 8
    assert len(set(best.group.folds)) >= 3
    assert next(depth for depth in found.depths if depth.group.freeze_depth == 0).standing in ("worse", "behind")

    drawn("some", Drawer(3, 1), words=["data.folds=4"])
    assert state_of(tmp_path / "some") == state_of(tmp_path / "s")


def test_a_file_that_sweeps_the_fold_is_run_as_it_is_and_its_folds_judge(tmp_path: Path, drawn: Runner) -> None:
    space = {**SPACE, "optim.lr": {"values": [0.01]}, "data.fold": {"values": [0, 1, 2, 3]}}
    sweep = drawn("s", Drawer(1), space=space, words=["data.folds=4"])
    assert len(sweep.results) == 16
    found = conclusions(tmp_path / "s")
    assert found.by_image
    assert {depth.group.folds for depth in found.depths} == {(0, 1, 2, 3)}


def test_where_depth_is_not_swept_configurations_are_compared(tmp_path: Path, drawn: Runner) -> None:
    space = {"model.freeze_depth": {"values": [8]}, "optim.lr": {"values": [0.001, 0.01, 0.1]}}
    drawn("s", Drawer(1), space=space)
    found = conclusions(tmp_path / "s")
    assert [depth.name for depth in found.depths if depth.standing == "best"] == ["lr=0.01"]
    assert found.judged


def test_a_loss_is_judged_by_seeds_alone_and_no_trial_is_raced(tmp_path: Path, drawn: Runner) -> None:
    sweep = drawn("s", Drawer(1), metric={"name": "train/loss", "goal": "minimize"})
    assert {record.status for record in sweep.results} == {"failed"}, "these trials log no such thing"
    sweep = drawn("l", Drawer(1), metric={"name": "val/loss", "goal": "minimize"})
    assert {record.status for record in sweep.results} == {"complete"}
    assert any("Only seeds judge here" in sentence for sentence in conclusions(tmp_path / "l").sentences)


def test_records_of_another_folder_count_as_repeats_too(
    tmp_path: Path, drawn: Runner, fast: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn("s", Drawer(1))
    monkeypatch.setattr("finetune.sweep.run.LocalLauncher", lambda *arguments: Drawer(1))
    spec = spec_of(tmp_path, fast, SPACE)
    options = Options(margin=0.02, reuse=(tmp_path / "s",))
    again = run_sweep(spec, tmp_path / "again", options)
    assert again.taken >= 9 + sum(record.status == "complete" for record in again.results) - 9
    assert state_of(tmp_path / "again")[1] == state_of(tmp_path / "s")[1]


def test_networks_race_each_by_itself_and_their_best_are_repeated_together(tmp_path: Path, drawn: Runner) -> None:
    """The exploration of two networks is that of each alone: no trial is stopped for what the other came to."""
    shares: dict[str, Any] = {"model.freeze_depth": {"values": [0, 0.5, 1]}, "optim.lr": SPACE["optim.lr"]}
    words = ["model.freeze_unit=share"]
    networks = ["narrow_resnet50", "cnn5"]
    both = drawn("both", Drawer(2, 1), space={"model.backbone": {"values": networks}, **shares}, words=words)

    def explored(sweep: Sweep) -> dict[str, tuple[str, str]]:
        return {r.key: (r.status, r.reason) for r in sweep.results if r.seed == 0}

    alone: dict[str, tuple[str, str]] = {}
    for network in networks:
        sweep = drawn(network, Drawer(1), space={"model.backbone": {"values": [network]}, **shares}, words=words)
        alone |= explored(sweep)
    assert explored(both) == alone
    assert any("lost to a smaller one" in reason for _, reason in alone.values())

    found = conclusions(tmp_path / "both")
    assert found.judged
    (best,) = (depth.name for depth in found.depths if depth.standing == "best")
    assert best == "narrow_resnet50 k=0.5"
    assert {depth.name.split()[0] for depth in found.depths} == set(networks)
    repeated = {(r.config["model.backbone"], r.freeze_depth) for r in both.results if r.seed != 0}
    assert ("narrow_resnet50", 0.5) in repeated
    assert ("cnn5", 1) not in repeated, "far behind the best of all, though its network's own trials were raced apart"
