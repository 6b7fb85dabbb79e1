import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.compose import compose_config
from finetune.records.layout import PREDICTIONS
from finetune.records.predictions import THUMBNAIL, Predictions, confident_mistakes, predictions_of
from finetune.records.result import Result
from finetune.sharing.facts import Facts
from finetune.sharing.prepare import prepare
from finetune.storage.durable import write_durably
from finetune.train import train


def some(count: int = 6) -> Predictions:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), count).astype(np.float32)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 256, (count, 20, 20, 3), dtype=np.uint8)
    paths = [Path("/data/val") / f"{i}.png" for i in range(count)]
    return predictions_of(probabilities, labels, paths, Path("/data"), lambda chosen: images[chosen])


def test_the_mistakes_are_the_wrong_ones_surest_first() -> None:
    sure = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])
    assert confident_mistakes(sure, np.array([1, 0, 0, 0])).tolist() == [0, 1, 2]
    assert confident_mistakes(sure, np.array([1, 0, 0, 0]), 2).tolist() == [0, 1]
    assert confident_mistakes(sure, np.array([0, 1, 1, 0])).tolist() == []


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = some()
    saved.save(tmp_path)
    loaded = Predictions.load(tmp_path)
    assert loaded is not None
    for name in ("probabilities", "labels", "mistakes", "thumbnails"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
    assert loaded.paths == tuple(f"val/{i}.png" for i in range(6))
    assert loaded.thumbnails.shape[1:] == (THUMBNAIL, THUMBNAIL, 3)


def test_no_file_a_broken_one_and_one_with_a_pickle_are_none(tmp_path: Path) -> None:
    assert Predictions.load(tmp_path) is None
    some().save(tmp_path)
    whole = (tmp_path / PREDICTIONS).read_bytes()
    for broken in (b"", whole[:100], whole[: len(whole) // 2]):
        write_durably(tmp_path / PREDICTIONS, broken)
        assert Predictions.load(tmp_path) is None
    fields = {name: getattr(some(), name) for name in ("probabilities", "labels", "mistakes", "thumbnails")}
    np.savez(tmp_path / PREDICTIONS, paths=np.array([print] * 6, dtype=object), **fields)
    assert Predictions.load(tmp_path) is None
    names = np.array(some().paths)
    np.savez(tmp_path / PREDICTIONS, paths=names, **{**fields, "labels": np.full(6, 7)})
    assert Predictions.load(tmp_path) is None
    np.savez(tmp_path / PREDICTIONS, paths=names[:5], **fields)
    assert Predictions.load(tmp_path) is None


def test_a_trial_leaves_those_of_its_best_epoch(fast: list[str], images: Path, tmp_path: Path) -> None:
    result = train(compose_config([*fast, "model.freeze_depth=all", "optim.lr=0.01", f"out={tmp_path / 'run'}"]))
    found = Predictions.load(tmp_path / "run")
    assert found is not None
    assert result.val_acc_best == Result.load(tmp_path / "run").val_acc_best
    assert (found.predicted == found.labels).mean() == pytest.approx(result.val_acc_best)
    assert found.probabilities.sum(1) == pytest.approx(1, abs=1e-5)
    assert found.paths[0] == "val/class0/0.png"
    for mistake, thumbnail in zip(found.mistakes, found.thumbnails, strict=True):
        path = images / found.paths[mistake]
        assert path.parent.name == f"class{found.labels[mistake]}"
        with Image.open(path) as image:
            assert np.asarray(image).mean((0, 1)) == pytest.approx(thumbnail.mean((0, 1)), abs=6)


def test_a_trial_of_a_sweep_names_images_without_looking_for_them(
    fast: list[str], images: Path, tmp_path: Path
) -> None:
    bad = images / "val" / "class0" / "1.png"
    bad.write_bytes(b"")
    words = [*fast, "data.on_bad=skip", "model.freeze_depth=all", "trainer.epochs=1"]
    facts = prepare([(compose_config(words), 1)], stores=False)
    there = [str(path) for path in sorted((images / "val").rglob("*.png")) if path != bad]
    shutil.rmtree(images)
    train(compose_config([*words, f"out={tmp_path / 'run'}"]), facts=Facts.from_text(facts.to_text()))
    found = Predictions.load(tmp_path / "run")
    assert found is not None
    assert list(found.paths) == there
