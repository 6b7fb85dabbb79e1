import json
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from finetune.records.correct import pack, pack_labels
from finetune.records.ranking import Objective
from finetune.records.result import Result
from finetune.report.bits import columns_of, images_behind, values_of
from finetune.report.standing import compare_depths
from finetune.report.table import tabulate
from finetune.report.verdict import Conclusions, conclude, duration
from tests.report.test_table import record


def sweep(means: dict[int, float], seeds: int = 3, noise: float = 0.01, source: int = 0) -> list[Result]:
    rng = np.random.default_rng(source)
    return [
        replace(record(k, float(mean + rng.normal(0, noise)), seed, optim__lr=0.01), seconds={"total": 20.0 - k})
        for k, mean in means.items()
        for seed in range(seeds)
    ]


def of(records: Sequence[Result]) -> Conclusions:
    return conclude(records, tabulate(records))


def text(records: Sequence[Result]) -> str:
    return " ".join(of(records).sentences)


def test_a_clear_difference_is_told_with_its_size_and_its_test() -> None:
    found = text(sweep({0: 0.4, 9: 0.8, 17: 0.5}, noise=0.005))
    assert re.search(r"Worse than k=9 beyond the noise of seeds are k=0 by 0\.\d{3} \[.*\], p[=<]\S+; k=17 by", found)
    assert "(paired over seeds, corrected for 2 comparisons)" in found
    assert "The best is also the cheapest" in found


def test_close_depths_stay_open_with_the_runs_that_would_settle_it_and_the_cheapest_is_named() -> None:
    close = {0: (0.40, 0.42, 0.39, 0.41), 9: (0.81, 0.78, 0.82, 0.80), 12: (0.79, 0.80, 0.78, 0.80)}
    records = [
        replace(record(k, accuracy, seed, optim__lr=0.01), seconds={"total": 20.0 - k})
        for k, accuracies in close.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    (open_one,) = [d for d in of(records).depths if d.standing == "open"]
    assert open_one.group.freeze_depth in (9, 12)
    found = text(records)
    assert re.search(r"k=(9|12) cannot be told from the best: -?0\.0.*more .*seed", found)
    cheapest = of(records).cheapest
    assert cheapest is not None
    assert cheapest.freeze_depth == 12


@pytest.mark.parametrize(
    ("depth", "unit", "last"),
    [
        (11, "block", "layer3.2"),
        (0.65, "share", "layer3.2"),
        (0, "block", None),
        (17, "block", None),
        (1, "share", None),
    ],
)
def test_the_best_depth_is_told_by_the_last_thing_it_freezes(depth: float, unit: str, last: str | None) -> None:
    trial = replace(record(None, 0.8), freeze_depth=depth, freeze_unit=unit, config={"model.backbone": "resnet50"})
    said = [sentence for sentence in of([trial]).sentences if "freezes everything" in sentence]
    assert said == ([f"k={depth} freezes everything up to and including {last}."] if last else [])
    another = replace(trial, config={"model.backbone": "another"})
    window = replace(trial, config={**trial.config, "model.train_units": [4, 8]})
    assert "freezes everything" not in text([another]) + text([window])


@pytest.mark.parametrize(("seeds", "why"), [(1, "one seed says too little"), (2, "fewer than 3 seeds say too little")])
def test_too_few_seeds_give_no_verdict_and_the_way_to_one(seeds: int, why: str) -> None:
    records = sweep({0: 0.4, 9: 0.8, 17: 0.5}, seeds=seeds)
    found = text(records)
    assert f"No verdict: {why}" in found
    assert "`finetune sweep` repeats what decides" in found
    assert "Worse than" not in found
    assert of(records).cheapest is None
    assert {d.standing for d in of(records).depths} == {"best", "few"}


def test_a_sweep_that_repeats_by_itself_and_has_not_come_to_it_says_so() -> None:
    records = sweep({0: 0.4, 9: 0.8}, seeds=1)
    found = " ".join(conclude(records, tabulate(records, Objective(explored_by=0))).sentences)
    assert "No verdict yet: one seed says too little" in found
    assert "--no-repeats" not in found


def test_a_depth_with_too_few_seeds_is_left_out_and_the_others_are_compared() -> None:
    records = [*sweep({0: 0.4, 9: 0.8}, noise=0.005), record(17, 0.5, 0, optim__lr=0.01)]
    found = text(records)
    assert "Worse than k=9" in found
    assert "No verdict on k=17: fewer than 3 seeds" in found


def test_the_head_alone_is_compared_where_the_records_know_which_depth_that_is() -> None:
    records = sweep({0: 0.4, 9: 0.8, 17: 0.5}, noise=0.005)
    assert "head alone" not in text(records)
    known = [replace(r, config={"model.backbone": "resnet50", "model.freeze_depth": r.freeze_depth}) for r in records]
    assert re.search(r"The head alone \(k=17\) is \d+\.?\d* points behind, surely worse, in 27%", text(known))
    stored = [replace(r, seconds={"total": 0.05}) if r.freeze_depth == 17 else r for r in known]
    assert "surely worse, in less than 1% of the best's time" in text(stored)


def test_what_it_cost_and_what_sharing_saved() -> None:
    records = sweep({0: 0.4, 9: 0.8})
    assert "It cost 93 s of trial time in 6 trials." in text(records)
    shared = [replace(r, cache={"mode": "auto", "saved_seconds": 1500.0}) for r in records]
    assert "; sharing the frozen layers' work saved 2.5 h in 6 of them." in text(shared)
    assert duration(700) == "12 min"


@pytest.mark.parametrize(
    ("formats", "said"),
    [("bf16", " in 2 trials, computed in bf16."), ("32", ", computed in 32-bit."), ("", " in 2 trials.")],
)
def test_in_what_numbers_it_was_computed(formats: str, said: str) -> None:
    records = [replace(record(k, 0.8, 0), precision=formats) for k in (4, 9)]
    assert said in text(records)


def test_several_formats_are_left_to_a_caveat() -> None:
    records = [replace(record(k, 0.8, 0), precision=name) for k, name in ((4, "32"), (9, "bf16"))]
    assert "computed" not in text(records)


def test_records_without_a_complete_trial_and_with_one_depth() -> None:
    assert "No trial is complete yet." in text([record(4, None, 0, "failed")])
    assert "One freeze depth was tried" in text(sweep({4: 0.5}))


@pytest.mark.slow
@pytest.mark.parametrize("unlike", [False, True])
@pytest.mark.parametrize("images", [None, 100])
def test_k_is_seldom_said_to_matter_where_it_does_not(unlike: bool, images: int | None) -> None:
    """1,000 sweeps without any difference: 5 depths, the better of 2 rates at each, 3 seeds; all noise alike or not."""
    rng = np.random.default_rng(7)
    template = [
        record(k, 0.5, seed, optim__lr=rate) for k in (0, 4, 8, 12, 16) for rate in (0.1, 0.01) for seed in (0, 1, 2)
    ]
    table = tabulate(template)
    scale = np.repeat(np.array([0.005, 0.02, 0.01, 0.02, 0.005]) if unlike else np.full(5, 0.01), 2)
    wrong = 0
    for _ in range(1000):
        drawn = 0.8 + scale[:, None] * rng.normal(size=(10, 3))
        if images:
            drawn = np.round(drawn * images) / images
        groups = [replace(g, accuracies=tuple(map(float, row))) for g, row in zip(table.groups, drawn, strict=True)]
        groups.sort(key=lambda g: (g.freeze_depth, -g.mean))
        now = replace(table, groups=tuple(groups))
        assert now.winner is not None
        wrong += any(depth.standing == "worse" for depth in compare_depths(template, now, now.winner).depths)
    assert wrong < 50


def test_k_is_said_to_matter_where_it_does() -> None:
    found = [text(sweep({0: 0.7, 9: 0.8, 17: 0.7}, source=i)) for i in range(100)]
    assert sum("Worse than k=9" in words for words in found) > 80


def test_conclusions_are_made_of_records_alone() -> None:
    records = sweep({0: 0.4, 9: 0.8})
    again = [Result(**json.loads(json.dumps(vars(r)))) for r in records]
    assert of(again).sentences == of(records).sentences


def with_bits(records: Sequence[Result], images: int = 200, epochs: int = 4, source: int = 0) -> list[Result]:
    """The same trials with bits that agree with their accuracies in their best epoch, and are worse in the others."""
    rng = np.random.default_rng(source)
    ease = rng.random(images)
    found = []
    for trial in records:
        correct = np.stack([ease + rng.normal(0, 0.05, images) < trial.accuracy - 0.02 * e for e in range(epochs)])
        digests = {"dataset": "d", "split": "s"}
        bits = [pack(epoch) for epoch in correct]
        found.append(replace(trial, correct=bits, val_images=images, digests=digests))
    return found


def test_what_is_decided_is_said_with_what_it_can_lose_and_what_to_expect() -> None:
    records = sweep({0: 0.4, 9: 0.8, 17: 0.5}, noise=0.005)
    assert "on new images" not in text(records).replace("not for new images", "")  # of an older version
    said = text(with_bits(records))
    assert re.search(r"Decided: take k=9\. Every other is worse: k=17 by \S+ points \(at least \S+\), k=0", said)
    (numbers,) = re.findall(r"Expect (0\.\d{3}) ± (0\.\d{3}) from k=9 on new images \(3 seeds", said)
    expected, half = map(float, numbers)
    assert 0.7 < expected < 0.85
    assert 0.03 < half < 0.1  # of 200 images


def test_depths_within_the_margin_and_those_that_images_would_tell_are_named_so() -> None:
    close = with_bits(sweep({0: 0.4, 9: 0.80, 12: 0.795}, noise=0.002))
    wide = conclude(close, tabulate(close, Objective(margin=0.2)))
    (decided,) = [sentence for sentence in wide.sentences if sentence.startswith("Decided within")]
    assert re.match(r"Decided within the margin of 20 points: take k=\d+\.$", decided)

    narrow = " ".join(conclude(close, tabulate(close, Objective(margin=0.0001))).sentences)
    assert re.search(r"k=\d+ and k=\d+ cannot be told apart on 200 validation images, nor by", narrow)
    assert re.search(r"Taking k=\d+ loses \d\.?\d* points? at most", narrow)
    assert "Worse than" in narrow


def test_more_seeds_are_named_where_they_would_tell() -> None:
    restless = with_bits(sweep({9: 0.80, 12: 0.79}, noise=0.06, source=3))
    found = conclude(restless, tabulate(restless, Objective(margin=0.06)))
    assert {depth.standing for depth in found.depths} == {"best", "open"}
    assert any(sentence.startswith("Undecided: k=") and "(3 seeds)" in sentence for sentence in found.sentences)


def test_the_seed_that_explored_does_not_judge_what_it_chose() -> None:
    """Its accuracy is the best of many; the new ones are not."""
    explored = [record(k, a, 0, optim__lr=lr) for k, a, lr in ((9, 0.9, 0.01), (9, 0.7, 0.1), (4, 0.6, 0.01))]
    repeats = [record(9, a, seed, optim__lr=0.01) for seed, a in ((1, 0.80), (2, 0.81), (3, 0.79))]
    records = with_bits([*explored, *repeats])
    said = " ".join(conclude(records, tabulate(records, Objective(explored_by=0))).sentences)
    assert "with val/acc 0.800 ±" in said
    assert "(3 seeds that did not choose it)" in said
    assert re.search(
        r"It cost 18 s of .*; all of its configurations, run whole with one seed, would have cost 6 s", said
    )


def test_images_of_other_sets_are_not_crossed() -> None:
    close = with_bits(sweep({9: 0.80, 12: 0.79}, noise=0.01))
    assert "Expect" in text(close)
    others = [replace(r, digests={**r.digests, "split": f"{r.seed}"}) for r in close]
    assert "Expect" not in text(others)
    assert "Expect" not in text([*close[:-1], replace(close[-1], correct=[])])
    assert "Expect" not in text(with_bits(sweep({9: 0.80, 12: 0.79}, seeds=1)))


def test_a_metric_that_is_no_mean_over_images_is_judged_by_seeds() -> None:
    records = [
        replace(trial, history=[{"epoch": 0, "val/loss": 1 - trial.accuracy}])
        for trial in with_bits(sweep({0: 0.4, 9: 0.8}, noise=0.005))
    ]
    found = conclude(records, tabulate(records, Objective("val/loss", "minimize")))
    assert any("Only seeds judge here" in sentence for sentence in found.sentences)
    assert any(sentence.startswith("Decided: take k=9") for sentence in found.sentences)


RECALLS = {9: (0.98, 0.40), 4: (0.88, 0.90)}
"""By depth, the recall of a class of 180 images and of one of 20."""
LABELS = np.repeat([0, 1], [180, 20])


def unbalanced() -> list[Result]:
    """Depth 9 has the better accuracy and depth 4 the better recall of the small class."""
    rng = np.random.default_rng(0)
    records = []
    for depth, recalls in RECALLS.items():
        for seed in range(3):
            right = rng.random(200) < np.take(recalls, LABELS)
            balanced = balanced_accuracy_score(LABELS, np.where(right, LABELS, 1 - LABELS))
            records.append(
                replace(
                    record(depth, float(right.mean()), seed, optim__lr=0.01),
                    history=[{"epoch": 0, "val/acc": float(right.mean()), "val/balanced_acc": float(balanced)}],
                    best_epoch=0,
                    correct=[pack(right)],
                    val_images=200,
                    val_labels=pack_labels(LABELS),
                )
            )
    return records


def test_balanced_accuracy_chooses_another_winner_and_is_judged_image_by_image() -> None:
    records, objective = unbalanced(), Objective("val/balanced_acc_best")
    by_accuracy, balanced = tabulate(records), tabulate(records, objective)
    assert by_accuracy.winner is not None
    assert balanced.winner is not None
    assert (by_accuracy.winner.freeze_depth, balanced.winner.freeze_depth) == (9, 4)

    found = conclude(records, balanced)
    assert found.by_image
    assert any(sentence.startswith("Decided: take k=4") for sentence in found.sentences)
    assert any(re.match(r"Expect val/balanced_acc 0\.[89]\d\d ± ", sentence) for sentence in found.sentences)
    values = values_of(records[:3], objective, columns_of([records], objective))
    assert values.mean(1) == pytest.approx([trial.history[0]["val/balanced_acc"] for trial in records[:3]])
    assert images_behind(records[0]) == 72  # 4 / (1/180 + 1/20): the 20 decide


def test_records_without_the_classes_are_judged_by_seeds() -> None:
    records = [replace(trial, val_labels="") for trial in unbalanced()]
    assert not conclude(records, tabulate(records, Objective("val/balanced_acc_best"))).by_image
    damaged = [replace(trial, val_labels="x") for trial in unbalanced()]
    assert not conclude(damaged, tabulate(damaged, Objective("val/balanced_acc_best"))).by_image


def test_sizes_of_the_same_images_are_crossed_and_other_images_are_said_to_be_others() -> None:
    trials = with_bits(sweep({9: 0.80, 12: 0.70}, noise=0.005))
    sizes = [
        replace(
            r, config={"data.size": 32 * (r.freeze_depth or 0)}, digests={"dataset": f"{r.freeze_depth}", "split": "s"}
        )
        for r in trials
    ]
    assert "Expect" in text(sizes)
    others = [replace(r, digests={"dataset": f"{r.freeze_depth}", "split": "s"}) for r in trials]
    assert "Only seeds judge here, for not all were validated on the same images" in text(others)


def test_depths_that_are_equally_far_behind_are_named_side_by_side() -> None:
    records = with_bits([record(k, 0.4 if k == 0 else 0.8, seed, optim__lr=0.01) for k in (0, 9) for seed in range(3)])
    twins = [replace(trial, key=f"{trial.key} again", freeze_depth=17) for trial in records if trial.freeze_depth == 0]
    said = text([*records, *twins])
    assert re.search(
        r"Every other is worse: k=0 by (\S+) points \(at least (\S+)\), k=17 by \1 points \(at least \2\)", said
    )


def test_why_seeds_are_missing_is_said_of_a_sweep_that_repeats_by_itself_alone() -> None:
    restless = with_bits(sweep({9: 0.80, 12: 0.79}, noise=0.06, source=3))
    assert "(3 seeds). More seeds would tell." in " ".join(
        conclude(restless, tabulate(restless, Objective(margin=0.06))).sentences
    )
    explored = [*restless, replace(restless[0], key="pruned", seed=9, status="pruned", params={"optim.lr": 0.1})]
    repeating = tabulate(explored, Objective(margin=0.06, explored_by=9))
    assert "(3 seeds). More seeds would tell; the budget was spent" in " ".join(conclude(explored, repeating).sentences)
