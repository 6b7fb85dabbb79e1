from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.compose import compose_config
from finetune.config import flat, key_of, trial_key
from finetune.records.ranking import read_objective
from finetune.records.read import read_records
from finetune.records.result import Result
from finetune.report.table import label, tabulate, winner_sentence
from finetune.sweep.records import trial_settings, unrecorded
from finetune.sweep.run import run_sweep
from finetune.sweep.search import planned_trials
from finetune.sweep.spec import SweepSpec
from finetune.sweep.state import Options
from tests.sweep.conftest import Pretender, spec_of

FIXED = ["model.weights=IMAGENET1K_V1", "data.root=photos", "data.size=64", "model.freeze_unit=stage"]
SPACE = {"model.freeze_depth": {"values": [0, 1, 2, 3, 4]}, "optim.lr": {"values": [0.01, 0.1]}}


@pytest.fixture
def race(tmp_path: Path, pretended: Pretender) -> tuple[SweepSpec, Path]:
    """A race in which the higher learning rate was stopped at the deepest cut, and so not started at the others."""
    spec = spec_of(tmp_path, FIXED, SPACE)
    pretended.status = lambda overrides: "pruned" if overrides["optim.lr"] == "0.1" else "complete"
    run_sweep(spec, tmp_path / "s", Options(workers=1, margin=0.02))
    return spec, tmp_path / "s"


def of_status(folder: Path, reason: str) -> list[Result]:
    return [record for record in read_records(folder) if record.reason.startswith(reason)]


def test_a_trial_that_was_not_started_has_the_settings_it_would_have_had(race: tuple[SweepSpec, Path]) -> None:
    spec, folder = race
    records = of_status(folder, "not needed")
    assert {record.freeze_depth for record in records} == {0, 1, 2, 3}
    complete = next(record for record in of_status(folder, "complete") if record.seed == 0)
    for record in records:
        trial = folder / "trials" / record.key
        params = {"model.freeze_depth": record.freeze_depth, "optim.lr": 0.1}
        assert record.config == flat(compose_config([*spec.overrides(params), f"out={trial}"]))
        assert record.params.keys() == complete.params.keys()
        assert record.params == {key: record.config[key] for key in record.params}
        assert (record.freeze_unit, record.seed, record.status) == ("stage", 0, "pruned")


def test_a_report_on_a_race_names_what_was_swept_and_nothing_else(race: tuple[SweepSpec, Path]) -> None:
    _, folder = race
    table = tabulate(read_records(folder), read_objective([folder]))
    assert table.swept == ("optim.lr",)
    assert {label(group.params, table.swept) for group in table.groups} == {"lr=0.01"}
    assert (
        winner_sentence(table)
        == "Best: freeze_depth=4 lr=0.01 with val/acc 0.010 ± 0.000, mean of 3 seeds with its 95 % interval."
    )


@pytest.mark.slow
def test_records_of_older_races_are_read_and_tabulated(race: tuple[SweepSpec, Path]) -> None:
    _, folder = race
    for record in of_status(folder, "not needed"):
        swept = {key: record.params[key] for key in SPACE}
        replace(record, params=swept, config={}, freeze_unit="block").save(folder / "trials" / record.key)
    table = tabulate(read_records(folder))
    assert table.swept == ("optim.lr",)
    assert table.counts["pruned"] == 5


def test_a_trial_that_died_has_the_settings_that_it_had(tmp_path: Path, pretended: Pretender) -> None:
    space = {"model.freeze_depth": {"values": ["all"]}, "optim.lr": {"values": [0.01]}, "seed": {"values": [7]}}
    spec = spec_of(tmp_path, FIXED, space)
    pretended.status = lambda overrides: ""
    (record,) = run_sweep(spec, tmp_path / "s").results
    assert (record.status, record.reason) == ("failed", "killed by signal 9, at each of 3 starts")
    assert (record.freeze_depth, record.freeze_unit, record.seed) == (None, "stage", 7)
    assert record.config["data.size"] == record.params["data.size"] == 64
    assert record.config["model.freeze_depth"] == "all"
    assert record == Result.load(tmp_path / "s" / "trials" / record.key)


def test_what_cannot_be_composed_any_more_is_recorded_with_what_is_known(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, FIXED, SPACE)
    params: dict[str, Any] = {"model.freeze_depth": 2, "optim.lr": 0.1}
    record = unrecorded(tmp_path / "t", spec, params, {}, "failed", "died")
    assert (record.config, record.params, record.freeze_depth) == ({}, params, 2)
    assert trial_settings(spec)(params)["model.freeze_unit"] == "stage"


def test_a_trial_of_any_network_has_the_key_that_it_gives_itself(tmp_path: Path) -> None:
    """Networks leave other settings open: a ResNet's images have 224 pixels, timm's weights are `pretrained`."""
    networks = ["resnet50", "convnext_tiny", "timm/vit_tiny_patch16_224"]
    space = {"model.backbone": {"values": networks}, "model.freeze_depth": {"values": [0, 0.5]}}
    spec = spec_of(tmp_path, ["data.root=photos", "model.freeze_unit=share"], space)
    settings_of = trial_settings(spec)
    for params in planned_trials(spec):
        assert key_of(settings_of(params)) == trial_key(compose_config(spec.overrides(params))), params


def test_each_network_may_have_weights_of_its_own(tmp_path: Path) -> None:
    fixed = ["data.root=photos", "model.freeze_unit=share", "model.weights='of/${model.backbone}.pth'"]
    spec = spec_of(tmp_path, fixed, {"model.backbone": {"values": ["resnet18", "cnn5"]}})
    weights = [trial_settings(spec)(params)["model.weights"] for params in planned_trials(spec)]
    assert weights == ["of/resnet18.pth", "of/cnn5.pth"]
