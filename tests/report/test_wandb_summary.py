"""The tables of a summary run; the run itself is tests/test_wandb.py's."""

import pytest

from finetune.report.table import tabulate
from finetune.report.verdict import conclude
from finetune.report.wandb_summary import configuration_rows, depth_rows, summary_id
from tests.report.test_table import record

RECORDS = [
    *(record(4, accuracy, seed, lr=0.01) for seed, accuracy in enumerate((0.70, 0.72, 0.74))),
    *(record(9, accuracy, seed, lr=0.01) for seed, accuracy in enumerate((0.80, 0.82, 0.84))),
    record(9, 0.60, 0, lr=0.1),
]


def test_each_depth_has_its_best_configuration_with_interval_and_standing() -> None:
    table = tabulate(RECORDS)
    columns, rows = depth_rows(conclude(RECORDS, table), table)
    named = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [(row["depth"], row["seeds"], row["trials"], row["verdict"]) for row in named] == [
        ("k=4", 3, 3, "worse"),
        ("k=9", 3, 4, "the best"),
    ]
    best = named[1]
    assert best["val/acc"] == pytest.approx(0.82)
    assert best["high"] - best["val/acc"] == pytest.approx(best["val/acc"] - best["low"])
    assert best["high"] - best["low"] == pytest.approx(2 * 4.303 * 0.02 / 3**0.5, rel=1e-3)  # Student's t


def test_configurations_have_their_seeds_averaged_and_one_seed_has_no_interval() -> None:
    columns, rows = configuration_rows(tabulate(RECORDS))
    named = [dict(zip(columns, row, strict=True)) for row in rows]
    shown = [(row["freeze depth"], row["settings"], round(row["val/acc"], 2), row["seeds"]) for row in named]
    assert shown == [(4, "lr=0.01", 0.72, 3), (9, "lr=0.01", 0.82, 3), (9, "lr=0.1", 0.6, 1)]
    assert [(row["low"], row["high"]) for row in named if row["seeds"] == 1] == [(None, None)]


def test_the_id_of_a_summary_run_is_one_that_wandb_takes() -> None:
    assert summary_id("my sweep/#1?%:") == "my-sweep--1----summary"
