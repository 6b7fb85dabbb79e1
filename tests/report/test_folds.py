"""The judge of folds against a truth that is known: drawn images, seeds, training sets and depths."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from finetune.report.folds import accuracies
from finetune.report.judge import LAST_LOOK, compare, expect, half_widths, leader_of
from tests.report.test_judge import MARGIN, repeat_until_told

FOLDS = 5


class World:
    """Depths that get a share of the images right; seeds shift that share, and so does what each was trained on."""

    def __init__(self, seed: int, accuracies: Sequence[float], spreads: Sequence[float], training: float = 0.0):
        """`training`: the standard deviation over independent training sets, for each depth its own."""
        self._rng = np.random.default_rng(seed)
        self.accuracies, self.spreads, self.training = accuracies, spreads, training

    def draw(self, repeats: int, images: int) -> dict[int, NDArray[np.float64]]:
        """New images, seeds and training sets; repeat i is judged on fold i, and trained on the others."""
        fold = np.arange(images) * FOLDS // images
        common = self._rng.normal(size=images)
        drawn = {}
        for depth, (accuracy, spread) in enumerate(zip(self.accuracies, self.spreads, strict=True)):
            parts = self.training * (FOLDS - 1) ** 0.5 * self._rng.normal(size=FOLDS)
            bits = np.full((repeats, images), np.nan)
            for i, row in enumerate(bits):
                trained = np.delete(parts, i % FOLDS).mean()
                ease = 0.7**0.5 * common + 0.3**0.5 * self._rng.normal(size=images)
                level = np.clip(accuracy + spread * self._rng.normal() + trained, 0.01, 0.99)
                judged = fold == i % FOLDS
                row[judged] = (ease < norm.ppf(level))[judged]
            drawn[depth] = bits
        return drawn


@pytest.mark.slow
@pytest.mark.parametrize("images", [150, 1500])
@pytest.mark.parametrize("training", [0.0, 0.5], ids=["", "and training sets"])
@pytest.mark.parametrize(
    "spreads", [[0.01] * 6, [0.01, 0.035, 0.02, 0.01, 0.03, 0.015]], ids=["equal seeds", "3.5-fold"]
)
def test_tied_depths_are_seldom_called_worse(spreads: list[float], training: float, images: int) -> None:
    world = World(0, [0.75] * 6, spreads, training * min(spreads))
    told = [repeat_until_told(world.draw(LAST_LOOK, images))[1] for _ in range(120)]
    assert np.mean([any(row.standing == "worse" for row in rows.values()) for rows in told]) <= 0.05


def test_what_folds_say_of_leads_accuracies_and_losses_holds() -> None:
    truth = [0.70, 0.74, 0.75]
    world = World(1, truth, [0.01, 0.02, 0.015], training=0.005)
    leads, own, losses = [], [], []
    for _ in range(100):
        depths = world.draw(5, images=500)
        rows, widths = compare(depths, 2, MARGIN), half_widths(depths)
        leads += [abs(rows[depth].lead - (truth[2] - truth[depth])) <= rows[depth].half_width for depth in (0, 1)]
        own += [abs(accuracies(bits).mean() - truth[depth]) <= widths[depth] for depth, bits in depths.items()]
        losses.append(all(truth[depth] - truth[2] <= row.loss for depth, row in rows.items()))
    assert np.mean(leads) >= 0.94
    assert np.mean(own) >= 0.92
    assert np.mean(losses) >= 0.95


def test_a_depth_far_behind_is_called_so_by_its_exploring_trial_alone() -> None:
    depths = World(2, [0.50, 0.80, 0.80], [0.01] * 3).draw(5, images=1000)
    rows = compare({**depths, 0: depths[0][:1]}, 1, MARGIN)
    assert (rows[0].standing, rows[2].standing == "worse") == ("worse", False)


def test_easy_folds_make_no_leader() -> None:
    """The second was judged on the two easy folds alone."""
    world = World(3, [0.75, 0.70], [0.001] * 2)
    full = world.draw(5, images=1000)
    full[0][2:][~np.isnan(full[0][2:])] *= 0.5
    assert accuracies(full[1][:2]).mean() > accuracies(full[0]).mean()
    assert leader_of({0: full[0], 1: full[1][:2]}) == 0


def test_the_accuracy_to_expect_is_of_all_folds() -> None:
    bits = World(4, [0.75], [0.01]).draw(5, images=2000)[0]
    expected = expect(bits)
    assert expected.seeds == 5
    assert abs(expected.accuracy - 0.75) <= expected.half_width < 0.06
