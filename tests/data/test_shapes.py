import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import RidgeClassifier

from finetune.data import shapes
from finetune.data.samples import load_samples
from finetune.data.shapes import (
    SHAPES,
    SIZE,
    SOURCE_CLASSES,
    TARGET_CLASSES,
    TEXTURES,
    draw,
    source_image,
    target_image,
)
from finetune.errors import Refused
from finetune.network.backbone import build_backbone
from finetune.network.own import OWN, shapes_file
from finetune.network.weights import load_state, read_weights

TASKS = {"source": (source_image, SOURCE_CLASSES), "target": (target_image, TARGET_CLASSES)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.embedded_folder(tmp_path_factory.mktemp("drawn") / "cache")


def test_source_classes_are_every_shape_in_every_texture() -> None:
    assert len(SOURCE_CLASSES) == len(set(SOURCE_CLASSES)) == 60
    assert {tuple(name.split("_")) for name in SOURCE_CLASSES} == set(itertools.product(SHAPES, TEXTURES))


def test_target_classes_are_five_pairs_in_both_orders() -> None:
    pairs = [tuple(name.split("_over_")) for name in TARGET_CLASSES]
    assert len(pairs) == len(set(pairs)) == 10
    assert {(below, above) for above, below in pairs} == set(pairs)
    assert all(above != below and {above, below} <= set(SHAPES) for above, below in pairs)


@pytest.mark.parametrize("task", TASKS)
def test_image_i_depends_on_seed_and_i_alone(task: str) -> None:
    image, classes = TASKS[task]
    images, labels = draw(image, len(classes), 2, seed=5)
    assert images.shape == (2 * len(classes), SIZE, SIZE, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == [i // 2 for i in range(2 * len(classes))]
    np.random.seed(99)  # the global generator must not matter
    again, _ = draw(image, len(classes), 2, seed=5)
    np.testing.assert_array_equal(again, images)
    for i in (0, 7, 19):
        np.testing.assert_array_equal(image(i // 2, np.random.default_rng((5, i))), images[i])
    others, _ = draw(image, len(classes), 2, seed=6)
    assert len({one.tobytes() for one in (*images, *others)}) == 4 * len(classes)


@pytest.mark.parametrize("label", range(10))
def test_the_first_shape_of_a_target_class_is_above_the_second(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[tuple[str, float]] = []
    monkeypatch.setattr(shapes, "_paint", lambda canvas, shape, texture, x, y, radius, rng: painted.append((shape, y)))
    for i in range(20):
        painted.clear()
        target_image(label, np.random.default_rng(i))
        by_height = [shape for shape, _ in sorted(painted, key=lambda at: at[1])]  # y grows downwards
        assert "_over_".join(by_height) == TARGET_CLASSES[label]


def test_a_shape_is_painted_where_it_is_said_to_be() -> None:
    canvas = np.zeros((SIZE, SIZE, 3))
    shapes._paint(canvas, "disk", "plain", -0.5, 0.5, 0.3, np.random.default_rng(0))
    rows, columns = np.nonzero(canvas.any(2))
    assert (columns.mean(), rows.mean()) == pytest.approx((0.25 * SIZE, 0.75 * SIZE), abs=1)
    assert len(rows) == pytest.approx(np.pi * (0.9 * 0.3 * SIZE / 2) ** 2, rel=0.2)


def test_the_embedded_folder_is_the_target_task_in_two_splits(folder: Path) -> None:
    data = load_samples(str(folder))
    assert data.classes == tuple(sorted(TARGET_CLASSES))
    assert data.warnings == ()
    assert {split: Counter(samples.labels) for split, samples in data.splits.items()} == {
        "train": dict.fromkeys(range(10), 16),
        "val": dict.fromkeys(range(10), 50),
    }


def test_the_embedded_folder_is_drawn_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
    assert len(before) == 1 + 2 + 2 * 10 + 10 * (16 + 50)
    monkeypatch.setattr(shapes, "draw", None)
    assert shapes.embedded_folder(folder.parent.parent) == folder
    assert {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))} == before


def test_embedded_images_are_refused_where_they_cannot_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(Refused, match="the embedded images cannot be drawn into"):
        shapes.embedded_folder(tmp_path / "cache")


def test_no_embedded_image_comes_twice(folder: Path) -> None:
    images = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    assert {image.shape for image in images} == {(SIZE, SIZE, 3)}
    assert len({image.tobytes() for image in images}) == len(images) == 660


def features(images: NDArray[np.uint8], network: str, name: str) -> NDArray[np.float32]:
    torch.manual_seed(0)
    backbone = build_backbone(network, SIZE)
    weights = read_weights(backbone, name)
    load_state(backbone, weights.state)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(weights.mean).view(1, 3, 1, 1)) / torch.tensor(weights.std).view(1, 3, 1, 1)
    with torch.no_grad():
        pooled: NDArray[np.float32] = torch.cat([backbone.model.eval()(part) for part in x.split(60)]).numpy()
    return pooled


@pytest.mark.parametrize("network", [name for name in OWN if shapes_file(name)])
def test_the_shipped_weights_know_the_source_task_from_four_images_a_class(network: str) -> None:
    """Chance is 1/60."""
    train, train_labels = draw(source_image, 60, 4, seed=7)  # seeds that benchmarks/pretrain_shapes.py does not use
    test, test_labels = draw(source_image, 60, 2, seed=8)
    accuracy = {}
    for name in ("SHAPES60_V1", "none"):
        known = RidgeClassifier().fit(features(train, network, name), train_labels)
        accuracy[name] = known.score(features(test, network, name), test_labels)

    assert accuracy["SHAPES60_V1"] > 0.5
    assert accuracy["none"] < 0.15
