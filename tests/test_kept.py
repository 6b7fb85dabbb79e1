"""What older releases wrote is read by this one: `kept/VERSION/`, which `kept/write.py` wrote with each."""

import csv
import json
import shutil
import tarfile
from pathlib import Path

import PIL
import pytest
import torch
import yaml

from finetune import __version__
from finetune.records.layout import SWEEP
from finetune.records.result import Result
from finetune.storage.durable import sealed, unsealed
from finetune.version import is_newer
from tests.faults.invariants import terminal_records
from tests.kept import write
from tests.models import finetune

RELEASES = sorted(folder for folder in (Path(__file__).parent / "kept").iterdir() if folder.name[0].isdigit())


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what the release left and the weights that it used."""
    shutil.copytree(request.param, tmp_path / "kept")
    with tarfile.open(tmp_path / "kept" / "model.tar.xz") as packed:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # which came with Python 3.11.4
        packed.extractall(tmp_path / "kept", **safely)
    write.weights(tmp_path / "kept" / "weights.safetensors")
    monkeypatch.chdir(tmp_path / "kept")
    return tmp_path / "kept"


def probabilities(file: Path) -> dict[str, list[float]]:
    rows = list(csv.reader(file.read_text().splitlines()))
    return {row[0]: [float(value) for value in row[-3:]] for row in rows[1:]}


def test_each_release_kept_what_it_wrote() -> None:
    assert "0.1.0" in {folder.name for folder in RELEASES}
    for folder in RELEASES:
        assert not is_newer(folder.name)
        assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 1_000_000
        kinds = {Result.load(file.parent).status for file in folder.glob("runs/kept/trials/*/result.json")}
        assert kinds == {"complete", "pruned", "failed", "interrupted"}


def test_a_sweep_of_then_goes_on(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = kept / "runs" / "kept"
    before = terminal_records(folder)
    (half,) = {trial.name for trial in (folder / "trials").iterdir()} - before.keys()
    stores = {manifest: manifest.read_bytes() for manifest in (kept / "cache").rglob("manifest.json")}
    assert finetune(monkeypatch, "status", folder) == 0
    assert finetune(monkeypatch, "report", folder) == 0
    assert "Best: freeze_depth=15 lr=0.03" in capsys.readouterr().out

    code = finetune(monkeypatch, "sweep", "sweep.yaml", "--workers", "1", "--no-repeats")
    if PIL.__version__ != (kept / "pillow.txt").read_text().strip():  # which may decode to other pixels
        assert code == 2
        assert "runs/kept holds a sweep whose data was" in capsys.readouterr().err
        assert terminal_records(folder) == before
        return

    assert code == 3  # two have failed
    after = terminal_records(folder)
    assert after.keys() - before.keys() == {half}
    assert before.items() <= after.items()
    went_on = Result.load(folder / "trials" / half)
    assert went_on.status == "complete"
    assert [entry["epoch"] for entry in went_on.history] == list(range(6))
    assert {manifest: manifest.read_bytes() for manifest in (kept / "cache").rglob("manifest.json")} == stores

    # the release is written there now, so that an older one refuses what is newer
    assert unsealed((folder / SWEEP).read_bytes())["finetune"] == __version__
    same = [trial for trial in (folder / "trials").glob("*/result.json") if trial.parent.name in before]
    if went_on.versions["torch"] == Result.load(same[0].parent).versions["torch"]:
        assert "cannot be used" not in (folder / "trials" / half / "log.txt").read_text()


def test_models_of_then_predict_alike(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("runs/kept", "model"):
        assert finetune(monkeypatch, "predict", model, "images/val", "--csv", f"{Path(model).name}.csv") == 0
    of_checkpoint, of_export = probabilities(kept / "kept.csv"), probabilities(kept / "model.csv")
    assert of_checkpoint.keys() == of_export.keys()
    assert len(of_checkpoint) == 9
    for name, values in of_checkpoint.items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(of_export[name]), atol=1e-5, rtol=0)

    # and as they were then: so many of the nine were right
    winner = Result.load(next(kept.glob("runs/kept/trials/*/best.safetensors")).parent)
    classes = json.loads((kept / "model" / "classes.json").read_text())
    right = [classes[max(range(3), key=values.__getitem__)] in name for name, values in of_checkpoint.items()]
    assert sum(right) / 9 == pytest.approx(winner.val_acc_best)


@pytest.mark.slow
def test_a_model_of_then_is_exported_and_a_trial_under_wandb_is_reused(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(monkeypatch, "export", "runs/kept", "again") == 0
    assert finetune(monkeypatch, "predict", "again", "images/val") == 0

    raw = yaml.safe_load((kept / "runs" / "wandb" / ".hydra" / "overrides.yaml").read_text())
    words = [word for word in raw if word.partition("=")[0] not in ("out", "logger", "logger.mode")]
    spec = {"method": "grid", "metric": {"name": "val/acc_best", "goal": "maximize"}}
    (kept / "one.yaml").write_text(yaml.safe_dump({**spec, "parameters": {"seed": {"values": [0]}}}))
    assert finetune(monkeypatch, "sweep", "one.yaml", *words, "--out", "reused", "--reuse", "runs") == 0
    assert "1 trial" in capsys.readouterr().out
    (record,) = (kept / "reused" / "trials").glob("*/result.json")
    assert Result.load(record.parent).history == Result.load(kept / "runs" / "wandb").history


def test_a_sweep_of_a_newer_release_is_refused_by_name(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = kept / "runs" / "kept"
    about = unsealed((folder / SWEEP).read_bytes())
    (folder / SWEEP).write_bytes(sealed({**about, "finetune": "99.1.0"}))
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for words in (["sweep", "sweep.yaml"], ["report", "runs/kept"], ["predict", "runs/kept", "images/val"]):
        assert finetune(monkeypatch, *words) == 2
        assert f"was written by finetune 99.1.0, and this is {__version__}" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
