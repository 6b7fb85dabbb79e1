"""finetune from Python, as `docs/python.md` tells it."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

import finetune
from finetune.compose import compose_config
from finetune.errors import Refused
from finetune.records.read import read_records
from finetune.trial.run import train
from tests.models import small_trial
from tests.test_docs import ROOT, blocks

STABLE = {
    "FineTune.from_pretrained": "backbone, *, classes, freeze_depth, lr, weights, overrides",
    "ImageData": "root, *, size, augment, batch_size, seed, overrides",
    "load": "model",
    "read_records": "folder",
    "register_backbone": "name, build",
    "run_sweep": "file, data_root, *, overrides, out, trials, workers, budget, margin, seed",
}
"""What others rely on: arguments may be added behind these."""


def arguments(function: Any) -> str:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
    names = [parameter.name for parameter in parameters]
    first = next((i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
    return ", ".join(names if first is None else [*names[:first], "*", *names[first:]])


def test_names_and_arguments_are_stable() -> None:
    assert set(finetune.__all__) == {name.partition(".")[0] for name in STABLE} | {"__version__"}
    for name, expected in STABLE.items():
        target: Any = finetune
        for part in name.split("."):
            target = getattr(target, part)
        assert arguments(target) == expected, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = finetune.nothing


@pytest.mark.slow
def test_sweeps_and_records_need_no_torch_to_be_imported() -> None:
    script = (
        "import sys, finetune; finetune.run_sweep, finetune.read_records, finetune.load; print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout == "False\n", ran.stderr


def fitted(images: Path, tmp_path: Path, freeze_depth: int | str, lr: float = 0.01, **trainer: Any) -> tuple[Any, Any]:
    pl.seed_everything(0, verbose=False)
    data = finetune.ImageData(images, size=32, batch_size=8)
    module = finetune.FineTune.from_pretrained(
        "narrow_resnet50", classes=len(data.classes), freeze_depth=freeze_depth, lr=lr
    )
    settings = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, **trainer}
    pl.Trainer(default_root_dir=tmp_path, enable_model_summary=False, **settings).fit(module, data)
    return module, data


@pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:.*tensorboard")
def test_a_trainer_of_ones_own_does_what_a_trial_does(images: Path, tmp_path: Path) -> None:
    """With its own logger and checkpoints, and the validation steps that Lightning begins with."""
    checkpoint = ModelCheckpoint(tmp_path / "kept", monitor="val/acc", mode="max")
    logger = CSVLogger(tmp_path / "logs")
    settings = {"callbacks": [checkpoint], "log_every_n_steps": 1, "num_sanity_val_steps": 2}
    module, data = fitted(images, tmp_path, 11, lr=1e-4, logger=logger, **settings)
    assert data.classes == ("class0", "class1", "class2")

    words = [
        *("model=narrow_resnet50", "model.freeze_depth=11", f"data.root={images}", "data.size=32"),
        *("data.batch_size=8", "optim.lr=1e-4", "trainer.epochs=2", "trainer.accelerator=cpu"),
    ]
    trial = train(compose_config([*words, f"out={tmp_path / 'trial'}"]), words)
    assert len(module.history) == 2
    for own, theirs in zip(module.history, trial.history, strict=True):
        assert own == pytest.approx(theirs, rel=1e-3, abs=1e-5)  # folding rounds

    assert Path(checkpoint.best_model_path).is_file()
    assert "val/acc_best" in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_what_is_frozen_does_not_change(images: Path, tmp_path: Path) -> None:
    fresh = finetune.FineTune.from_pretrained("narrow_resnet50", classes=3, freeze_depth=11)
    module, _ = fitted(images, tmp_path, 11, enable_checkpointing=False)
    before, after = fresh.network.state_dict(), module.network.state_dict()
    assert before.keys() == after.keys()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"suffix", "head"}


def test_validation_alone_adds_no_epoch(images: Path, tmp_path: Path) -> None:
    module, data = fitted(images, tmp_path, "all", enable_checkpointing=False)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    with pytest.raises(Refused, match="there are no test images; add test/ beside train/"):
        trainer.test(module, data)
    (figures,) = trainer.validate(module, data, verbose=False)
    assert figures["val/acc"] == pytest.approx(module.history[-1]["val/acc"])
    assert len(module.history) == 2


TWO_DEVICES = """
import sys
from pathlib import Path
import pytorch_lightning as pl
import finetune

if __name__ == "__main__":
    data = finetune.ImageData(sys.argv[1], size=32, batch_size=4)
    module = finetune.FineTune.from_pretrained("narrow_resnet50", classes=3, freeze_depth="all", lr=0.01)
    seen = []
    module.register_forward_pre_hook(lambda module, x: seen.append(len(x)))
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    counts = [figures.count for figures in (module.train_figures, module.val_figures)]
    Path(sys.argv[2], str(trainer.global_rank)).write_text(repr((module.history, trainer.global_step)))
"""


@pytest.mark.slow
def test_two_devices_share_the_training_images_and_agree_on_the_figures(images: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TWO_DEVICES)
    command = [sys.executable, "-W", "ignore", "script.py", str(images), str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first, second = (eval((tmp_path / rank).read_text()) for rank in "01")
    assert first == second
    ((epoch,), steps) = first
    assert steps == 3  # 24 images, 2 devices, 4 images a batch
    assert (epoch["train/acc"] * 24) % 1 == pytest.approx(0, abs=1e-4)
    assert (epoch["val/acc"] * 12) % 1 == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs_from_images_to_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell after cell, with fewer trials of fewer epochs."""
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    file = (ROOT / "docs" / "notebook.ipynb").read_text()
    cells = ["".join(cell["source"]) for cell in json.loads(file)["cells"] if cell["cell_type"] == "code"]
    few = '"local.yaml", trials=2, margin=None, overrides=["trainer.epochs=1"]'
    names: dict[str, Any] = {}
    for cell in cells:
        exec(cell.replace("max_epochs=10", "max_epochs=1").replace('"local.yaml"', few), names)
    assert len(names["files"]) == 5
    assert "<iframe" in names["sweep"].report()._repr_html_()


def page_examples(place: Path, images: Path) -> list[str]:
    """Those of docs/python.md, made small, to be run in `place`, where this puts the images that they read."""
    (place / "photos").symlink_to(images)
    for name, picture in zip(("a.jpg", "b.jpg"), sorted(images.rglob("*.png")), strict=False):
        (place / name).write_bytes(picture.read_bytes())
    few = '"local.yaml", trials=2, margin=None, overrides=["data.size=32", "data.batch_size=8", "trainer.epochs=1"]'
    changes = {"224": "32", '"resnet50"': '"narrow_resnet50"', "max_epochs=5": "max_epochs=1", '"explore.yaml"': few}
    examples = blocks("docs/python.md", "python")
    for text, small in changes.items():
        examples = [example.replace(text, small) for example in examples]
    return examples


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_pages_examples_run(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in page_examples(tmp_path, images):
        exec(example, names)
    assert names["frame"].shape[0] == 2


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Any:
    from tests.models import draw

    folder = tmp_path_factory.mktemp("api")
    words = small_trial(draw(folder / "images"), folder / "weights.pth")
    spec = {
        "name": "few",
        "method": "grid",
        "metric": {"name": "val/acc_best", "goal": "maximize"},
        "command": ["${env}", "${interpreter}", "-P", "-m", "finetune.train", *words, "${args_no_hyphens}"],
        "parameters": {"model.freeze_depth": {"values": [5, 3]}},
    }
    (folder / "few.yaml").write_text(yaml.safe_dump(spec))
    return finetune.run_sweep(
        folder / "few.yaml", folder / "images", overrides=["trainer.epochs=1"], out=folder / "runs", margin=None
    )


def test_a_sweep_leaves_rows_a_verdict_and_a_model(swept: Any) -> None:
    pytest.importorskip("pandas", exc_type=ImportError)
    records = swept.records
    assert sorted(records["model.freeze_depth"]) == [3, 5]
    assert list(records["status"]) == ["complete"] * 2
    assert records["val/acc_best"].max() == max(record.accuracy for record in read_records(swept.folder))

    report = swept.report()
    assert report.page.is_file()
    assert str(report) == "\n".join(report.verdict)
    assert "No verdict: one seed says too little" in str(report)

    files = sorted((swept.folder.parent / "images" / "val").rglob("*.png"))
    model = swept.best()
    predictions = model.predict(files)
    assert [prediction.path for prediction in predictions] == files
    for prediction in predictions:
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert prediction.probabilities[prediction.label] == max(prediction.probabilities.values())
    right = sum(prediction.label == prediction.path.parent.name for prediction in predictions) / len(files)
    assert right == pytest.approx(records["val/acc_best"].max())


def test_what_cannot_be_read_is_refused(swept: Any, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(Refused, match=r"x.png cannot be read \(.*\); leave it out"):
        swept.best().predict([tmp_path / "x.png"])
    with pytest.raises(Refused, match="holds no trial records"):
        finetune.read_records(tmp_path)
    with pytest.raises(Refused, match="is not a folder"):
        _ = finetune.ImageData(tmp_path / "nothing").classes
    with pytest.raises(Refused, match=r"did you mean optim\.lr"):
        finetune.FineTune.from_pretrained("narrow_resnet50", classes=3, overrides=["optim.rl=1"])


@pytest.mark.parametrize("word", ["trainer.epochs=3", "model.head.init=probe", "data.class_weights=balanced"])
def test_no_setting_is_ignored(images: Path, word: str) -> None:
    with pytest.raises(Refused, match=f"{re.escape(word)} has no effect on FineTune.from_pretrained"):
        finetune.FineTune.from_pretrained("narrow_resnet50", classes=3, overrides=[word])
    with pytest.raises(Refused, match=f"{re.escape(word)} has no effect on ImageData"):
        finetune.ImageData(images, overrides=[word])


def test_a_notebook_shows_the_page_in_a_frame(swept: Any) -> None:
    report = swept.report()
    shown = report._repr_html_()
    assert shown.startswith('<iframe srcdoc="')
    page = report.page.read_text()
    inside = shown.partition('srcdoc="')[2].partition('" style=')[0]
    assert '"' not in inside

    import html

    assert html.unescape(inside) == page
