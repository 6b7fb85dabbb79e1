"""One rule says which trial is the best."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.records.layout import SWEEP
from finetune.records.ranking import ACCURACY, Objective, best_trial, configurations, read_objective
from finetune.records.result import Result
from finetune.storage.durable import sealed
from tests.report.test_table import record

LOSS = Objective("val/loss", "minimize")


def with_loss(result: Result, *losses: float) -> Result:
    return replace(result, history=[{"epoch": i, "val/loss": loss} for i, loss in enumerate(losses)])


def test_a_loss_is_ranked_by_its_last_epoch_and_the_other_way_round() -> None:
    steady = with_loss(record(4, 0.5), 0.9, 0.3)
    risen = with_loss(record(9, 0.8), 0.1, 0.6)
    assert [trials[0].freeze_depth for trials in configurations([risen, steady], LOSS)] == [4, 9]
    assert [trials[0].freeze_depth for trials in configurations([risen, steady])] == [9, 4]
    assert (LOSS.value(steady), LOSS.score_of(steady), LOSS.score(-0.3)) == (0.3, -0.3, 0.3)


@pytest.mark.parametrize("status", ["pruned", "failed", "interrupted"])
def test_trials_that_did_not_end_and_refits_are_not_compared(status: str) -> None:
    others = [with_loss(record(4, 0.9, 0, status), 0.1), with_loss(record(4, None), 0.1), record(4, 0.9)]
    assert configurations(others, LOSS) == []
    assert LOSS.score_of(others[0]) < LOSS.score_of(with_loss(record(4, 0.1), 1e9))


def test_the_mean_over_seeds_decides_and_then_the_depth_and_then_the_key() -> None:
    lucky = [record(4, 0.9, 0), record(4, 0.5, 1)]
    steady = [record(9, 0.75, 0), record(9, 0.75, 1)]
    equal = [record(17, 0.75, 0), record(17, 0.75, 1)]
    other = [replace(trial, key=f"0{trial.key}", params={**trial.params, "optim.lr": 0.1}) for trial in equal]
    for order in itertools.permutations([lucky, steady, equal, other]):
        found = configurations([trial for trials in order for trial in trials])
        assert found == [other, equal, steady, lucky]
    assert best_trial(lucky) == lucky[0]
    assert best_trial(equal) == equal[0]


@pytest.mark.parametrize(
    ("search", "objective"),
    [
        ("grid, maximize val/acc_best, target None, stopping none", ACCURACY),
        ("bayes, minimize val/loss, target 0.1, stopping Race(z=2.0)", LOSS),
        ("random, maximize train/acc, target None, stopping none", Objective("train/acc", "maximize")),
        ("something else", ACCURACY),
    ],
)
def test_what_a_sweep_optimises_is_read_from_its_folder(tmp_path: Path, search: str, objective: Objective) -> None:
    (tmp_path / SWEEP).write_bytes(sealed({"search": search}))
    assert read_objective([tmp_path]) == objective


def test_sweeps_that_optimise_different_things_are_compared_by_accuracy(tmp_path: Path) -> None:
    for name, search in (("a", "grid, minimize val/loss, target "), ("b", "grid, minimize train/loss, target ")):
        (tmp_path / name).mkdir()
        (tmp_path / name / SWEEP).write_bytes(sealed({"search": search}))
    assert read_objective([tmp_path / "a", tmp_path / "b"]) == ACCURACY
    assert read_objective([tmp_path / "a", tmp_path / "a"]) == LOSS
    assert read_objective([tmp_path]) == ACCURACY
    (tmp_path / "a" / SWEEP).write_text(json.dumps([]))
    assert read_objective([tmp_path / "a"]) == ACCURACY
