"""Seeds as samples: intervals, differences and what would settle them. Knows no records; checked against SciPy."""

import itertools
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Of every interval."""
ALPHA = 0.05
"""Below this p value a difference counts as more than the noise of seeds."""
REPEATS = 3
"""Fewer seeds than this give no verdict: a spread of two numbers says next to nothing."""
POWER = 0.8
"""The chance to settle a difference of the observed size that `runs_to_settle` plans for."""
MANY = 50
"""Seeds beyond which a difference counts as not worth settling."""

Name = TypeVar("Name", bound=Hashable)
"""What configurations are called: their freeze depth, where each is the best of its depth."""
Scores = Mapping[Any, float]
"""Accuracy by the name of the repeat: its seed, say."""


@dataclass(frozen=True)
class Difference:
    """How far one configuration is ahead of another, over seeds."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval of this difference alone."""
    p: float
    """Two-sided, of this comparison alone."""
    paired: bool
    spread: float
    """Standard deviation of one difference: of a pair, or of one seed of each side."""
    repeats: int
    """Pairs, or seeds of the side that has fewer."""


@dataclass(frozen=True)
class _Sample:
    """A mean of differences with what a t test needs of it."""

    mean: float
    error: float
    """Standard error of the mean."""
    freedom: float
    """Degrees of freedom."""
    spread: float


def half_width(values: Sequence[float], level: float = LEVEL) -> float | None:
    """Half of Student's interval of the mean; None for a single value.

    >>> half_width([0.80, 0.82, 0.81])
    0.024...
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return None
    return float(t.ppf((1 + level) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n))


def difference(ours: Scores, theirs: Scores, step: float = 0.0) -> Difference | None:
    """Ours minus theirs: a paired t test where all seeds of the smaller side are shared, otherwise Welch's.

    Args:
        ours: Accuracies by seed.
        theirs: Likewise.
        step: What one image more or less changes an accuracy by. Values that agree only because they are rounded to it
            count as spread by its rounding error, so equal values are no proof of anything.

    Returns:
        None when either side has fewer than `REPEATS` seeds.

    >>> ahead = difference({0: 0.81, 1: 0.84, 2: 0.82}, {0: 0.78, 1: 0.80, 2: 0.79})
    >>> ahead.paired, round(ahead.mean, 3), round(ahead.p, 3)
    (True, 0.033, 0.01)
    """
    from scipy.stats import t

    repeats = min(len(ours), len(theirs))
    if repeats < REPEATS:
        return None

    shared = sorted(ours.keys() & theirs.keys())
    paired = len(shared) == repeats
    sample = _paired(ours, theirs, shared, step) if paired else _welch(ours, theirs, step)
    mean, error = sample.mean, sample.error
    if error == 0:
        return Difference(mean, mean, mean, float(mean == 0), paired, 0.0, repeats)

    width = float(t.ppf((1 + LEVEL) / 2, sample.freedom)) * error
    p = 2 * float(t.sf(abs(mean) / error, sample.freedom))
    return Difference(mean, mean - width, mean + width, p, paired, sample.spread, repeats)


# SciPy's own tests take no smallest variance, which is what makes equal values of few images no proof; so the two below
# give what its t distribution needs. Where nothing is rounded, the results are SciPy's (tests/report/test_stats.py).


def _paired(ours: Scores, theirs: Scores, shared: Sequence[Any], step: float) -> _Sample:
    pairs = [ours[seed] - theirs[seed] for seed in shared]
    rounding = step**2 / 6  # of a difference of two rounded values, each of variance step²/12
    variance = max(statistics.variance(pairs), rounding)
    n = len(pairs)
    return _Sample(statistics.fmean(pairs), math.sqrt(variance / n), n - 1.0, math.sqrt(variance))


def _welch(ours: Scores, theirs: Scores, step: float) -> _Sample:
    sides = [list(ours.values()), list(theirs.values())]
    variances = [max(statistics.variance(side), step**2 / 12) for side in sides]
    parts = [variance / len(side) for variance, side in zip(variances, sides, strict=True)]

    # Welch and Satterthwaite's degrees of freedom
    below = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    freedom = sum(parts) ** 2 / below if below else math.inf

    mean = statistics.fmean(sides[0]) - statistics.fmean(sides[1])
    return _Sample(mean, math.sqrt(sum(parts)), freedom, math.sqrt(sum(variances)))


def any_difference(groups: Sequence[Scores], step: float = 0.0) -> float | None:
    """The p value of "all groups have the same mean".

    Groups of the same seeds are blocks of a repeated-measures analysis of variance; others are compared by Welch's.

    Args:
        groups: Accuracies by seed.
        step: As for `difference`.

    Returns:
        None for fewer than two groups, or one of fewer than `REPEATS` seeds.
    """
    if len(groups) < 2 or min(map(len, groups)) < REPEATS:
        return None

    same_seeds = len({frozenset(group) for group in groups}) == 1
    if not same_seeds:
        return _welch_anova([list(group.values()) for group in groups], step)
    return _block_anova(np.array([[group[seed] for seed in sorted(group)] for group in groups]), step)


def _welch_anova(groups: list[list[float]], step: float) -> float | None:
    from scipy.stats import f_oneway

    if min(map(statistics.pvariance, groups)) <= step**2 / 12:
        # Welch's test divides by each variance; rounding errors drawn anew give the smallest that can be seen.
        rng = np.random.default_rng(0)
        groups = [[value + step * (rng.random() - 0.5) for value in group] for group in groups]

    if min(map(statistics.pvariance, groups)) == 0:
        return None
    return float(f_oneway(*groups, equal_var=False).pvalue)


def _block_anova(table: NDArray[np.float64], step: float) -> float:
    """The p value of groups, in rows, over the same seeds, in columns."""
    from scipy.stats import f

    groups, seeds = table.shape
    between = seeds * table.mean(1).var() * groups / (groups - 1)
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    within = max(float((rest**2).sum()) / ((groups - 1) * (seeds - 1)), step**2 / 12)

    if within == 0:
        return float(between == 0)
    return float(f.sf(between / within, groups - 1, (groups - 1) * (seeds - 1)))


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number, in their order (Holm 1979): each is valid for all of them together.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected


def corrected(differences: Mapping[Name, Difference | None]) -> dict[Name, float]:
    """The p value of each difference that there is, by its name, corrected for their number."""
    known = {name: difference for name, difference in differences.items() if difference is not None}
    return dict(zip(known, holm([difference.p for difference in known.values()]), strict=True))


def runs_to_settle(seen: Difference, comparisons: int) -> int | None:
    """Further seeds a side after which a difference of this size would show, four times out of five.

    Args:
        seen: The difference so far; its size and spread are taken for the true ones.
        comparisons: How many are corrected for.

    Returns:
        None when more than `MANY` seeds would be needed.
    """
    from scipy.stats import nct, t

    if seen.mean == 0:
        return None

    for n in range(seen.repeats + 1, MANY + 1):
        freedom = n - 1 if seen.paired else 2 * (n - 1)
        limit = t.ppf(1 - ALPHA / max(1, comparisons) / 2, freedom)
        if seen.spread == 0 or nct.sf(limit, freedom, abs(seen.mean) / seen.spread * math.sqrt(n)) >= POWER:
            return n - seen.repeats
    return None


def rounding_step(values: Sequence[float]) -> float:
    """The smallest distance between different accuracies: what one image counts, or more; 0 without two.

    >>> rounding_step([0.75, 0.5, 0.875, 0.5])
    0.125
    """
    distinct = sorted({round(value, 6) for value in values})
    return min((b - a for a, b in itertools.pairwise(distinct)), default=0.0)
