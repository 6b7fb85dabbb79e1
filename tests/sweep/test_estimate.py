"""What a sweep will take: how a measurement becomes hours, and when there is none."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune.records.result import Result
from finetune.sweep import estimate
from finetune.sweep.estimate import Estimate, estimate_sweep, kind_of
from finetune.sweep.launch import Slot
from finetune.sweep.spec import SweepSpec, read_sweep
from finetune.trial.calibration import Calibration
from tests.forked import MEASURE
from tests.models import finetune

FILE = """
name: estimated
method: grid
metric: {name: val/acc_best, goal: maximize}
parameters:
  model.freeze_depth: {values: [0, all]}
  optim.lr: {values: [0.01, 0.003, 0.001]}
"""
TWO = [Slot(None, 1), Slot(None, 1)]


@pytest.fixture
def spec(tmp_path: Path, small: list[str]) -> SweepSpec:
    (tmp_path / "estimated.yaml").write_text(FILE)
    return read_sweep(tmp_path / "estimated.yaml", (*small, "trainer.epochs=4"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Any]]:
    """Two processes measured 100 s an epoch at k = 0 and 1 s at the deepest cut, one a tenth more and one less."""
    asked: list[Sequence[Any]] = []

    def pretended(trials: Sequence[tuple[list[str], int]], slots: Sequence[Slot]) -> list[Calibration]:
        asked.append(trials)
        depths = ["model.freeze_depth=0" in overrides for overrides, _ in trials]
        return [
            Calibration(
                tuple(2.0 for _ in depths), tuple(f * (100.0 if d else 1.0) for d in depths), 60.0, "a processor"
            )
            for f in (0.9, 1.1)
        ]

    monkeypatch.setattr(estimate, "_measured", pretended)
    return asked


def record(params: dict[str, Any], epochs: int) -> tuple[dict[str, Any], Result]:
    history = [{"epoch": float(i), "val/acc": 0.5} for i in range(epochs)]
    return params, Result("0" * 12, "pruned", "", 0, "block", 0, 0.5, 0, 1, params, history=history)


def test_seconds_are_those_of_every_trial_side_by_side(spec: SweepSpec, measured: list[Sequence[Any]]) -> None:
    found = estimate_sweep(spec, TWO)
    assert found is not None
    assert [count for _, count in measured[0]] == [3, 3]  # of each depth one is asked about
    assert found.trials == pytest.approx(3 * ((2 + 4 * 100) + (2 + 4 * 1)) / 2)
    assert found.total == pytest.approx(60 + 612)
    assert found.lines(races=False) == [
        "time: 11 min for all 6 trials to their end, 2 at a time",
        "  60 s before the first trial, then 0.34 core-hours on a processor",
        "  k=0: 3 trials of 7 min, 10 min of that time",
        "  k=all: 3 trials of 6 s, 9 s of that time",
    ]
    assert found.lines(races=True)[0].endswith("; about 7 min to 18 min with the race and the repeats")


def test_on_gpus_it_is_gpu_hours_and_one_of_them_is_measured(
    spec: SweepSpec, monkeypatch: pytest.MonkeyPatch, measured: list[Sequence[Any]]
) -> None:
    pretended, seen = estimate.__dict__["_measured"], []
    monkeypatch.setattr(estimate, "_measured", lambda asked, slots: seen.append(slots) or pretended(asked, slots))
    slots = [Slot("0", 4), Slot("1", 4), Slot("2", 4)]
    found = estimate_sweep(spec, slots)
    assert found is not None
    assert seen == [slots[:1]]
    assert found.trials == pytest.approx(1224 / 3)
    assert "then 0.34 GPU-hours on" in found.lines(races=False)[1]


def test_trials_that_were_stopped_count_as_far_as_they_ran(spec: SweepSpec, measured: list[Sequence[Any]]) -> None:
    found = estimate_sweep(spec, TWO)
    assert found is not None
    ran = [record({"model.freeze_depth": 0, "optim.lr": 0.01}, 1), record({"model.freeze_depth": 0, "seed": 7}, 4)]
    ran.append(record({"model.freeze_depth": "all", "optim.lr": 0.01}, 0))  # was never started
    assert found.of_those_that_ran(ran) == pytest.approx(((2 + 100) + (2 + 400)) / 2)


def test_what_has_its_record_is_not_estimated_and_nothing_is_measured_for_nothing(
    spec: SweepSpec, measured: list[Sequence[Any]]
) -> None:
    found = estimate_sweep(spec, TWO, is_left=lambda params: params["model.freeze_depth"] == 0)
    assert found is not None
    assert [kind.trials for kind in found.kinds.values()] == [3]
    measured.clear()
    assert estimate_sweep(spec, TWO, is_left=lambda params: False) is None
    assert measured == []


def test_settings_that_cost_nothing_make_no_kind_of_their_own() -> None:
    params = {"model.freeze_depth": 3, "optim.lr": 0.1, "model.head.hidden": [256], "seed": 1}
    assert kind_of(params) == kind_of({"model.freeze_depth": 3})
    for key, value in (("data.batch_size", 8), ("data.size", 96), ("trainer.epochs", 9), ("model.freeze_depth", 2)):
        assert kind_of({**params, key: value}) != kind_of(params)


@pytest.mark.slow
def test_a_sweep_says_first_what_it_will_take_and_last_how_far_off_that_was(
    spec: SweepSpec,
    tmp_path: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    measured: list[Sequence[Any]],
) -> None:
    options = ["--trials", 2, "--workers", 2, "--no-repeats", "--out", tmp_path / "out"]
    words = ["sweep", tmp_path / "estimated.yaml", *small, *options]
    assert finetune(monkeypatch, *words) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("time: ")
    assert lines[0].endswith(" for all 2 trials to their end, 2 at a time")
    (last,) = [line for line in lines if line.startswith("time: the trials took")]
    assert "what ran was estimated at 2 min (-" in last  # two epochs of 100 s, and two of 1 s, side by side
    assert finetune(monkeypatch, *words) == 0  # nothing is left
    assert "time:" not in capfd.readouterr().out
    assert finetune(monkeypatch, "plan", tmp_path / "estimated.yaml", *small, "--gpus", 2) == 2
    assert "--gpus 2: there is no GPU here to measure" in capfd.readouterr().err


@pytest.mark.slow
def test_processes_measure_side_by_side_and_one_that_fails_is_no_estimate(
    spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_measured", MEASURE)
    found: Estimate | None = estimate_sweep(spec, TWO)
    assert found is not None
    assert all(kind.start > 0 and kind.epoch > 0 for kind in found.kinds.values())
    assert found.prepare > 0
    asked: Callable[..., list[Calibration]] = MEASURE
    assert asked([(["model=cnn5", "data.root=/nowhere"], 1)], TWO) == []
