from dataclasses import replace
from pathlib import Path

import pytest

from finetune.errors import Refused
from finetune.sweep.spec import find_sweep, read_sweep
from tests.sweep.test_spec import read

ACC = "metric: {name: val/acc_best, goal: maximize}"


@pytest.mark.parametrize("metric", ["val/balanced_acc", "val/f1", "val/auroc", "val/loss"])
def test_a_sweep_for_accuracy_follows_what_its_trials_follow(metric: str) -> None:
    spec = read_sweep(find_sweep("explore"), (f"trainer.metric={metric}",))
    assert spec.metric == f"{metric}_best"
    assert spec.goal == ("minimize" if metric == "val/loss" else "maximize")


def test_without_it_nothing_changes() -> None:
    plain = read_sweep(find_sweep("explore"))
    same = read_sweep(find_sweep("explore"), ("trainer.metric=val/acc",))
    assert plain.metric == "val/acc_best"
    assert same == replace(plain, fixed=(*plain.fixed, "trainer.metric=val/acc"))


def test_the_setting_may_stand_in_the_file(tmp_path: Path) -> None:
    one = read(
        tmp_path, f"{{method: grid, {ACC}, parameters: {{seed: {{value: 1}}, trainer.metric: {{value: val/f1}}}}}}"
    )
    assert one.metric == "val/f1_best"
    last = "{method: grid, metric: {name: val/f1, goal: maximize}, parameters: {seed: {value: 1}}}"
    assert read(tmp_path, last, "trainer.metric=val/f1").metric == "val/f1"
    loss = "{method: grid, metric: {name: val/loss, goal: minimize}, parameters: {seed: {value: 1}}}"
    assert read(tmp_path, loss, "trainer.metric=val/f1").metric == "val/loss"


@pytest.mark.parametrize(
    ("metric", "parameter", "override", "sentence"),
    [
        (
            "val/acc_best",
            "trainer.metric: {values: [val/f1, val/acc]}",
            "seed=1",
            "one metric compares all",
        ),
        (
            "val/f1_best",
            "seed: {value: 1}",
            "optim=sgd",
            "follow it; add trainer.metric=val/f1",
        ),
        ("val/f1", "seed: {value: 1}", "trainer.metric=val/auroc", "follow it; add trainer.metric=val/f1"),
        (
            "val/acc_best, target: 0.9",
            "seed: {value: 1}",
            "trainer.metric=val/f1",
            "metric.target 0.9 is of val/acc",
        ),
    ],
)
def test_a_metric_that_trials_would_not_report_is_refused(
    tmp_path: Path, metric: str, parameter: str, override: str, sentence: str
) -> None:
    text = f"{{method: grid, metric: {{goal: maximize, name: {metric}}}, parameters: {{{parameter}}}}}"
    with pytest.raises(Refused, match=sentence):
        read(tmp_path, text, override)
