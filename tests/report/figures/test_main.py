"""Which pictures the records can fill, in their order, and which interval is said to be drawn."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from finetune.records.correct import pack
from finetune.records.ranking import ACCURACY, Objective
from finetune.records.result import Result
from finetune.report.figures.base import Picture
from finetune.report.figures.main import pictures
from finetune.report.table import tabulate
from finetune.report.verdict import conclude
from tests.report.test_table import record

SWEEP = [record(depth, 0.5 + depth / 100, seed, optim__lr=0.01) for depth in (4, 11, 17) for seed in (0, 1)]
SWEEP += [record(11, 0.9 + seed / 10, seed, optim__lr=0.02) for seed in (0, 1)]


def with_images(records: Sequence[Result], images: int = 200) -> list[Result]:
    """The same trials with the images that each got right: the easy ones, about as many as its accuracy says."""
    rng = np.random.default_rng(0)
    ease = rng.random(images)
    found = []
    for trial in records:
        right = ease + rng.normal(0, 0.05, images) < (trial.val_acc_best or 0)
        digests = {"dataset": "d", "split": "s"}
        found.append(
            replace(trial, val_acc_best=float(right.mean()), correct=[pack(right)], val_images=images, digests=digests)
        )
    return found


EXPLORED = with_images(
    [
        *(record(k, accuracy, 0, optim__lr=0.01) for k, accuracy in ((4, 0.5), (11, 0.8), (17, 0.79))),
        *(record(k, accuracy, seed, optim__lr=0.01) for k, accuracy in ((11, 0.8), (17, 0.79)) for seed in (1, 2, 3)),
    ]
)
"""One seed explored three depths, three others repeated two of them."""
BY_0 = Objective(explored_by=0)


def drawn(records: Sequence[Result], objective: Objective = ACCURACY, ended: bool = False) -> dict[str, Picture]:
    table = tabulate(records, objective)
    times = {each.key: 1e9 for each in records} if ended else {}
    return {picture.name: picture for picture in pictures(records, records, table, conclude(records, table), times)}


def test_the_pictures_that_the_records_can_fill() -> None:
    curves = [{"epoch": i, "val/acc": a, "train/acc": a} for i, a in enumerate((0.3, 0.5))]
    records = [replace(r, history=curves) for r in SWEEP]
    failed = replace(record(4, None, 3, "failed"), reason="out of memory")
    names = ["depth", "time", "rates", "parallel", "importance", "curves", "trials", "failures"]
    assert list(drawn([*records, failed], ended=True)) == names
    assert list(drawn([failed])) == ["failures"]
    for picture in drawn(records).values():
        json.loads(picture.figure.to_json())


def test_a_sweep_that_explored_and_repeated_shows_its_leads_and_where_the_trials_went() -> None:
    found = drawn(EXPLORED, BY_0)
    assert list(found)[:4] == ["depth", "lead", "time", "spent"]
    assert found["lead"].title == "Lead of k=11 over the others"
    assert "new seeds and new images" in found["lead"].note
    for picture in found.values():
        json.loads(picture.figure.to_json())


def test_trials_that_a_race_stopped_are_shown_without_repeats_too() -> None:
    stopped = [*(r for r in EXPLORED if r.seed == 0), record(4, 0.2, 0, "pruned", optim__lr=0.02)]
    found = drawn(stopped)
    assert "spent" in found
    assert "lead" not in found


@pytest.mark.parametrize(
    ("records", "interval"),
    [
        (EXPLORED, ", with the 95 % interval of its mean for new seeds and new images."),
        (SWEEP, ", with the 95 % interval of its mean over seeds."),
        ([r for r in SWEEP if r.seed == 0], "the best configuration of each depth."),
    ],
    ids=["images", "seeds", "none"],
)
def test_the_caption_says_which_interval_it_is(records: list[Result], interval: str) -> None:
    assert interval in drawn(records)["depth"].note


def test_pictures_are_of_what_the_sweep_optimises() -> None:
    records = [replace(r, history=[{"epoch": 0, "val/acc": r.accuracy, "val/loss": 2 - r.accuracy}]) for r in EXPLORED]
    found = drawn(records, Objective("val/loss", "minimize"))
    assert "lead" in found
    assert "the best configuration of each depth, with the 95 % interval of its mean over seeds." in found["depth"].note
    assert found["depth"].title == "val/loss against freeze depth"
    assert found["time"].title == "val/loss against cost"

    complete = [r for r in records if r.status == "complete"]
    plot = found["depth"].figure
    assert sorted(plot.data[0].y) == pytest.approx(sorted(2 - r.accuracy for r in complete))
    assert plot.layout.yaxis.title.text == "best val/loss"
    assert plot.layout.yaxis.tickformat == ""
    front = next(trace for trace in found["time"].figure.data if trace.name == "Pareto front")
    assert list(front.y) == sorted(front.y, reverse=True)  # less is better


def test_of_one_depth_the_configurations_are_shown() -> None:
    records = with_images(
        [record(11, 0.6 + 10 * rate, seed, optim__lr=rate) for rate in (0.01, 0.02) for seed in (0, 1, 2)]
    )
    found = drawn(records)
    assert list(found)[:2] == ["configurations", "lead"]
    assert found["lead"].title == "Lead of lr=0.02 over the others"
    assert list(drawn([r for r in records if r.params["optim.lr"] == 0.01]))[:1] == ["depth"]
    assert list(drawn([*records, record(11, 0.2, 0, "pruned", optim__lr=0.1)]))[3] == "spent"
