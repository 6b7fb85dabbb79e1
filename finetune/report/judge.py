"""Depths against the best one by an error that holds for new seeds and new images. Knows no records.

Trials of one data set are right and wrong on the same images, so their bits are crossed: seeds by images. What new
seeds would change is the spread of accuracies over seeds, moderated over the depths (Smyth 2004); what new images would
change is the spread of the difference over images. Satterthwaite's rule gives the degrees of freedom of their sum.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.report.stats import ALPHA

_PRIOR_FREEDOM = 4.0
"""Degrees of freedom that the spread of all depths together counts for in the spread of one."""
_USUAL_SPREAD = 0.02
"""Standard deviation of an accuracy over seeds that is taken where too few seeds tell."""

Bits = NDArray[np.bool_]
"""Seeds x images: whether each was right, in each seed's best epoch."""


@dataclass(frozen=True)
class Comparison:
    """One depth against the leader; accuracies are 0..1."""

    lead: float
    """The leader's accuracy minus this one's."""
    low: float
    """The least that the lead is, with 95 % for all pairs of depths together; above 0 this depth is worse."""
    loss: float
    """The most that taking the leader can lose against this depth, with 95 % for all depths together."""


@dataclass(frozen=True)
class Expectation:
    """The accuracy to expect on new images."""

    accuracy: float
    half_width: float
    """Half of its 95 % interval, for new seeds and new images."""
    seeds: int


@dataclass(frozen=True)
class _Variance:
    """Of an accuracy, or of a part of its error."""

    value: float
    freedom: float
    """Its degrees of freedom."""

    def of_mean(self, count: int) -> "_Variance":
        """That of the mean of so many."""
        return _Variance(self.value / count, self.freedom)


def compare(depths: Mapping[int, Bits], leader: int) -> dict[int, Comparison]:
    """Every other depth against the leader.

    >>> rng = np.random.default_rng(0)
    >>> depths = {4: rng.random((3, 400)) < 0.6, 9: rng.random((3, 400)) < 0.8}
    >>> worse = compare(depths, leader=9)[4]
    >>> 0 < worse.low < worse.lead, worse.loss < 0
    (True, True)

    Args:
        depths: The bits of each depth's best configuration, all of the same images.
        leader: The depth that the others are compared with.
    """
    from scipy.stats import t

    spreads = _spreads(depths)
    count = len(depths)
    comparisons = {}
    for depth, bits in depths.items():
        if depth == leader:
            continue

        best = depths[leader]
        lead = float(best.mean() - bits.mean())
        error, freedom = _error(
            spreads[leader].of_mean(len(best)),
            spreads[depth].of_mean(len(bits)),
            _over_images(best.mean(0) - bits.mean(0)),
        )
        every_pair = float(t.isf(ALPHA / (count * (count - 1)), freedom))
        every_depth = float(t.isf(ALPHA / (count - 1), freedom))
        comparisons[depth] = Comparison(lead, lead - every_pair * error, every_depth * error - lead)
    return comparisons


def expect(epochs: Sequence[NDArray[np.bool_]]) -> Expectation:
    """The accuracy of a configuration on new images, its epoch chosen as training chooses it.

    The best of many epochs is too good on the images that chose it, so each half of the images is judged in the epoch
    that was best on the other half.

    Args:
        epochs: Of each seed, epochs x images: whether each was right.
    """
    from scipy.stats import t

    judged = np.stack([_judged_by_halves(correct) for correct in epochs])
    spread = _spreads({0: judged})[0]
    error, freedom = _error(spread.of_mean(len(judged)), _over_images(judged.mean(0)))
    return Expectation(float(judged.mean()), float(t.isf(ALPHA / 2, freedom)) * error, len(judged))


def _judged_by_halves(correct: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each image is right in the epoch that is best on the other half of them."""
    halves = np.arange(correct.shape[1]) % 2  # images lie in order of class, so every second one is of every class
    judged = np.empty(correct.shape[1], np.bool_)
    for half in (0, 1):
        epoch = int(correct[:, halves != half].mean(1).argmax())
        judged[halves == half] = correct[epoch, halves == half]
    return judged


def _spreads(depths: Mapping[int, Bits]) -> dict[int, _Variance]:
    """Each depth's spread over seeds, drawn towards that of all depths together, and never below its own."""
    own = {depth: float(bits.mean(1).var(ddof=1)) if len(bits) > 1 else 0.0 for depth, bits in depths.items()}
    freedom = {depth: len(bits) - 1 for depth, bits in depths.items()}
    total = sum(freedom.values())
    pooled = sum(freedom[depth] * own[depth] for depth in depths) / total if total else 0.0
    missing = max(0.0, _PRIOR_FREEDOM - total)
    pooled = (min(total, _PRIOR_FREEDOM) * pooled + missing * _USUAL_SPREAD**2) / _PRIOR_FREEDOM

    spreads = {}
    for depth in depths:
        moderated = (_PRIOR_FREEDOM * pooled + freedom[depth] * own[depth]) / (_PRIOR_FREEDOM + freedom[depth])
        spreads[depth] = _Variance(max(moderated, own[depth]), _PRIOR_FREEDOM + freedom[depth])
    return spreads


def _over_images(values: NDArray[np.float64]) -> _Variance:
    """Of the mean of these values, one an image."""
    return _Variance(float(values.var(ddof=1)), len(values) - 1.0).of_mean(len(values))


def _error(*parts: _Variance) -> tuple[float, float]:
    """The standard error that these make together, and its degrees of freedom (Satterthwaite 1946)."""
    variance = sum(part.value for part in parts)
    below = sum(part.value**2 / part.freedom for part in parts)
    return math.sqrt(variance), variance**2 / below if below else math.inf
