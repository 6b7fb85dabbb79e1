import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.report.rows import row_of, write_csv, write_json
from tests.report.test_table import record
from tests.test_cli import finetune

TRIALS = [
    replace(record(4, 0.8, 1), params={"model.head.hidden": [64], "optim.lr": 0.01, "seed": 1}, last={"val/loss": 0.4}),
    replace(record(9, None, 0, "failed"), reason='out of "memory", twice\nor more', params={"optim.lr": 0.1}),
]


def test_each_trial_is_a_line_that_reads_back(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", TRIALS)
    with (tmp_path / "t.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["trial"], first["status"], first["freeze_depth"]) == (TRIALS[0].key, "complete", "4")
    assert (first["val/acc_best"], first["val/loss"], first["seed"]) == ("0.8", "0.4", "1")
    assert json.loads(first["model.head.hidden"]) == [64]
    assert (second["reason"], second["val/acc_best"], second["val/loss"]) == (TRIALS[1].reason, "", "")


def test_the_json_has_the_epochs_too(tmp_path: Path) -> None:
    write_json(tmp_path / "t.json", TRIALS)
    rows = json.loads((tmp_path / "t.json").read_text())
    assert rows == [{**row_of(trial), "history": trial.history} for trial in TRIALS]


def test_the_command_writes_them_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for trial in TRIALS:
        trial.save(tmp_path / "s" / "trials" / trial.key)
    files = [tmp_path / "t.csv", tmp_path / "t.json"]
    assert finetune(monkeypatch, "report", str(tmp_path / "s"), "--csv", str(files[0]), "--json", str(files[1])) == 0
    said = capfd.readouterr().out.replace("\n", "")  # long lines are wrapped
    for file in files:
        assert f"trials: {file}" in said
        assert file.is_file()
    (tmp_path / "file").touch()
    assert finetune(monkeypatch, "report", str(tmp_path / "s"), "--csv", str(tmp_path / "file" / "t.csv")) == 2
    said = capfd.readouterr()
    assert "t.csv cannot be written" in said.err
    assert not said.out
