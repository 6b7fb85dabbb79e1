import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune import __version__
from finetune.compose import compose_config
from finetune.config import trial_key
from finetune.errors import Refused
from finetune.records.layout import SWEEP
from finetune.records.ranking import ACCURACY, Objective, read_objective
from finetune.storage.durable import sealed, unsealed
from finetune.sweep.folder import claim, refuse_another
from finetune.sweep.identity import VERSION, identity_of, spec_digest
from finetune.sweep.run import run_sweep
from finetune.sweep.spec import SweepSpec, read_sweep
from tests.sweep.conftest import Pretender

COMMAND = ["${env}", "${interpreter}", "-m", "finetune.train", "model=resnet18", "${args_no_hyphens}"]
FILES: dict[str, dict[str, Any]] = {
    "grid": {
        "method": "grid",
        "command": COMMAND,
        "parameters": {
            "model.freeze_depth": {"values": [16, 17, "all"]},
            "model.head.hidden": {"values": [[], [256, 128]]},
            "trainer.patience": {"values": [None, 3]},
        },
    },
    "bands": {
        "method": "random",
        "run_cap": 4,
        "metric": {"name": "val/loss", "goal": "minimize", "target": 0.25},
        "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 2.5, "strict": True},
        "parameters": {
            "optim.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1},
            "optim.weight_decay": {"values": [0.0, 0.5], "probabilities": [0.25, 0.75]},
            "data.size": {"distribution": "q_uniform", "min": 32, "max": 224, "q": 32},
        },
    },
    "halves": {
        "method": "bayes",
        "run_cap": 9,
        "metric": {"name": "val/acc", "goal": "maximize"},
        "early_terminate": {"type": "hyperband", "max_iter": 27, "s": 2, "strict": False},
        "parameters": {"optim.lr": {"min": 0.001, "max": 0.1}, "seed": {"min": 0, "max": 9}},
    },
    "race": {
        "method": "grid",
        "metric": {"name": "val/acc_best", "goal": "maximize"},
        "parameters": {"optim.lr": {"values": [0.1, 0.01]}, "seed": {"value": 3}},
    },
}
FOLDERS: dict[str, dict[str, Any]] = {
    "grid": {
        "name": "grid",
        "digest": "168789c53b5e",
        "seed": 7,
        "fixed": ["model=resnet18", "data.root=photos"],
        "search": "grid, maximize val/acc_best, target None, stopping none",
        "space": {
            "model.freeze_depth": "16, 17, all",
            "model.head.hidden": "[], [256, 128]",
            "trainer.patience": "None, 3",
        },
        "data": ["pixels_labels", "weights"],
        "trials": 5,
    },
    "bands": {
        "name": "bands",
        "digest": "1342a4848689",
        "seed": 7,
        "fixed": ["data.root=photos"],
        "search": "random, minimize val/loss, target 0.25, "
        "stopping Hyperband(min_iter=2, max_iter=None, s=None, eta=2.5, strict=True)",
        "space": {
            "optim.lr": "log_uniform_values 1e-05 … 0.1",
            "optim.weight_decay": "0.0, 0.5 with probabilities [0.25, 0.75]",
            "data.size": "q_uniform 32 … 224 in steps of 32",
        },
        "data": ["pixels_labels", "weights"],
        "trials": 5,
    },
    "halves": {
        "name": "halves",
        "digest": "aeae312d2d14",
        "seed": 7,
        "fixed": ["data.root=photos"],
        "search": "bayes, maximize val/acc, target None, "
        "stopping Hyperband(min_iter=None, max_iter=27, s=2, eta=3.0, strict=False)",
        "space": {"optim.lr": "uniform 0.001 … 0.1", "seed": "int_uniform 0 … 9"},
        "data": ["pixels_labels", "weights"],
        "trials": 5,
    },
    "race": {
        "name": "race",
        "digest": "d93acb602b53",
        "seed": 7,
        "fixed": ["data.root=photos"],
        "search": "grid, maximize val/acc_best, target None, stopping Race(z=1.5)",
        "space": {"optim.lr": "0.1, 0.01", "seed": "3"},
        "data": ["pixels_labels", "weights"],
        "trials": 5,
    },
}
"""What the code before `VERSION` was written left for these files; users have such folders."""


def read(tmp_path: Path, raw: dict[str, Any], *overrides: str) -> SweepSpec:
    path = tmp_path / f"{raw.get('name', 's')}.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return read_sweep(path, overrides)


def old_sweep(tmp_path: Path, name: str) -> tuple[SweepSpec, Path]:
    """The sweep of one of the `FILES`, and its folder as older code left it."""
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    (folder / SWEEP).write_bytes(sealed(FOLDERS[name]))
    return read(tmp_path, FILES[name] | {"name": name}, "data.root=photos"), folder


@pytest.mark.parametrize("name", FILES)
def test_a_folder_of_older_code_holds_the_same_sweep(tmp_path: Path, name: str) -> None:
    spec, folder = old_sweep(tmp_path, name)
    data = ("pixels_labels", "weights")
    refuse_another(spec, folder, 7, data)
    claim(spec, folder, 7, data, trials=5, objective=ACCURACY)
    expected = {**FOLDERS[name], "version": VERSION, "finetune": __version__}
    if name == "race":  # a race is how any sweep may explore now
        expected |= {"digest": spec_digest(spec), "search": "grid, maximize val/acc_best, target None, stopping none"}
    assert unsealed((folder / SWEEP).read_bytes()) == expected

    with pytest.raises(Refused, match="search seed was 7 and would now be 8"):
        refuse_another(spec, folder, 8, data)


@pytest.mark.parametrize(
    "name", ["race", *(pytest.param(name, marks=pytest.mark.slow) for name in FILES if name != "race")]
)
def test_a_sweep_of_older_code_is_continued(tmp_path: Path, name: str, pretended: Pretender) -> None:
    spec, folder = old_sweep(tmp_path, name)
    sweep = run_sweep(spec, folder, seed=7)
    assert len(sweep.finished) == sweep.total
    assert {trial_key(compose_config(words)) for words in pretended.started} == {
        trial.name for trial in (folder / "trials").iterdir()
    }


@pytest.mark.parametrize("name", FILES)
def test_how_a_space_is_shown_decides_nothing(tmp_path: Path, name: str) -> None:
    spec, folder = old_sweep(tmp_path, name)
    shown = {key: f"in other words, {text}" for key, text in FOLDERS[name]["space"].items()}
    (folder / SWEEP).write_bytes(sealed({**FOLDERS[name], "space": shown}))
    refuse_another(spec, folder, 7)


def test_a_folder_of_newer_code_is_refused(tmp_path: Path) -> None:
    spec, folder = old_sweep(tmp_path, "grid")
    (folder / SWEEP).write_bytes(sealed({"version": VERSION + 1}))
    with pytest.raises(Refused, match=r"sweep\.json is of a newer finetune; update this one, or give --out another"):
        refuse_another(spec, folder, 7)


def test_an_identity_is_plain_json(tmp_path: Path) -> None:
    identity = identity_of(read(tmp_path, FILES["bands"]), 0, ("b", "a"))
    assert json.loads(json.dumps(identity)) == identity


BASE: dict[str, Any] = {"method": "random", "run_cap": 3, "parameters": {"optim.lr": {"values": [0.1, 0.2]}}}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"name": "other", "description": "d", "project": "p", "entity": "e"}, True),
        ({"run_cap": 9}, True),  # a sweep can be continued with more trials
        ({"method": "grid"}, False),
        ({"metric": {"name": "val/loss", "goal": "minimize"}}, False),
        ({"metric": {"name": "val/acc", "goal": "maximize"}}, False),
        ({"parameters": {"optim.lr": {"values": [0.1, 0.3]}}}, False),
        ({"parameters": {"optim.lr": {"values": [0.1, 0.2], "probabilities": [0.5, 0.5]}}}, False),
        ({"parameters": {"optim.lr": {"min": 0.1, "max": 0.2}}}, False),
        ({"parameters": {**BASE["parameters"], "seed": {"values": [0, 1]}}}, False),
        ({"command": COMMAND}, False),
    ],
)
def test_the_digest_names_the_space_and_not_the_header(tmp_path: Path, change: dict[str, Any], same: bool) -> None:
    before, after = (spec_digest(read(tmp_path, raw)) for raw in (BASE, BASE | change))
    assert (before == after) == same


def test_the_digest_knows_the_goal(tmp_path: Path) -> None:
    spec = read(tmp_path, BASE)
    assert spec_digest(replace(spec, goal="minimize")) != spec_digest(spec)


def test_the_digest_knows_the_overrides(tmp_path: Path) -> None:
    plain = read(tmp_path, BASE)
    assert spec_digest(read(tmp_path, BASE, "seed=1")) != spec_digest(plain)

    (tmp_path / "s.yaml").write_text(f"# a comment\n{yaml.safe_dump(BASE)}")
    assert spec_digest(read_sweep(tmp_path / "s.yaml")) == spec_digest(plain)


def test_the_margin_of_the_verdict_is_written_and_no_part_of_what_a_sweep_is(tmp_path: Path) -> None:
    spec, folder = read(tmp_path, BASE), tmp_path / "s"
    claim(spec, folder, 0, (), trials=3, objective=Objective(margin=0.01, explored_by=0))
    refuse_another(spec, folder, 0)
    claim(spec, folder, 0, (), trials=3, objective=ACCURACY)  # a call with --no-repeats
    objective = read_objective([folder])
    assert (objective.margin, objective.explored_by) == (0.01, 0)
