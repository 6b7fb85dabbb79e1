"""`finetune train`, as a command."""

from pathlib import Path

import pytest

from finetune.records.result import Result
from tests.test_cli import finetune


def test_a_trial_is_run_as_by_the_module(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert finetune(monkeypatch, "train", *small, "trainer.epochs=1", "model.freeze_depth=5", "out=one") == 0
    assert "record: one/result.json" in capfd.readouterr().out
    assert Result.load(tmp_path / "one").config["trainer.epochs"] == 1


@pytest.mark.slow
def test_what_cannot_be_set_is_refused_and_help_lists_the_settings(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finetune(monkeypatch, "train", "optim.lrr=1") == 2
    assert "optim.lr" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        finetune(monkeypatch, "train", "--help")
    assert "freeze_depth" in capfd.readouterr().out
