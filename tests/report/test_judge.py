"""The judge against a truth that is known: drawn images, seeds and depths."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from finetune.report.judge import (
    FIRST_LOOK,
    LAST_LOOK,
    Comparison,
    Expectation,
    compare,
    expect,
    half_widths,
    judged_by_halves,
    leader_of,
    next_looks,
)
from finetune.report.variance import Bits

IMAGES, MARGIN = 400, 0.02


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


def repeat_until_told(full: Mapping[int, Bits]) -> tuple[int, dict[int, Comparison]]:
    """The leader, and the others against it, with as many of the seeds as the rule asks for, look by look."""
    seeds = dict.fromkeys(full, FIRST_LOOK)
    while True:
        depths = {depth: bits[: seeds[depth]] for depth, bits in full.items()}
        leader = leader_of(depths)
        rows = compare(depths, leader, MARGIN)
        more = next_looks(seeds, rows, leader)
        if not more:
            return leader, rows
        seeds |= more


@pytest.mark.parametrize(
    ("spreads", "limit"),
    [
        pytest.param([0.01] * 6, 0.05, marks=pytest.mark.slow),
        ([0.01, 0.035, 0.02, 0.01, 0.03, 0.015], 0.05),
        ([0.005, 0.065, 0.005, 0.005, 0.005, 0.005], 0.07),
    ],
    ids=["equal", "3.5-fold", "13-fold"],
)
def test_tied_depths_are_seldom_called_worse_however_often_one_looks(spreads: list[float], limit: float) -> None:
    world = World(0, [0.75] * 6, spreads)
    drawn = [repeat_until_told(world.draw(LAST_LOOK))[1] for _ in range(250)]
    assert np.mean([any(row.standing == "worse" for row in rows.values()) for rows in drawn]) <= limit


@pytest.mark.parametrize("spreads", [[0.01] * 3, [0.01, 0.035, 0.02]], ids=["equal", "3.5-fold"])
def test_the_interval_of_a_lead_holds_for_new_seeds_and_new_images(spreads: list[float]) -> None:
    truth = [0.70, 0.74, 0.75]
    world = World(4, truth, spreads)
    held = []
    for _ in range(400):
        rows = compare(world.draw(3), 2, MARGIN)
        held += [abs(rows[depth].lead - (truth[2] - truth[depth])) <= rows[depth].half_width for depth in (0, 1)]
    assert np.mean(held) >= 0.94


def test_a_depth_stands_by_what_is_sure_of_it() -> None:
    world = World(5, [0.75, 0.755, 0.60], [0.004, 0.004, 0.004], shared=0.98)
    rows = compare(world.draw(8), 1, margin=0.05)
    assert (rows[0].standing, rows[2].standing) == ("within", "worse")
    assert rows[0].loss <= 0.05 < rows[2].lead
    close = compare(world.draw(8), 1, margin=0.0001)[0]
    assert close.standing == "images"
    assert close.images_needed > IMAGES


def test_seeds_are_asked_for_where_they_would_tell_and_the_leader_gets_as_many() -> None:
    def row(standing: str) -> Comparison:
        return Comparison(0.01, 0.03, -0.02, 0.03, standing, 400)

    rows = {0: row("worse"), 4: row("open"), 8: row("images"), 17: row("images")}
    assert next_looks({0: 3, 4: 3, 8: 3, 11: 3, 17: 0}, rows, leader=11) == {4: 4, 17: 3, 11: 4}
    assert next_looks({0: 3, 4: 8, 8: 3, 11: 8, 17: 3}, rows, leader=11) == {}


def test_scores_without_images_are_judged_by_seeds_alone() -> None:
    rng = np.random.default_rng(0)
    losses = {depth: -(mean + 0.01 * rng.normal(size=(3, 1))) for depth, mean in ((0, 0.9), (9, 0.4))}
    row = compare(losses, leader_of(losses), MARGIN)[0]
    assert (leader_of(losses), row.standing) == (9, "worse")
    assert row.lead == pytest.approx(0.5, abs=0.05)


def test_what_taking_the_leader_can_lose_is_a_bound() -> None:
    truth = [0.74, 0.75, 0.76, 0.75, 0.70]
    world = World(1, truth, [0.015] * 5)
    held = 0
    for _ in range(400):
        depths = world.draw(3)
        leader = leader_of(depths)
        held += all(truth[depth] - truth[leader] <= row.loss for depth, row in compare(depths, leader, MARGIN).items())
    assert held / 400 >= 0.95


def test_a_depth_that_is_much_worse_is_called_so() -> None:
    world = World(2, [0.70, 0.80], [0.01, 0.01])
    assert np.mean([compare(world.draw(3), 1, MARGIN)[0].low > 0 for _ in range(200)]) > 0.9


def test_more_seeds_and_more_images_narrow_the_error() -> None:
    def width(seeds: int, times: int) -> float:
        rng = np.random.default_rng(3)
        depths = {k: np.tile(rng.random((seeds, 300)) < 0.7, (1, times)) for k in (0, 1)}
        row = compare(depths, 0, MARGIN)[1]
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


def expected_of(seeds: Sequence[NDArray[np.bool_]]) -> Expectation:
    return expect(np.stack([judged_by_halves(correct) for correct in seeds]))


def test_the_accuracy_to_expect_is_that_of_new_images_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(4)
    drawn = [curves(rng, 3, 10, 0.75) for _ in range(300)]
    expected = [expected_of(seeds) for seeds in drawn]
    bias = np.mean([found.accuracy for found in expected]) - 0.75
    assert abs(bias) <= 0.01
    best = np.mean([np.mean([correct.mean(1).max() for correct in seeds]) for seeds in drawn]) - 0.75
    assert best > 2 * abs(bias)  # what the best epoch claims
    covered = np.mean([abs(found.accuracy - 0.75) <= found.half_width for found in expected])
    assert covered >= 0.92


def test_one_seed_has_an_expectation_with_the_usual_spread() -> None:
    (one,) = (expected_of(curves(np.random.default_rng(5), 1, 3, 0.8)),)
    assert one.seeds == 1
    assert 0.03 < one.half_width < 0.1


def test_the_interval_of_an_accuracy_holds_it_for_new_seeds_and_new_images() -> None:
    world = World(6, [0.6, 0.7, 0.8], [0.015] * 3)
    covered = []
    for _ in range(300):
        depths = world.draw(3)
        widths = half_widths(depths)
        covered += [abs(bits.mean() - world.accuracies[depth]) <= widths[depth] for depth, bits in depths.items()]
    assert np.mean(covered) >= 0.93


def test_an_interval_over_scores_alone_knows_of_no_images() -> None:
    scores = {k: np.array([[0.70], [0.72], [0.71]]) for k in (4, 9)}
    assert half_widths(scores)[4] == half_widths(scores)[9] < 0.02
    alone = half_widths({4: np.array([[0.7]])})[4]  # one seed: the usual spread of accuracies over seeds
    assert 0.04 < alone < 0.08
