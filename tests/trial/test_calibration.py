"""From seconds of units to seconds of trials, by hand; and that all of it can be measured."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.compose import compose_config
from finetune.config import Config
from finetune.errors import Refused
from finetune.network.backbone import backbone_shapes
from finetune.sharing.cost import Disk
from finetune.trial import calibration
from finetune.trial.calibration import calibrate
from finetune.trial.timing import Overhead, UnitSeconds

FROZEN, TRAINED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.01), (1.0, 2.0, 3.0, 4.0, 5.0, 0.1)
"""Seconds an image of cnn5's five convolutions and its pooling."""
TRAIN, VAL, BATCH = 24, 12, 8
Kind = Callable[..., Config]


@pytest.fixture
def kind(small: list[str], tmp_path: Path) -> Kind:
    return lambda *words: compose_config([*small, f"cache.dir={tmp_path}/cache", *words])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that reads a byte a nanosecond, a step of 0.5 s besides its images, and so on."""
    substitutes = {
        "time_units": lambda *network, budget: UnitSeconds(FROZEN, TRAINED, optimizer=10.0),
        "time_overhead": lambda accelerator: Overhead(start=7.0, step=0.5),
        "time_input": lambda *of: 0.05,
        "time_decoding": lambda paths, transform, budget: 0.2,
        "measure_disk": lambda cache: Disk(1e9, 1e9, 1e9),
        "_seconds_to_build": lambda kind, weights: 1.0,
        "usable_cores": lambda: 2,
    }
    for name, substitute in substitutes.items():
        monkeypatch.setattr(calibration, name, substitute)


@pytest.mark.usefixtures("measured")
def test_an_epoch_is_its_images_and_its_steps(kind: Kind) -> None:
    nothing, some = kind("model.freeze_depth=0"), kind("model.freeze_depth=2", "cache.mode=off")
    found = calibrate([(nothing, 3), (some, 3)])
    sizes = {name: p.numel() for name, p in backbone_shapes("cnn5").model.named_parameters()}
    share = sum(n for name, n in sizes.items() if not name.startswith(("conv1", "conv2"))) / sum(sizes.values())
    steps, val_steps = TRAIN / BATCH, math.ceil(VAL / BATCH)

    whole = TRAIN * (0.05 + sum(TRAINED)) + steps * (0.5 + 10) + VAL * (0.05 + sum(FROZEN)) + val_steps * 0.5
    partly = TRAIN * (0.05 + sum(FROZEN[:2]) + sum(TRAINED[2:])) + steps * (0.5 + 10 * share)
    partly += VAL * (0.05 + sum(FROZEN)) + val_steps * 0.5
    assert found.epochs == pytest.approx((whole, partly))
    assert found.starts == pytest.approx((8.15, 8.15), abs=0.1)  # and the time to write its model
    assert found.prepare == pytest.approx((TRAIN + VAL) * 0.2 / 2)


@pytest.mark.usefixtures("measured")
def test_what_will_be_stored_is_read_and_computed_once_for_all(kind: Kind) -> None:
    stored, deeper = kind("model.freeze_depth=2"), kind("model.freeze_depth=all")
    found = calibrate([(stored, 3), (deeper, 3)])
    read = {2: 8 * 8 * 64 * 4 / 1e9, 6: 256 * 4 / 1e9}
    assert found.epochs[0] == pytest.approx(
        TRAIN * (read[2] + sum(TRAINED[2:])) + VAL * (read[2] + sum(FROZEN[2:])) + 5 * 0.5 + 3 * 10 * 0.95, rel=0.02
    )
    assert found.epochs[1] == pytest.approx((TRAIN + VAL) * read[6] + 5 * 0.5)
    computed = (TRAIN + VAL) * (sum(FROZEN) + 0.2) / 2  # one pass fills both stores, after decoding, on two cores
    assert found.prepare == pytest.approx(computed, rel=0.001)


@pytest.mark.usefixtures("measured")
def test_augmented_images_are_computed_in_each_epoch_unless_views_of_them_are_stored(kind: Kind) -> None:
    flipped = ("model.freeze_depth=all", "augment.flip=0.5")
    anew, views = kind(*flipped), kind(*flipped, "cache.views=1", "trainer.epochs=50")
    found = calibrate([(anew, 1), (views, 1)])
    assert found.epochs[0] > TRAIN * (0.05 + sum(FROZEN)) > found.epochs[1]


@pytest.mark.usefixtures("measured")
def test_what_would_be_refused_is_refused_before_anything_is_measured(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "time_overhead", lambda accelerator: pytest.fail("measured"))
    for word, why in (("data.root=/nowhere", "is not a folder"), ("model.weights=/nowhere/w.pth", "w.pth")):
        with pytest.raises(Refused, match=why):
            calibrate([(kind(word), 1)])


@pytest.mark.slow
def test_all_of_it_is_measured(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "BUDGET", 6.5)  # half a second for the network
    found = calibrate([(kind("model.freeze_depth=0"), 1), (kind("model.freeze_depth=all"), 1)])
    assert len(found.starts) == len(found.epochs) == 2
    assert min(*found.starts, *found.epochs, found.prepare) > 0
    assert "1 thread a trial, 32-bit" in found.machine
