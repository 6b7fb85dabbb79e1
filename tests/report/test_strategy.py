from dataclasses import replace

import numpy as np

from finetune.records.correct import pack
from finetune.records.result import Result
from finetune.report.figures.main import pictures
from finetune.report.figures.windows import windows_figure
from finetune.report.strategy import strategy_of
from finetune.report.table import best_of_each, tabulate
from finetune.report.verdict import conclude
from tests.report.test_table import record

MEANS = {
    (4, "random", 1.0): 0.70,
    (9, "random", 1.0): 0.78,
    (4, "probe", 1.0): 0.92,
    (9, "probe", 1.0): 0.90,
    (9, "random", 0.7): 0.60,
}
"""Accuracy by freeze depth, how the head starts, and layer decay."""


def sweep(means: dict[tuple[int, str, float], float]) -> list[Result]:
    rng = np.random.default_rng(0)
    records = []
    for (depth, init, decay), mean in means.items():
        for seed in range(3):
            right = rng.random(600) < mean
            trial = record(depth, float(right.mean()), seed, model__head__init=init, optim__layer_decay=decay)
            trial = replace(trial, correct=[pack(right)], val_images=600, seconds={"total": 30.0 - depth})
            records.append(trial)
    return records


def test_the_best_of_each_strategy_is_compared_with_the_depths_of_freezing_alone() -> None:
    table = tabulate(sweep(MEANS))
    best = best_of_each(table)
    assert list(best) == [4, 9, "probe first", "layer decay"]
    assert best["probe first"].freeze_depth == 4

    found = conclude(sweep(MEANS), table)
    standing = {depth.name: depth.standing for depth in found.depths}
    assert standing == {"k=4": "worse", "k=9": "worse", "probe first": "best", "layer decay": "worse"}
    text = " ".join(found.sentences)
    assert "Decided: take probe first. Every other is worse: k=9 by 1" in text
    assert "The best of each strategy, all trained for as many epochs: probe first 0.9" in text
    assert "freezing alone 0.7" in text
    assert "in 21.0 s a trial (k=9" in text

    drawn = pictures(sweep(MEANS), sweep(MEANS), table, found, {})
    assert drawn[0].name == "configurations"  # strategies have no place on a line of depths


def test_what_all_trials_have_in_common_is_no_strategy() -> None:
    probed = {key: mean for key, mean in MEANS.items() if key[1] == "probe"}
    assert list(best_of_each(tabulate(sweep(probed)))) == [4, 9]
    assert "strategy" not in " ".join(conclude(sweep(probed), tabulate(sweep(probed))).sentences)


def test_windows_are_strategies_of_their_own() -> None:
    assert strategy_of({"model.train_units": [8, 9]}) == "unit 8 alone"
    assert strategy_of({"model.train_units": [4, 8], "optim.head_lr": 10}) == "units 4..7 alone, head lr"
    assert strategy_of({"model.train_units": None, "optim.head_lr": 1, "optim.lr": 0.1}) == ""


def test_windows_are_drawn_as_a_triangle_of_their_best() -> None:
    records = []
    for window, lr, mean in (([0, 2], 0.1, 0.5), ([0, 2], 0.2, 0.6), ([0, 4], 0.1, 0.7), ([2, 4], 0.1, 0.8)):
        trial = record(window[0], mean, model__train_units=window, optim__lr=lr)
        records.append(replace(trial, config={"model.train_units": window}))
    table = tabulate(records)
    (cells,) = windows_figure(records, table).data
    assert (list(cells.x), list(cells.y)) == (["0", "2"], ["1", "3"])
    assert [list(row) for row in cells.z] == [[0.6, None], [0.7, 0.8]]
    assert list(best_of_each(table)) == ["units 0..1 alone", "units 0..3 alone", "units 2..3 alone"]
