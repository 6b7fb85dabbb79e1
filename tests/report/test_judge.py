"""The judge against a truth that is known: drawn images, seeds and depths."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from finetune.report.judge import Bits, compare, expect

IMAGES = 400


class World:
    """Images of several difficulties, and depths that get a share of them right; seeds shift that share."""

    def __init__(self, seed: int, accuracies: Sequence[float], spreads: Sequence[float], shared: float = 0.7):
        self._rng = np.random.default_rng(seed)
        self.accuracies, self.spreads, self.shared = accuracies, spreads, shared

    def draw(self, seeds: int) -> dict[int, Bits]:
        """New images and new seeds."""
        common = self._rng.normal(size=IMAGES)
        drawn = {}
        for depth, (accuracy, spread) in enumerate(zip(self.accuracies, self.spreads, strict=True)):
            own = self._rng.normal(size=(seeds, IMAGES))
            ease = self.shared**0.5 * common + (1 - self.shared) ** 0.5 * own
            level = np.clip(accuracy + spread * self._rng.normal(size=(seeds, 1)), 0.01, 0.99)
            drawn[depth] = ease < norm.ppf(level)
        return drawn


def leader_of(depths: dict[int, Bits]) -> int:
    return max(depths, key=lambda depth: float(depths[depth].mean()))


@pytest.mark.parametrize("spreads", [[0.01] * 6, [0.01, 0.035, 0.02, 0.01, 0.03, 0.015]], ids=["equal", "unequal"])
def test_tied_depths_are_seldom_called_worse(spreads: list[float]) -> None:
    world = World(0, [0.75] * 6, spreads)
    wrong = 0
    for _ in range(400):
        depths = world.draw(3)
        wrong += any(row.low > 0 for row in compare(depths, leader_of(depths)).values())
    assert wrong / 400 <= 0.05


def test_what_taking_the_leader_can_lose_is_a_bound() -> None:
    truth = [0.74, 0.75, 0.76, 0.75, 0.70]
    world = World(1, truth, [0.015] * 5)
    held = 0
    for _ in range(400):
        depths = world.draw(3)
        leader = leader_of(depths)
        held += all(truth[depth] - truth[leader] <= row.loss for depth, row in compare(depths, leader).items())
    assert held / 400 >= 0.95


def test_a_depth_that_is_much_worse_is_called_so() -> None:
    world = World(2, [0.70, 0.80], [0.01, 0.01])
    assert np.mean([compare(world.draw(3), 1)[0].low > 0 for _ in range(200)]) > 0.9


def test_more_seeds_and_more_images_narrow_the_error() -> None:
    def width(seeds: int, times: int) -> float:
        rng = np.random.default_rng(3)
        depths = {k: np.tile(rng.random((seeds, 300)) < 0.7, (1, times)) for k in (0, 1)}
        row = compare(depths, 0)[1]
        return row.lead - row.low

    assert width(8, 1) < width(3, 1)
    assert width(3, 4) < width(3, 1)


def curves(rng: np.random.Generator, seeds: int, epochs: int, accuracy: float) -> list[NDArray[np.bool_]]:
    """Epochs as good as each other, each of other mistakes: the best of them is best by luck."""
    common = rng.normal(size=IMAGES)
    found = []
    for _ in range(seeds):
        level = norm.ppf(accuracy + 0.01 * rng.normal())
        ease = 0.6**0.5 * common + 0.4**0.5 * rng.normal(size=(epochs, IMAGES))
        found.append(ease < level)
    return found


def test_the_accuracy_to_expect_is_that_of_new_images_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(4)
    drawn = [curves(rng, 3, 10, 0.75) for _ in range(300)]
    expected = [expect(seeds) for seeds in drawn]
    bias = np.mean([found.accuracy for found in expected]) - 0.75
    assert abs(bias) <= 0.01
    best = np.mean([np.mean([correct.mean(1).max() for correct in seeds]) for seeds in drawn]) - 0.75
    assert best > 2 * abs(bias)  # what the best epoch claims
    covered = np.mean([abs(found.accuracy - 0.75) <= found.half_width for found in expected])
    assert covered >= 0.92


def test_one_seed_has_an_expectation_with_the_usual_spread() -> None:
    (one,) = (expect(curves(np.random.default_rng(5), 1, 3, 0.8)),)
    assert one.seeds == 1
    assert 0.03 < one.half_width < 0.1
