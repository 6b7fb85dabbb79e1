from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torchvision.transforms.functional as vision
from torch import Tensor
from torch.nn.functional import one_hot

from finetune.compose import compose_config
from finetune.config import AugmentConfig
from finetune.data.augment import Augment, build_mix
from finetune.records.result import outcome
from finetune.trial.run import train

NEUTRAL = Augment(flip=0.0, min_area=1.0, rotate=0.0, color=0.0, erase=0.0)
ALL = Augment(flip=0.5, min_area=0.3, rotate=25.0, color=0.4, erase=0.5)
EACH: dict[str, dict[str, float]] = {
    "flip": {"flip": 1.0},
    "min_area": {"min_area": 0.2},
    "rotate": {"rotate": 40.0},
    "color": {"color": 0.5},
    "erase": {"erase": 1.0},
    "all": asdict(ALL),
}
TURN, COLORS = 5, slice(6, 9)
"""Columns of the draws: the angle; brightness, contrast and saturation."""


def pictures(count: int, high: int = 24, wide: int = 24) -> Tensor:
    return torch.rand(count, 3, high, wide, generator=torch.Generator().manual_seed(0))


def drawn(value: float | Tensor, columns: int | slice, count: int = 1) -> Tensor:
    """Draws in the middle, and `value` in some columns."""
    draws = torch.full((count, 14), 0.5)
    draws[:, columns] = value
    return draws


def test_neutral_settings_change_nothing() -> None:
    assert Augment.from_config(AugmentConfig()) == NEUTRAL
    assert not NEUTRAL.random
    x = pictures(4)
    assert torch.equal(NEUTRAL(x, NEUTRAL.draws(4, 0, 0)), x)


@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
@pytest.mark.parametrize("name", EACH)
def test_each_setting_changes_images_within_shape_and_range(name: str, size: tuple[int, int]) -> None:
    augment = replace(NEUTRAL, **EACH[name])
    x = pictures(8, *size)
    before, draws = x.clone(), augment.draws(8, 1, 2)
    y = augment(x, draws)
    assert augment.random
    assert torch.equal(x, before)
    assert torch.equal(augment(x, draws), y)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert 0 <= y.min() < y.max() <= 1
    assert not torch.isclose(x, y).flatten(1).all(1).any()


@pytest.mark.parametrize("name", EACH)
def test_an_image_looks_the_same_in_any_batch(name: str) -> None:
    augment = replace(NEUTRAL, **EACH[name])
    x, draws = pictures(9), augment.draws(9, 3, 4)
    whole = augment(x, draws)
    alone = torch.cat([augment(x[i : i + 1], draws[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-6)
    order = torch.tensor([4, 0, 8, 2])
    torch.testing.assert_close(augment(x[order], draws[order]), whole[order], rtol=0, atol=1e-6)


def test_draws_are_fixed_by_seed_and_epoch_and_differ_between_images() -> None:
    draws = ALL.draws(500, seed=7, epoch=3)
    torch.manual_seed(123)  # the global generator must not matter
    assert torch.equal(ALL.draws(500, seed=7, epoch=3), draws)
    assert draws.shape == (500, 14)
    assert len(draws[:, 0].unique()) == 500
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1
    others = [ALL.draws(500, seed, epoch) for seed, epoch in ((7, 4), (8, 3), (3, 7), (7, 0))]
    assert all((other == draws).float().mean() < 0.001 for other in others)


@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
def test_flip_is_a_mirror_image(size: tuple[int, int]) -> None:
    x, augment = pictures(3, *size), replace(NEUTRAL, flip=1.0)
    torch.testing.assert_close(augment(x, augment.draws(3, 0, 0)), torch.flip(x, [3]), rtol=0, atol=1e-5)


def test_flips_are_as_frequent_as_set() -> None:
    augment = replace(NEUTRAL, flip=0.3)
    x = torch.zeros(4000, 3, 2, 4)
    x[..., 2:] = 1
    left = augment(x, augment.draws(4000, 0, 0))[:, 0, 0, 0]
    assert left.unique().tolist() == pytest.approx([0, 1], abs=1e-5)
    assert float(left.mean()) == pytest.approx(0.3, abs=0.03)  # four standard errors


TURNS = {"half": (180, 1.0, 2), "quarter": (90, 1.0, 1), "quarter back": (90, 0.0, -1), "none": (180, 0.5, 0)}


@pytest.mark.parametrize("turn", TURNS)
def test_rotate_turns_by_up_to_so_many_degrees_either_way(turn: str) -> None:
    degrees, draw, quarters = TURNS[turn]
    x = pictures(2)
    y = replace(NEUTRAL, rotate=float(degrees))(x, drawn(draw, TURN, 2))
    torch.testing.assert_close(y, torch.rot90(x, quarters, (2, 3)), rtol=0, atol=1e-5)


def test_a_crop_keeps_the_least_area_also_where_its_shape_leaves_little_choice() -> None:
    size = 64
    line = torch.linspace(0.5 / size, 1 - 0.5 / size, size)
    coordinates = torch.stack([line.expand(size, size), line[:, None].expand(size, size), torch.zeros(size, size)])
    augment = replace(NEUTRAL, min_area=0.9)
    shown = augment(coordinates.expand(400, 3, size, size), augment.draws(400, 0, 0))
    spans = [(shown[:, axis, -1, -1] - shown[:, axis, 0, 0]) * size / (size - 1) for axis in (0, 1)]
    assert 0.88 <= (spans[0] * spans[1]).min() < 0.92


@pytest.mark.parametrize("min_area", [0.1, 0.3, 0.6])
def test_a_crop_shows_an_upright_part_of_at_least_the_least_area(min_area: float) -> None:
    """The images hold their own coordinates, so what is shown says where it was taken from."""
    size, count = 64, 800
    line = torch.linspace(0.5 / size, 1 - 0.5 / size, size)
    coordinates = torch.stack([line.expand(size, size), line[:, None].expand(size, size), torch.zeros(size, size)])
    augment = replace(NEUTRAL, min_area=min_area)
    shown = augment(coordinates.expand(count, 3, size, size), augment.draws(count, 0, 0))
    across, down = shown[:, 0], shown[:, 1]
    torch.testing.assert_close(across, across[:, :1].expand_as(across), rtol=0, atol=1e-5)
    torch.testing.assert_close(down, down[:, :, :1].expand_as(down), rtol=0, atol=1e-5)
    wide, high = ((ramp[:, -1, -1] - ramp[:, 0, 0]) * size / (size - 1) for ramp in (across, down))
    area, aspect = wide * high, wide / high
    slack = 0.02  # the outermost half pixel mirrors
    assert min_area - slack <= area.min() < min_area + 0.05
    assert 0.9 < area.max() <= 1 + slack
    assert 0.75 - slack <= aspect.min() < 0.8
    assert 1.25 < aspect.max() <= 4 / 3 + slack
    for ramp, length in ((across, wide), (down, high)):
        place = ((ramp[:, 0, 0] - length / 2 / size) / (1 - length))[length < 0.9]
        assert -slack <= place.min() < 0.05
        assert 0.95 < place.max() <= 1 + slack


def test_without_color_every_color_stays() -> None:
    flat = torch.tensor([0.2, 0.7, 0.4]).view(1, 3, 1, 1).expand(50, 3, 16, 16)
    augment = replace(ALL, color=0.0, erase=0.0)
    torch.testing.assert_close(augment(flat, augment.draws(50, 0, 0)), flat.contiguous(), rtol=0, atol=1e-5)


def test_color_is_torchvisions_brightness_then_saturation_then_contrast() -> None:
    x = pictures(1) * 0.3 + 0.3  # far enough from 0 and 1 that nothing is cut off
    for brightness, contrast, saturation in torch.rand(10, 3, generator=torch.Generator().manual_seed(1)).tolist():
        ours = replace(NEUTRAL, color=0.3)(x, drawn(torch.tensor([brightness, contrast, saturation]), COLORS))
        theirs = vision.adjust_brightness(x, 1 + (brightness * 2 - 1) * 0.3)
        theirs = vision.adjust_saturation(theirs, 1 + (saturation * 2 - 1) * 0.3)
        theirs = vision.adjust_contrast(theirs, 1 + (contrast * 2 - 1) * 0.3)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)  # their luma is rounded to four digits


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_erase_blanks_a_rectangle_of_2_to_20_percent(probability: float) -> None:
    count, size = 800, 64
    augment = replace(NEUTRAL, erase=probability)
    y = augment(torch.ones(count, 3, size, size), augment.draws(count, 0, 0))
    assert y.unique().tolist() == [0.5, 1]
    blank = (y == 0.5).all(1)
    assert torch.equal(blank, (y == 0.5).any(1))
    share = blank.float().mean((1, 2))
    assert torch.equal(blank, blank.any(1, keepdim=True) & blank.any(2, keepdim=True))
    hit = share[share > 0]
    assert len(hit) / count == pytest.approx(probability, abs=0.06)  # four standard errors
    assert 0.02 - 0.006 < hit.min() < 0.04  # half a pixel more or less on either side
    assert 0.18 < hit.max() < 0.2 + 0.02
    assert blank.any(0)[8:-8, 8:-8].all()  # any place may be hit, a corner rarely


def test_a_digest_names_the_settings() -> None:
    changed = [replace(ALL, **{name: value / 2}) for name, value in asdict(ALL).items()]
    digests = {augment.digest for augment in (ALL, NEUTRAL, *changed)}
    assert len(digests) == 7
    assert Augment(**asdict(ALL)).digest == ALL.digest


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_images_have_mixed_labels(name: str) -> None:
    """Each image is so much of itself and so much of the image before it, as its label says."""
    x, y = pictures(6), torch.tensor([0, 1, 2, 0, 1, 2])
    mix = build_mix(AugmentConfig(**{name: 1.0}), classes=3)
    assert mix is not None
    for seed in range(5):
        torch.manual_seed(seed)
        mixed, labels = mix(x, y)
        share = float(labels[0, 0])
        other = x.roll(1, 0)
        torch.testing.assert_close(labels, share * one_hot(y, 3) + (1 - share) * one_hot(y.roll(1), 3))
        if name == "mixup":
            torch.testing.assert_close(mixed, share * x + (1 - share) * other)
        else:
            own = (mixed == x).all(1)
            assert torch.equal(own | (mixed == other).all(1), torch.ones_like(own))
            assert float(own.float().mean()) == pytest.approx(share, abs=1e-6)


def test_with_both_each_batch_gets_one_and_with_none_there_is_none() -> None:
    assert build_mix(AugmentConfig(flip=0.5), 3) is None
    both = build_mix(AugmentConfig(mixup=1.0, cutmix=1.0), 3)
    assert both is not None
    torch.manual_seed(0)
    x, y = pictures(6), torch.tensor([0, 1, 2, 0, 1, 2])
    pasted = [bool(((mixed == x) | (mixed == x.roll(1, 0))).all()) for mixed, _ in (both(x, y) for _ in range(20))]
    assert 3 < sum(pasted) < 17


def test_mixing_changes_no_digest_of_what_is_stored() -> None:
    assert Augment.from_config(AugmentConfig(mixup=0.2, cutmix=1.0)) == NEUTRAL


def test_mixed_training_images_have_no_store_and_cached_trials_equal_uncached_ones(
    small: list[str], tmp_path: Path
) -> None:
    """Validation images have one all the same: what the frozen layers make of a mixture is not what is stored."""
    words = [*small, "model.freeze_depth=3", "augment.mixup=0.2", "augment.cutmix=1", "data.class_weights=[1,2,3]"]
    stored, computed = (
        train(compose_config([*words, f"cache.mode={mode}", f"cache.dir={tmp_path}", f"out={tmp_path / mode}"]), words)
        for mode in ("on", "off")
    )
    assert outcome(stored) == outcome(computed)
    assert (stored.cache["train"], stored.cache["val"]) == ("computed", "stored")
    assert stored.cache["reason"] == "images are mixed anew in each batch (augment.mixup, augment.cutmix)"
