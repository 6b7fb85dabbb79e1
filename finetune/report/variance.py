"""Variances of accuracies over seeds, images and folds, and the error that they make together. Knows no records."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.report.stats import Name

Bits = NDArray[np.bool_] | NDArray[np.float64]
"""Seeds x images: whether each was right, in each seed's best epoch. Or seeds x 1: a score a seed, where nothing is
known of single images; then images add no error. With folds, NaN where an image was trained on."""

_PRIOR_FREEDOM = 4.0
"""Degrees of freedom that the spread of all configurations together counts for in the spread of one."""
USUAL_SPREAD = 0.02
"""Standard deviation of an accuracy over seeds that is taken where too few seeds tell."""


@dataclass(frozen=True)
class Variance:
    """Of an accuracy, or of a part of its error."""

    value: float
    freedom: float
    """Its degrees of freedom."""

    def of_mean(self, count: int) -> "Variance":
        """That of the mean of so many."""
        return self.times(1 / count)

    def times(self, factor: float) -> "Variance":
        """So many times as large."""
        return Variance(factor * self.value, self.freedom)


def over_seeds(entrants: Mapping[Name, Bits]) -> dict[Name, Variance]:
    """Each one's spread over seeds, drawn towards that of all together, and never below its own."""
    own = {
        name: Variance(float(bits.mean(1).var(ddof=1)) if len(bits) > 1 else 0.0, len(bits) - 1)
        for name, bits in entrants.items()
    }
    return moderated(own, USUAL_SPREAD**2)


def moderated(own: Mapping[Name, Variance], usual: float) -> dict[Name, Variance]:
    """Variances drawn towards that of all together (Smyth 2004), and never below their own.

    The further a variance lies above that of all, the less these tell of it: its degrees of freedom go from those of
    both together down to its own.

    Args:
        own: What each one's few values say, which have no freedom where there is but one.
        usual: What is taken where even all together are few.
    """
    total = sum(variance.freedom for variance in own.values())
    pooled = sum(variance.freedom * variance.value for variance in own.values()) / total if total else 0.0
    missing = max(0.0, _PRIOR_FREEDOM - total)
    pooled = (min(total, _PRIOR_FREEDOM) * pooled + missing * usual) / _PRIOR_FREEDOM

    drawn = {}
    for name, variance in own.items():
        freedom = _PRIOR_FREEDOM + variance.freedom
        mean = (_PRIOR_FREEDOM * pooled + variance.freedom * variance.value) / freedom
        alike = min(1.0, mean / variance.value) if variance.value else 1.0
        drawn[name] = Variance(max(mean, variance.value), variance.freedom + _PRIOR_FREEDOM * alike**2)
    return drawn


def noise_of_seeds(*sides: Bits, most: int) -> tuple[float, float]:
    """The part of the error over images that comes of few seeds: as it is, and with the `most` that there may be.

    An image that is right with some seeds and wrong with others has a mean that new seeds would change.
    """
    now, then = 0.0, 0.0
    for bits in sides:
        seeds, images = bits.shape
        if seeds > 1 and images > 1:
            of_a_seed = float(bits.var(0, ddof=1).mean()) / images
            now += of_a_seed / seeds
            then += of_a_seed / most
    return now, then


def t_limit(level: float, freedom: float) -> float:
    """What Student's t exceeds with this probability."""
    from scipy.special import stdtrit  # as scipy.stats.t.isf, in a hundredth of its time

    return -float(stdtrit(freedom, level))


def over_images(values: NDArray[np.float64]) -> Variance:
    """Of the mean of these values, one an image; nothing where there are no single images."""
    if len(values) < 2:
        return Variance(0.0, math.inf)
    return Variance(float(values.var(ddof=1)), len(values) - 1.0).of_mean(len(values))


def error_of(*parts: Variance) -> tuple[float, float]:
    """The standard error that these make together, and its degrees of freedom (Satterthwaite 1946)."""
    variance = sum(part.value for part in parts)
    below = sum(part.value**2 / part.freedom for part in parts)
    return math.sqrt(variance), variance**2 / below if below else math.inf
