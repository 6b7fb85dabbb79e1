"""finetune best, predict and test, as a person uses them."""

import csv
import re
import shlex
import shutil
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import yaml
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from finetune.compose import compose_config
from finetune.config import flat, trial_key
from finetune.errors import Refused
from finetune.export.classifier import load_classifier
from finetune.export.predict import probabilities_of
from finetune.records.layout import CHECKPOINT, PREDICTIONS
from finetune.records.repeat import repeat_overrides
from finetune.records.result import Result
from finetune.records.scores import Confusion
from finetune.report.winner import find_winner, model_file
from finetune.sharing.images import find_data
from finetune.trial.run import train
from tests.models import draw, finetune, trial


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images` and `trial`, which learned them."""
    folder = tmp_path_factory.mktemp("trained")
    draw(folder / "images")
    overrides = ["model=narrow_resnet50", "model.freeze_depth=14", "trainer.epochs=3", "optim.lr=0.01"]
    trial(folder / "trial", f"data.root={folder / 'images'}", *overrides)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_predictions_on_the_terminal_and_in_a_csv(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    single = shutil.copy(trained / "images" / "val" / "red" / "0.png", tmp_path / "photo with no ending")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "broken.jpg").write_text("text")
    (tmp_path / "more" / ".hidden.png").write_bytes(b"")
    (tmp_path / "more" / "notes.txt").write_text("text")
    out = tmp_path / "out.csv"
    given = [trained / "images" / "val", tmp_path / "more", single]
    assert finetune(monkeypatch, "predict", trained / "trial", *given, "--csv", out, "--top", 2, "--batch-size", 5) == 0
    said = capfd.readouterr().out
    assert f"left out {tmp_path / 'more' / 'broken.jpg'}: not an image" in said
    assert "predicted 13 images, left out 1 that could not be read" in said
    assert len(re.findall(r"\.png  \w+ [01]\.\d{3}  \w+ [01]\.\d{3}$", said, re.M)) == 12
    rows = table(out)
    files = sorted((trained / "images" / "val").rglob("*.png"))
    assert [row["file"] for row in rows] == [*map(str, files), str(single)]
    for row in rows:
        shares = {name: float(row[name]) for name in ("blue", "green", "red")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == max(shares, key=lambda name: shares[name])
        assert float(row["probability"]) == max(shares.values())
    right = sum(row["prediction"] == Path(row["file"]).parent.name for row in rows[:-1])
    assert right / 12 == pytest.approx(Result.load(trained / "trial").val_acc_best)
    assert rows[-1]["red"] == next(row["red"] for row in rows if row["file"].endswith("red/0.png"))


def test_testing_gives_the_figures_of_scikit_learn(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "confusion.csv"
    assert finetune(monkeypatch, "test", trained / "trial", trained / "images", "--csv", out) == 0
    said = capfd.readouterr().out
    result = Result.load(trained / "trial")
    assert f"accuracy {result.val_acc_best:.3f} " in said
    assert "on 12 images of val/" in said
    counts = [[int(n) for n in list(row.values())[1:]] for row in table(out)]
    assert np.trace(counts) / 12 == pytest.approx(result.val_acc_best)
    assert finetune(monkeypatch, "test", trained / "trial", trained / "images", "--split", "train") == 0
    assert "on 24 images of train/" in capfd.readouterr().out
    flat_folder = trained / "images" / "val"  # without splits
    assert finetune(monkeypatch, "test", trained / "trial", flat_folder) == 0
    assert "on 12 images; mean recall" in capfd.readouterr().out


def test_figures_of_many_classes_against_scikit_learn_and_wilson() -> None:
    rng = np.random.default_rng(0)
    classes = tuple(f"c{i}" for i in range(7))
    true = rng.integers(0, 6, 400)  # the last class has no images
    said = np.where(rng.random(400) < 0.6, true, rng.integers(0, 5, 400))
    confusion = Confusion(classes, true, said)
    assert confusion.counts.tolist() == confusion_matrix(true, said, labels=range(7)).tolist()
    assert confusion.accuracy == pytest.approx(accuracy_score(true, said))
    assert confusion.mean_recall == pytest.approx(balanced_accuracy_score(true, said))
    precision, recall, f1, support = precision_recall_fscore_support(true, said, labels=range(7), zero_division=0)
    for i, row in enumerate(confusion.per_class):
        assert row.images == support[i]
        assert ((row.precision or 0), (row.recall or 0), (row.f1 or 0)) == pytest.approx(
            (precision[i], recall[i], f1[i])
        )
    assert confusion.per_class[6].recall is None
    low, high = confusion.interval
    z = NormalDist().inv_cdf(0.975)
    for bound in (low, high):  # Wilson: the bounds at which the score test is just rejected
        assert abs(confusion.accuracy - bound) / (bound * (1 - bound) / 400) ** 0.5 == pytest.approx(z, rel=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "TRIAL/none", "IMAGES"], "there is no model|is no model; give a best.safetensors"),
        (["predict", "FOLDER/trail", "IMAGES"], "did you mean .*/trial?"),
        (["predict", "TRIAL", "FOLDER/nothing"], "nothing: there is no such file or folder; give images"),
        (["predict", "TRIAL", "TRIAL"], "no image here"),
        (["predict", "TRIAL", "TRIAL/result.json"], "none of 1 file could be read"),
        (["predict", "TRIAL", "IMAGES", "--device", "gpu"], "--device gpu: it is not known; give auto, cpu, cuda"),
        (["predict", "TRIAL/result.json", "IMAGES"], "result.json cannot be read"),
        (["test", "TRIAL", "IMAGES", "--split", "test"], "has no test/ folder; it has train, val"),
        (["test", "TRIAL", "IMAGES", "--split", "tst"], "--split tst is not known"),
        (["test", "TRIAL", "OTHER"], "the model knows no class 'redd'; did you mean red?"),
        (["test", "TRIAL", "FOLDER/nothing"], "nothing is not a folder"),
        (["best", "TRIAL"], "holds no trial records"),
        (
            ["predict", "EXPORT/model.onnx", "IMAGES"],
            "program for ONNX Runtime; give the folder that it lies in, .*/e",
        ),
        (["export", "EXPORT/model.pt2", "OTHER/x"], "program for torch.export.load; give the folder that it lies in"),
        (
            ["predict", "FOLDER/weights.PTH", "IMAGES"],
            "neither the classes .*; give a .* or train from it with m",
        ),
        (["predict", "FOLDER/last.ckpt", "IMAGES"], "is a state to go on training from; give a best.safetensors, or"),
        (["predict", "TRIAL", "IMAGES", "--csv", "TRIAL/result.json/x.csv"], "--csv .*x.csv cannot be written .*Not a"),
        (
            ["test", "TRIAL", "IMAGES", "--csv", "/proc/nowhere/x.csv"],
            "--csv /proc/.* cannot be written .*; give anoth",
        ),
        (["predict", "TRIAL", "IMAGES", "--csv", "-"], "--csv - means the standard output .*; give a name"),
        (["export", "TRIAL", "-"], "the folder - means the standard output .*; give a name"),
        (["export", "TRIAL", "TRIAL/result.json/out"], "the folder .*out cannot be written .*; give another place"),
        (["check", "IMAGES", "OTHER"], "other is no setting; did you mean data.root=.*/other?"),
        (["check", "FOLDER/nothing"], "nothing is not a folder"),
        (["check", "IMAGES", "data.on_bda=skip"], "did you mean data.on_bad?"),
        (["predict"], "Missing argument 'MODEL'"),
        (["exprot"], "Did you mean 'export'?"),
        (["predict", "TRIAL", "IMAGES", "--cvs", "x"], "No such option.*--cvs.*--csv"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    words: list[str],
    message: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(trained / "images" / "val" / "red", tmp_path / "other" / "redd")
    (trained / "exported").mkdir(exist_ok=True)
    for name in ("weights.PTH", "last.ckpt", "exported/model.onnx", "exported/model.pt2", "exported/model.safetensors"):
        (trained / name).write_bytes(b"x")
    places = {
        "EXPORT": trained / "exported",
        "FOLDER": trained,
        "TRIAL": trained / "trial",
        "IMAGES": trained / "images",
        "OTHER": tmp_path / "other",
    }
    filled = [re.sub(r"^[A-Z]+", lambda found: str(places[found[0]]), word) for word in words]
    assert finetune(monkeypatch, *filled) == 2
    error = capfd.readouterr().err
    assert error.startswith("refused: ")
    assert re.search(message, error), error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def swept(trained: Path) -> Path:
    """The folder of a sweep of two depths and two seeds on the images."""
    folder = trained / "runs" / "mine"
    parameters = {"model.freeze_depth": {"values": [14, "all"]}, "seed": {"values": [0, 1]}}
    file = trained / "mine.yaml"
    file.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters}))
    fast = ["data.size=32", "data.batch_size=8", "trainer.epochs=2", "trainer.accelerator=cpu", "model=narrow_resnet50"]
    with pytest.MonkeyPatch.context() as patch:
        root = f"data.root={trained / 'images'}"
        assert finetune(patch, "sweep", file, root, *fast, "trainer.patience=2", "--out", folder) == 0
    return folder


@pytest.mark.slow
def test_the_best_of_a_sweep_its_command_and_its_refit(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finetune(monkeypatch, "best", swept) == 0
    said = capfd.readouterr().out
    winner = find_winner(swept)
    assert winner.group == winner.table.winner
    assert [trial.seed for trial in winner.trials] == [0, 1]
    assert f"Best: freeze_depth={winner.group.freeze_depth}" in said
    (command,) = re.findall(r"^  python -m finetune.train (.*)$", said, re.M)
    again = train(compose_config([*shlex.split(command), f"out={tmp_path / 'again'}"]))
    assert again.key == winner.best.key
    assert again.val_acc_best == winner.best.val_acc_best
    for now, then in zip(again.history, winner.best.history, strict=True):
        assert now == pytest.approx(then, abs=1e-3)
    assert finetune(monkeypatch, "best", swept, "--refit", "--out", tmp_path / "refit") == 0
    said = capfd.readouterr().out
    (command,) = re.findall(r"^  python -m finetune.train (.*trainer.refit=True.*)$", said, re.M)
    refit = Result.load(tmp_path / "refit")
    assert refit.key == trial_key(compose_config(shlex.split(command)))
    assert refit.config["trainer.epochs"] == winner.epochs == len(refit.history)
    assert (refit.config["trainer.patience"], refit.config["seed"]) == (None, winner.best.seed)
    assert (refit.status, refit.val_acc_best, refit.best_epoch) == ("complete", None, None)
    assert refit.warnings[0].startswith("trained on the validation images too")
    assert (tmp_path / "refit" / CHECKPOINT).is_file()
    assert not (tmp_path / "refit" / PREDICTIONS).exists(), "of an epoch that is not the checkpoint's"
    images = swept.parent.parent / "images"
    assert finetune(monkeypatch, "export", tmp_path / "refit", tmp_path / "exported") == 0
    for model, told in ((tmp_path / "refit", True), (tmp_path / "exported", True), (swept, False)):
        assert finetune(monkeypatch, "test", model, images) == 0
        assert ("note: this is a refit, which may have trained on these images" in capfd.readouterr().out) == told


@pytest.mark.slow
def test_a_refit_trains_on_both_splits_and_keeps_the_last_epoch(trained: Path, tmp_path: Path) -> None:
    words = ["model=narrow_resnet50", "model.freeze_depth=16", "data.size=32", "data.batch_size=8", "trainer.epochs=3"]
    images = trained / "images"
    given = [f"data.root={images}", *words, "trainer.refit=true"]
    assert len(find_data(compose_config(given)).splits["train"]) == 36
    assert len(find_data(compose_config(given)).splits["val"]) == 12
    for seed in range(20):
        words = [*given, "optim.lr=0.03", f"seed={seed}", f"out={tmp_path / str(seed)}"]
        result = train(compose_config(words))
        accuracies = [epoch["val/acc"] for epoch in result.history]
        if accuracies[-1] < max(accuracies):
            break
    assert accuracies[-1] < max(accuracies)  # so that the choice can be seen
    files = sorted((images / "val").rglob("*.png"))
    said = [row for _, row in probabilities_of(load_classifier(tmp_path / str(seed) / CHECKPOINT), files, device="cpu")]
    classes = ["blue", "green", "red"]
    right = np.mean([classes[row.argmax()] == f.parent.name for row, f in zip(said, files, strict=True)])
    assert right == pytest.approx(result.history[-1]["val/acc"])


def test_refit_with_early_stopping_is_refused() -> None:
    with pytest.raises(Refused, match=r"trainer.patience=2 stops by val/acc, .* set trainer.patience=null"):
        compose_config(["data.root=x", "trainer.refit=true", "trainer.patience=2"])


def record(folder: Path, depth: int, seed: int, accuracy: float, kept: bool = False) -> Path:
    """A trial of a sweep; returns its folder."""
    place = folder / "trials" / f"{depth}-{seed}"
    params = {"model.freeze_depth": depth, "seed": seed, "cache.dir": f"stores of seed {seed}"}
    Result(place.name, "complete", "", depth, "block", seed, accuracy, 0, 1, params).save(place)
    if kept:
        (place / CHECKPOINT).write_bytes(b"")
    return place


def test_the_model_of_a_sweep_is_its_winners_or_says_so(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.7, 0.8)):
        steady = record(tmp_path, 14, seed, accuracy)
    lucky = record(tmp_path, 17, 0, 0.9, kept=True)
    record(tmp_path, 17, 1, 0.1)
    winner = find_winner(tmp_path)
    assert [(trial.freeze_depth, trial.seed) for trial in winner.trials] == [(14, 0), (14, 1)]
    file, note = model_file(tmp_path)
    assert file == lucky / CHECKPOINT
    assert note.startswith("the winner by the mean of its seeds has no checkpoint; this is the single best trial")
    assert f"(freeze_depth=17); `finetune best {tmp_path} --refit` trains the winner" in note
    (steady / CHECKPOINT).write_bytes(b"")
    assert model_file(tmp_path) == (steady / CHECKPOINT, "")
    assert model_file(steady) == (steady / CHECKPOINT, "")
    for kept in tmp_path.rglob(CHECKPOINT):
        kept.unlink()
    with pytest.raises(Refused, match=r"kept no best.safetensors; `finetune best .* --refit` trains its winner"):
        model_file(tmp_path)
    with pytest.raises(Refused, match=r"this trial kept no best.safetensors; a sweep keeps that of its best trial"):
        model_file(steady)


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=embedded", "model.freeze_depth=11", "optim.lr=0.03"],
        ["experiment=first_100_scratch", "data.root=a folder/with 'quotes', commas=and signs"],
        ["experiment=deeper_head", "data.csv=x.csv", "augment=strong", "optim=sgd", "trainer.patience=3", "seed=7"],
        ["data.root=x", "model=cnn5", "data.workers=3", "out=somewhere", "logger=csv"],
    ],
)
def test_a_repeating_command_composes_to_the_same_trial(words: list[str]) -> None:
    config = compose_config(words)
    again = repeat_overrides(flat(config))
    assert trial_key(compose_config(shlex.split(shlex.join(again)))) == trial_key(config)
    assert not any(word.startswith(("out=", "cache.", "logger.", "data.workers")) for word in again)
    assert len(again) <= 16
