import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision.transforms.functional as vision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finetune.data.augment import Augment, Preprocess
from finetune.data.batches import Batch, PixelData
from finetune.data.pixels import PixelStore
from finetune.storage.store import Rows
from tests.models import plain_trainer

NONE = Augment(flip=0.0, min_area=1.0, rotate=0.0, color=0.0, erase=0.0)
FLIP = replace(NONE, flip=1.0)
ALL = Augment(flip=0.5, min_area=0.3, rotate=25.0, color=0.4, erase=0.5)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HIGH, WIDE = 6, 8


def store(count: int, seed: int = 0) -> PixelStore:
    """Images of noise; an image's label is its position plus 100, by which the tests know it again."""
    images = np.random.default_rng(seed).integers(0, 256, (count, HIGH, WIDE, 3), dtype=np.uint8)
    return PixelStore(rows_of(images), np.arange(count) + 100, f"digest {seed}")


def rows_of(images: NDArray[Any]) -> Rows:
    """They are in a file that has no name any more, which does not keep it from being read."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(images.tobytes())
        file.flush()
        rows = Rows(Path(file.name), len(images), images.shape[1:], str(images.dtype))
        rows[0:1]
    return rows


def normalised(images: PixelStore) -> Tensor:
    return torch.stack([vision.normalize(vision.to_tensor(image), MEAN, STD) for image in images.images[:]])


Batches = list[tuple[Tensor, Tensor]]


class Recorder(pl.LightningModule):
    """Notes what each stage and epoch is given and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: dict[str, Batches] = defaultdict(list)

    def training_step(self, batch: tuple[Tensor, Tensor], position: int) -> Tensor:
        self.seen[f"train {self.current_epoch}"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], position: int) -> None:
        self.seen[f"val {self.current_epoch}"].append(batch)

    def test_step(self, batch: tuple[Tensor, Tensor], position: int) -> None:
        self.seen["test"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def run(
    stores: dict[str, PixelStore], augment: Augment = NONE, batch_size: int = 4, seed: int = 0, epochs: int = 1
) -> dict[str, Batches]:
    """Train, validate and, where there is a test set, test; what came, by stage and epoch."""
    data, module = PixelData(stores, Preprocess(MEAN, STD, augment), batch_size, seed), Recorder()
    trainer = plain_trainer(epochs)
    trainer.fit(module, datamodule=data)
    if "test" in stores:
        trainer.test(module, data, verbose=False)
    return module.seen


def order(batches: Batches) -> list[int]:
    """Positions in the store."""
    return [int(label) - 100 for _, labels in batches for label in labels]


def by_label(batches: Batches) -> Tensor:
    return torch.cat([x for x, _ in batches])[np.argsort(order(batches))]


def test_batches_are_the_images_normalised_each_with_its_label() -> None:
    stores = {"train": store(11, 1), "val": store(6, 2), "test": store(5, 3)}
    seen = run(stores, batch_size=4)
    assert set(seen) == {"train 0", "val 0", "test"}
    for stage, split in (("train 0", "train"), ("val 0", "val"), ("test", "test")):
        torch.testing.assert_close(by_label(seen[stage]), normalised(stores[split]), rtol=0, atol=1e-6)
        for x, labels in seen[stage]:
            assert x.shape[1:] == (3, HIGH, WIDE)
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert (x.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert [len(x) for x, _ in seen["train 0"]] == [4, 4, 3]


def test_no_seed_repeats_the_orders_of_another_a_few_epochs_later() -> None:
    stores = {"train": store(24), "val": store(2)}
    seen = [run(stores, seed=seed, epochs=3) for seed in range(3)]
    orders = [tuple(order(of_seed[f"train {epoch}"])) for of_seed in seen for epoch in range(3)]
    assert len(set(orders)) == 9


def test_each_epoch_shows_every_training_image_once_in_an_order_of_its_own() -> None:
    stores = {"train": store(24), "val": store(2)}
    seen = [run(stores, seed=seed, epochs=3) for seed in (0, 1, 1)]
    orders = [[order(of_seed[f"train {epoch}"]) for epoch in range(3)] for of_seed in seen]
    for of_seed in orders:
        assert all(sorted(once) == list(range(24)) for once in of_seed)
        assert len({tuple(once) for once in [*of_seed, range(24)]}) == 4
    assert orders[1] == orders[2]
    assert all(one != other for one, other in zip(orders[0], orders[1], strict=True))


def test_validation_and_test_are_whole_in_order_and_never_augmented() -> None:
    stores = {"train": store(8, 1), "val": store(9, 2), "test": store(5, 3)}
    seen = run(stores, FLIP, epochs=2)
    for stage, split in (("val 0", "val"), ("val 1", "val"), ("test", "test")):
        assert order(seen[stage]) == list(range(len(stores[split].images)))
        shown = torch.cat([x for x, _ in seen[stage]])
        torch.testing.assert_close(shown, normalised(stores[split]), rtol=0, atol=1e-6)
    mirrored = normalised(stores["train"]).flip(3)
    for epoch in range(2):
        torch.testing.assert_close(by_label(seen[f"train {epoch}"]), mirrored, rtol=0, atol=1e-4)


def test_an_image_is_augmented_by_seed_epoch_and_position_alone() -> None:
    stores = {"train": store(12), "val": store(2)}
    seen = run(stores, ALL, epochs=2)
    first, second = by_label(seen["train 0"]), by_label(seen["train 1"])
    other_batches = run(stores, ALL, batch_size=5, epochs=2)
    torch.testing.assert_close(by_label(other_batches["train 0"]), first, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_label(other_batches["train 1"]), second, rtol=0, atol=1e-5)
    other_seed = by_label(run(stores, ALL, seed=1)["train 0"])
    for different in (second, other_seed, normalised(stores["train"])):
        assert not torch.isclose(different, first).flatten(1).all(1).any()


SIZES = {
    "one left over": (9, 4, [4, 4]),
    "two left over": (10, 4, [4, 4, 2]),
    "none left over": (8, 4, [4, 4]),
    "all in one": (4, 9, [4]),
    "a single image": (1, 4, [1]),
    "batches of one": (3, 1, [1, 1, 1]),
}


@pytest.mark.parametrize("case", SIZES)
def test_a_last_batch_of_one_image_is_left_out_of_training_alone(case: str) -> None:
    count, batch_size, expected = SIZES[case]
    stores = {name: store(count) for name in ("train", "val", "test")}
    data = PixelData(stores, Preprocess(MEAN, STD, NONE), batch_size, seed=0)
    assert sizes(data.train_dataloader()) == expected
    whole = [batch_size] * (count // batch_size) + [count % batch_size] * (count % batch_size > 0)
    assert sizes(data.val_dataloader()) == sizes(data.test_dataloader()) == whole
    assert data.steps_of_epoch == len(expected)

    data.at_once = 2
    assert sizes(data.train_dataloader()) == [sum(expected[i : i + 2]) for i in range(0, len(expected), 2)]


def sizes(batches: DataLoader[Batch]) -> list[int]:
    return [len(labels) for _, labels, _ in batches]


def test_no_image_is_left_out_for_good() -> None:
    seen = run({"train": store(5), "val": store(2)}, epochs=8)
    orders = [order(seen[f"train {epoch}"]) for epoch in range(8)]
    assert all(len(set(once)) == len(once) == 4 for once in orders)
    assert set().union(*orders) == set(range(5))


def test_rows_on_the_device_are_the_rows_on_the_disk() -> None:
    stores = {"train": store(11, 1), "val": store(6, 2), "test": store(5, 3)}
    expected = run(stores, ALL, epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PixelData, "setup", lambda data, stage: data.keep_on(torch.device("cpu"), room=2**30))
        found = run(stores, ALL, epochs=2)
    assert found.keys() == expected.keys()
    for stage, batches in expected.items():
        for (x, labels), (other_x, other_labels) in zip(batches, found[stage], strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(labels, other_labels)


def test_only_what_fits_stays_on_the_device() -> None:
    stores = {"train": store(20, 1), "val": store(3, 2)}
    data = PixelData(stores, Preprocess(MEAN, STD, NONE), 4, seed=0)
    data.keep_on(torch.device("cpu"), room=4 * HIGH * WIDE * 3)
    assert list(data._resident) == ["val"]
    assert len(next(iter(data.val_dataloader()))[0]) == 0
    assert len(next(iter(data.train_dataloader()))[0]) == 4


def test_views_are_shown_in_turn() -> None:
    images = {"train": store(6, 1), "val": store(2, 2)}
    views = [rows_of(np.full((6, 5), view, np.float32)) for view in range(2)]
    data, module = PixelData(images, Preprocess(MEAN, STD, ALL, 2), 6, 0, {"train": views}), Recorder()
    plain_trainer(3).fit(module, datamodule=data)
    shown = [{float(value) for x, _ in module.seen[f"train {epoch}"] for value in x.flatten()} for epoch in range(3)]
    assert shown == [{0.0}, {1.0}, {0.0}]
