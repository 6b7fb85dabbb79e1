"""Rows 13 and 15: a config or sweep file that is wrong, or wants more than it may, is refused before anything ran."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune import train
from finetune.errors import Refused
from finetune.sweep.cluster import read_cluster
from tests.faults.invariants import sweep_file
from tests.faults.refusing import ONE_TRIAL, Sweeps


@pytest.fixture
def sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Sweeps:
    return Sweeps(tmp_path, monkeypatch, capfd)


def trained(monkeypatch: pytest.MonkeyPatch, words: Sequence[str]) -> int:
    """The exit code of `python -m finetune.train WORDS`, run here."""
    monkeypatch.setattr(sys, "argv", ["finetune.train", *words])
    return train.main()


WRONG = {
    "optim.lrr=0.1": "there is no key 'optim.lrr'; did you mean optim.lr?",
    "model.freeze_dept=3": "there is no key 'model.freeze_dept'; did you mean model.freeze_depth?",
    "+typo=1": "there is no key 'typo'",
    "+optim.typo=1": "there is no key 'optim.typo'; did you mean optim.",
    "optim.lr=fast": "optim.lr=fast: value 'fast' of type 'str' could not be converted to Float",
    "data.batch_size=2.5": "data.batch_size=2.5: value '2.5' of type 'float' could not be converted to Integer",
    "model.head.hidden=64": "model.head.hidden=64: invalid value assigned: int is not a ListConfig, list or tuple.",
    "model.freeze_depth=99": "freeze_depth=99",
    "model.freeze_depth=-1": "freeze_depth=-1",
    "model.backbone=resnet51": "model.backbone=resnet51 is not known; did you mean resnet50?",
    "optim.name=adam": "optim.name=adam is not known; did you mean adamw?",
    "model=resnet51": "conf/model has no 'resnet51'; did you mean resnet50?",
    "optim.momentum=2": "optim.momentum=2.0 is out of range; it must be at least 0 and at most 1",
    "model.head.hidden=[9999999999999]": "it must be at least 1 and at most 65536",
}


SEVERAL = ("optim.lrr=0.1", "model=resnet51")


@pytest.mark.parametrize(
    "word", [word if word in SEVERAL else pytest.param(word, marks=pytest.mark.slow) for word in WRONG]
)
def test_fault_13_a_wrong_setting_is_refused_with_the_nearest_key_or_the_range(
    sweeps: Sweeps,
    fast: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    word: str,
) -> None:
    file = sweep_file(tmp_path, {"seed": {"values": [0]}})
    said = [sweeps.refused([*fast, word], file)]
    assert trained(monkeypatch, [*fast, word, f"out={tmp_path / 'run'}"]) == 2
    said.append(capfd.readouterr().err)
    for text in said:
        assert WRONG[word] in text
        assert text.strip().count("\n") == 0
        if "freeze_depth" in word and "=" in word and "dept=" not in word:
            assert "0..17" in text or "0 to 17" in text
    assert not (tmp_path / "run").exists()


def test_fault_13_a_misspelt_key_of_a_sweep_file_is_refused_too(
    sweeps: Sweeps, fast: list[str], tmp_path: Path
) -> None:
    for parameters, message in (
        ({"optim.lrr": {"values": [0.1]}}, "did you mean optim.lr?"),
        ({"optim.lr": {"value": [0.1]}}, "optim.lr"),
        ({"model.freeze_depth": {"values": [17, 99]}}, "freeze_depth=99"),
        ({"model.backbone": {"values": ["resnet51"]}}, "did you mean resnet50?"),
    ):
        kept = [word for word in fast if word.partition("=")[0] != "model" or "model.backbone" not in parameters]
        assert message in sweeps.refused(kept, sweep_file(tmp_path, parameters))
    assert "key 'parameter' is not supported; did you mean parameters?" in sweeps.refused(
        fast, sweep_file(tmp_path, ONE_TRIAL, parameter={})
    )


REACHING = {
    "hydra.run.dir=/elsewhere": "Hydra's own settings",
    "+hydra.callbacks.evil._target_=tests.faults.evil": "Hydra's own settings",
    "hydra/launcher=basic": "Hydra's own settings",
    "+hydra.searchpath=[file:///elsewhere]": "Hydra's own settings",
    "+_target_=os.system": "there is no key '_target_'",
    "+model._target_=os.system": "there is no key 'model._target_'",
    "model=../../evil": "conf/model has no '../../evil'",
    "model=/evil": "conf/model has no '/evil'",
    "+experiment=../evil": "conf/experiment has no '../evil'",
    "~model": "a setting cannot be removed",
    "logger.project=${oc.env:WANDB_API_KEY}": "WANDB_API_KEY may be a secret",
}


@pytest.mark.parametrize("word", REACHING)
def test_fault_15_an_override_sets_settings_and_nothing_else(
    sweeps: Sweeps,
    fast: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    word: str,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "7" * 40)
    assert REACHING[word] in sweeps.refused([*fast, word])
    command = ["${env}", "${interpreter}", "-m", "finetune.train", word, "${args_no_hyphens}"]
    line = sweeps.refused(fast, sweep_file(tmp_path, ONE_TRIAL, command=command))
    assert REACHING[word] in line
    assert "7777" not in line
    assert trained(monkeypatch, [*fast, word, f"out={tmp_path / 'run'}"]) == 2
    assert REACHING[word] in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_fault_15_a_sweep_file_that_names_code_runs_none(sweeps: Sweeps, fast: list[str], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    evil = {
        "program: evil.py\n": "key 'program' is not supported",
        f"command: [sh, -c, 'touch {ran}', '${{args_no_hyphens}}']\n": "a sweep file names no other program",
        f"command: [python, -m, finetune.train, '${{args_no_hyphens}}', ';', touch, {ran}]\n": "names no other program",
        f"description: !!python/object/apply:os.system ['touch {ran}']\n": "could not determine a constructor",
        "description: !!python/name:os.system\n": "could not determine a constructor",
        "description: !include /etc/passwd\n": "could not determine a constructor",
        "name: ../up\n": "must be a plain word",
        "name: /up\n": "must be a plain word",
    }
    file = tmp_path / "evil.yaml"
    for text, message in evil.items():
        file.write_text(f"{text}method: grid\nparameters: {{model.freeze_depth: {{values: [17]}}}}\n")
        assert message in sweeps.refused(fast, file), text
    assert not ran.exists()


@pytest.mark.parametrize("key", ["out", "cache.dir"])
def test_fault_15_a_sweep_file_does_not_climb_out(sweeps: Sweeps, fast: list[str], tmp_path: Path, key: str) -> None:
    command = ["${env}", "${interpreter}", "-m", "finetune.train", f"{key}=../../x", "${args_no_hyphens}"]
    for file in (
        lambda: sweep_file(tmp_path, ONE_TRIAL, command=command),
        lambda: sweep_file(tmp_path, {key: {"values": ["runs/../../x"]}}),
    ):
        assert "leads out of the folder" in sweeps.refused(fast, file())


def test_fault_15_a_launcher_file_with_a_tag_or_another_key_is_refused(tmp_path: Path) -> None:
    file, ran = tmp_path / "launcher.yaml", tmp_path / "ran"
    whole = "cluster: local\nparallel: 1\nminutes: 1\n"
    for text in (
        f"partition: !!python/object/apply:os.system ['touch {ran}']\n",
        "_target_: os.system\n",
        "[1]\n",
        "a\n",
    ):
        file.write_text(whole + text if ":" in text else text)
        with pytest.raises(Refused, match=r"^--launcher .*launcher.yaml cannot be used: "):
            read_cluster(str(file))
    assert not ran.exists()
