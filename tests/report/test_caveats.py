"""What speaks against a verdict is said, and only then."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from finetune.records.predictions import Predictions
from finetune.records.result import Result
from finetune.report.caveats import caveats
from finetune.report.table import tabulate
from tests.report.test_table import record


def caveats_of(records: Sequence[Result], predictions: Predictions | None = None) -> str:
    return "\n".join(caveats(records, tabulate(records), predictions))


def with_rates(best: float, **params: Any) -> list[Result]:
    return [record(4, 0.9 if lr == best else 0.5, s, optim__lr=lr) for lr in (0.001, 0.01, 0.1) for s in range(3)]


def test_the_best_rate_or_head_at_the_edge_is_a_caveat() -> None:
    assert "The best lr, 0.1, is at the highest end of what was tried: try larger ones." in caveats_of(with_rates(0.1))
    assert "The best lr, 0.001, is at the lowest end" in caveats_of(with_rates(0.001))
    assert "end of what was tried" not in caveats_of(with_rates(0.01))
    heads = [record(4, 0.5 + sum(h) / 1000, s, model__head__hidden=h) for h in ([], [64], [128, 64]) for s in range(3)]
    assert "The best head, [128, 64], is at the highest end" in caveats_of(heads)
    linear = [record(4, 0.5 - sum(h) / 1000, s, model__head__hidden=h) for h in ([], [64]) for s in range(3)]
    assert "end of what was tried" not in caveats_of(linear)  # no head is smaller


@pytest.mark.parametrize(
    ("key", "values", "best", "said"),
    [
        ("data__batch_size", (2, 16, 64), 2, ""),  # one image is refused where BatchNorm trains
        ("data__batch_size", (1, 16, 64), 1, ""),
        ("data__batch_size", (4, 16, 64), 4, "The best data.batch_size, 4, is at the lowest end"),
        ("data__batch_size", (4, 16, 64), 64, "The best data.batch_size, 64, is at the highest end"),
        ("optim__momentum", (0.5, 0.9, 1.0), 1.0, ""),
        ("optim__momentum", (0.5, 0.9, 0.95), 0.95, "The best momentum, 0.95, is at the highest end"),
        ("data__size", (512, 1024, 2048), 2048, ""),
        ("trainer__epochs", (1, 5, 10), 1, ""),
    ],
)
def test_no_advice_leads_out_of_what_a_setting_may_be(
    key: str, values: tuple[float, ...], best: float, said: str
) -> None:
    records = [record(4, 0.9 if value == best else 0.5, s, **{key: value}) for value in values for s in range(3)]
    assert ("end of what was tried" in caveats_of(records)) == bool(said)
    assert said in caveats_of(records)


def test_too_few_trials_and_seeds_that_disagree_are_caveats() -> None:
    records = [*with_rates(0.01), record(9, 0.6, optim__lr=0.01)]
    assert "Fewer than 3 seeds behind the best of k=9" in caveats_of(records)
    agree = [record(k, 0.5 + k / 100 + s / 1000, s) for k in (4, 9) for s in range(3)]
    assert "disagree" not in caveats_of(agree)
    crossed = [record(k, 0.5 + (0.1 if (k == 4) == (s == 0) else 0), s) for k in (4, 9) for s in range(3)]
    assert "The seeds disagree on the best depth (seed 0: k=4, seed 1: k=9, seed 2: k=9)." in caveats_of(crossed)


def test_a_depth_that_drew_learning_rates_of_a_part_of_the_range_is_a_caveat() -> None:
    rates = {4: (0.0001, 0.001, 0.01), 9: (0.003, 0.01), 14: (0.0001, 0.001, 0.01)}
    trials = [record(k, 0.5, optim__lr=rate) for k, own in rates.items() for rate in own]
    said = "Less than half of the range of learning rates was tried at k=9 (0.003 to 0.01); its best may still be "
    assert f"{said}undiscovered." in caveats_of(trials)

    between = [record(9, 0.6, optim__lr=0.005)]
    assert "of the range" not in caveats_of([*trials, *between]), "the best of its own lies between others"
    stopped = record(9, None, 0, "pruned", optim__lr=0.0001)
    assert "of the range" not in caveats_of([*trials, stopped]), "one that lost its race was tried"
    assert "of the range" not in caveats_of([record(k, 0.5, optim__lr=0.01) for k in (4, 9)])
    assert "of the range" not in caveats_of([record(k, 0.5) for k in (4, 9)])


def curve(*values: float) -> list[dict[str, float]]:
    return [{"epoch": i, "val/acc": value} for i, value in enumerate(values)]


def test_stopped_trials_that_still_improved_are_a_caveat() -> None:
    why = {"reason": "stopped at epoch 2: 0.6 below 0.7"}
    rising = replace(record(4, 0.6, 0, "pruned"), history=curve(0.4, 0.6), **why)
    falling = replace(record(4, 0.6, 1, "pruned"), history=curve(0.6, 0.4), **why)
    assert "1 of 2 stopped trials were still improving" in caveats_of([rising, falling, record(4, 0.9)])
    assert "still improving" not in caveats_of([falling, record(4, 0.9)])
    raced = replace(rising, reason="fell behind at epoch 2: 0.65 in reach, below 0.7")
    assert "still improving" not in caveats_of([raced, record(4, 0.9)]), "a race grants what others gained"
    late = replace(record(4, 0.6), history=curve(0.4, 0.6), best_epoch=1)
    assert "1 of 1 complete trials were best in their last epoch" in caveats_of([late])


def test_imbalance_warnings_views_mixed_data_and_failures_are_caveats() -> None:
    labels = np.array([0] * 9 + [1])
    blank = np.zeros((0, 64, 64, 3), np.uint8)
    sure = np.eye(2, dtype=np.float32)[labels]
    found = caveats_of([record(4, 0.9)], Predictions(sure, labels, (), np.zeros(0, np.int64), blank))
    assert "The classes are unbalanced (1 to 9 validation images)" in found
    assert "There are 10 validation images." in found
    shared = "data: 3 images of val are in train too"
    assert shared in caveats_of([replace(record(4, 0.9), warnings=[shared])])
    assert "a store of 4 fixed augmented views" in caveats_of([replace(record(4, 0.9), cache={"views": 4})])
    mixed = [replace(record(4, 0.9, s), digests={"split": str(s)}) for s in range(2)]
    assert "The trials used 2 different splits" in caveats_of(mixed)
    folds = [replace(trial, config={"data.folds": 2, "data.fold": i}) for i, trial in enumerate(mixed)]
    assert "different splits" not in caveats_of(folds)
    formats = [replace(record(4, 0.9, s), precision=name) for s, name in enumerate(("32", "bf16"))]
    assert "Some trials computed in 32-bit, others in bf16" in caveats_of(formats)
    halves = [replace(trial, precision=name) for trial, name in zip(formats, ("bf16", "fp16"), strict=True)]
    assert "Some trials computed in bf16, others in fp16" in caveats_of(halves)
    swept = [replace(trial, params={"trainer.precision": trial.precision}) for trial in formats]
    assert "computed in" not in caveats_of(swept)
    assert "1 trial failed: out of memory" in caveats_of(
        [replace(record(4, None, 0, "failed"), reason="out of memory")]
    )


def test_depths_of_several_networks_are_comparable_as_shares_alone() -> None:
    digests = [{"weights": name, "dataset": name, "split": "s"} for name in ("a", "b")]
    sizes = [{"size": size, "interpolation": "bilinear"} for size in (224, 299)]
    networks = [
        replace(record(4, 0.9), key=f"{i}", config={"model.backbone": f"net{i}"}, digests=digests[i], input=sizes[i])
        for i in range(2)
    ]
    found = caveats_of(networks)
    assert "k counts the blocks of 2 networks, so equal k of two of them are not equally deep" in found
    assert "different" not in found, "each network has weights of its own, and takes the images in its own size"
    shares = [replace(trial, freeze_unit="share") for trial in networks]
    assert "k counts" not in caveats_of(shares)
    assert "2 different images" in caveats_of([replace(trial, input=sizes[0]) for trial in networks])
