import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from finetune.errors import Refused
from finetune.records.layout import RECORD
from finetune.records.read import read_records
from finetune.records.result import Result
from finetune.report.table import Group, accuracy_text, label, short, tabulate


def record(depth: int | None, accuracy: float | None, seed: int = 0, status: str = "complete", **params: Any) -> Result:
    """One trial of a sweep; `optim__lr=1` is the parameter `optim.lr`."""
    swept = {name.replace("__", "."): value for name, value in params.items()}
    return Result(
        key=f"{depth}-{seed}-{sorted(swept.items())}",
        status=status,
        reason="",
        freeze_depth=depth,
        freeze_unit="block",
        seed=seed,
        val_acc_best=accuracy,
        best_epoch=0,
        trained_parameters=1,
        params={"model.freeze_depth": depth, "seed": seed, **swept},
        seconds={"total": 2.0 + seed},
    )


def test_trials_that_differ_in_their_seed_alone_are_one_group() -> None:
    accuracies = [0.5, 0.625, 0.75]
    others = [record(4, 0.1, seed, optim__lr=0.1) for seed in (0, 1)]
    table = tabulate([*others, *(record(4, a, seed, optim__lr=0.01) for seed, a in enumerate(accuracies))])
    first, second = table.groups
    assert (first.accuracies, first.params["optim.lr"], first.seconds) == ((0.5, 0.625, 0.75), 0.01, 3.0)
    assert (second.accuracies, second.params["optim.lr"]) == ((0.1, 0.1), 0.1)
    assert "seed" not in first.params


def test_seeds_of_several_sweeps_are_one_group_wherever_their_stores_were() -> None:
    records = [record(4, 0.5, seed, cache__dir=f"/tmp/{seed}", optim__lr=0.1) for seed in range(3)]
    (group,) = tabulate(records).groups
    assert group.seeds == (0, 1, 2)


def test_a_group_is_ordered_by_seed_whatever_the_order_of_the_records() -> None:
    records = [record(4, seed / 10, seed, optim__lr=lr) for lr in (0.1, 0.2) for seed in range(5)]
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    assert tabulate(shuffled) == tabulate(records)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_mean_and_half_width_are_scipys_t_interval(n: int) -> None:
    accuracies = np.random.default_rng(n).uniform(0.5, 0.9, n).tolist()
    (group,) = tabulate([record(9, a, seed) for seed, a in enumerate(accuracies)]).groups
    low, high = stats.t.interval(0.95, n - 1, loc=np.mean(accuracies), scale=stats.sem(accuracies))
    assert group.half_width is not None
    assert (group.mean - group.half_width, group.mean + group.half_width) == pytest.approx((low, high))


def test_one_seed_has_no_interval() -> None:
    (group,) = tabulate([record(9, 0.8125)]).groups
    assert group.half_width is None
    assert accuracy_text(group) == "0.812"


def test_equal_seeds_have_an_interval_of_width_zero() -> None:
    (group,) = tabulate([record(9, 0.5, seed) for seed in range(3)]).groups
    assert group.half_width == 0
    assert accuracy_text(group) == "0.500 ± 0.000"


def test_groups_are_sorted_by_depth_then_best_first_and_the_best_of_each_depth_is_told() -> None:
    scores = {(17, 0.1): 0.3, (17, 0.2): 0.6, (4, 0.1): 0.9, (4, 0.2): 0.2, (11, 0.1): 0.7}
    table = tabulate([record(depth, accuracy, optim__lr=lr) for (depth, lr), accuracy in scores.items()])
    assert [(g.freeze_depth, g.mean) for g in table.groups] == [(4, 0.9), (4, 0.2), (11, 0.7), (17, 0.6), (17, 0.3)]
    assert [(g.freeze_depth, g.mean) for g in table.best_per_depth] == [(4, 0.9), (11, 0.7), (17, 0.6)]
    assert table.winner == table.groups[0]


@pytest.mark.parametrize(
    ("accuracies", "deepest"), [({0: 0.8, 9: 0.8, 17: 0.8}, 17), ({0: 0.8, 9: 0.8, 17: 0.7}, 9), ({0: 0.8, 9: 0.79}, 0)]
)
def test_of_equally_good_depths_the_deepest_wins(accuracies: dict[int, float], deepest: int) -> None:
    for order in (list(accuracies), list(accuracies)[::-1]):
        winner = tabulate([record(depth, accuracies[depth]) for depth in order]).winner
        assert winner is not None
        assert winner.freeze_depth == deepest


def test_the_mean_over_seeds_wins_and_not_the_luckiest_trial() -> None:
    winner = tabulate([record(4, 0.9, 0), record(4, 0.5, 1), record(9, 0.75, 0), record(9, 0.75, 1)]).winner
    assert winner is not None
    assert winner.freeze_depth == 9
    assert winner.mean == statistics.fmean([0.75, 0.75])


def test_trials_that_are_not_complete_are_counted_and_not_ranked() -> None:
    table = tabulate(
        [
            record(4, 0.5),
            record(4, 0.99, 1, "failed"),
            record(9, None, 0, "failed"),
            record(9, 0.95, 0, "pruned"),
            record(11, 0.97, 0, "interrupted"),
        ]
    )
    assert [(g.freeze_depth, g.accuracies) for g in table.groups] == [(4, (0.5,))]
    assert table.counts == {"complete": 1, "failed": 2, "pruned": 1, "interrupted": 1}


def test_no_complete_trial_leaves_an_empty_table() -> None:
    table = tabulate([record(None, None, 0, "failed")])
    assert (table.groups, table.best_per_depth, table.winner) == ((), (), None)
    assert table.counts == {"failed": 1}


def test_swept_keys_are_those_that_vary_but_depth_and_seed() -> None:
    records = [
        record(depth, 0.5, seed, optim__lr=lr, model__head__hidden=hidden, data__root="x", trainer__epochs=5)
        for seed, (depth, lr, hidden) in enumerate([(4, 0.1, []), (9, 0.2, [256])])
    ]
    failed = record(4, None, 0, "failed", trainer__epochs=6)
    assert tabulate([*records, failed]).swept == ("model.head.hidden", "optim.lr")
    elsewhere = [replace(r, params={**r.params, "cache.mode": mode}) for r, mode in zip(records, "abc", strict=False)]
    assert tabulate([*records, *elsewhere]).swept == ("model.head.hidden", "optim.lr")  # it changes no result
    params = {**records[0].params, "data.size": 32}
    pruned = replace(records[0], status="pruned", params=params, config=params)
    assert tabulate([*records, pruned]).swept == ("data.size", "model.head.hidden", "optim.lr")
    assert tabulate(records[:1]).swept == ()


def test_labels_name_the_swept_values_shortly() -> None:
    params = {"optim.lr": 0.00123456, "model.head.hidden": [256], "trainer.patience": None, "data.size": 64}
    assert label(params, list(params)) == "lr=0.00123 head.hidden=[256] patience=None data.size=64"
    assert label(params, ["data.size", "augment.flip"]) == "data.size=64"
    assert [short(key) for key in ("optim.lr", "model.rest", "seed")] == ["lr", "rest", "seed"]
    assert accuracy_text(Group(3, {}, (0.5, 0.75), 1.0)) == "0.625 ± 1.588"


def test_records_are_read_in_order_of_their_keys_and_damaged_ones_left_out(tmp_path: Path) -> None:
    records = [record(depth, 0.5) for depth in (3, 1, 2)]
    for i, result in enumerate(records):
        result.save(tmp_path / "trials" / f"{'cab'[i]}")
    (tmp_path / "trials" / "running").mkdir()
    (tmp_path / "trials" / "damaged").mkdir()
    (tmp_path / "trials" / "damaged" / RECORD).write_text(json.dumps({"schema": 99}))
    assert [result.freeze_depth for result in read_records(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("empty", ["", "trials", "trials/running"])
def test_a_folder_without_records_is_refused(tmp_path: Path, empty: str) -> None:
    (tmp_path / "sweep" / empty).mkdir(parents=True)
    with pytest.raises(Refused, match=r"sweep holds no trial records; give the folder of a sweep, such as runs/local"):
        read_records(tmp_path / "sweep")
