"""Seeds as samples: intervals, differences and what would settle them. Knows no records; checked against SciPy."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
ALPHA = 0.05
REPEATS = 3
"""Fewer seeds than this give no verdict: a spread of two numbers says next to nothing."""
POWER = 0.8
"""The chance to settle a difference of the observed size that `runs_to_settle` plans for."""
MANY = 50
"""Seeds beyond which a difference counts as not worth settling."""

Scores = Mapping[int, float]
"""Accuracy by seed."""


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


def half_width(values: Sequence[float], level: float = LEVEL) -> float | None:
    """Of Student's interval of the mean; None for a single value."""
    from scipy.stats import t

    n = len(values)
    return None if n < 2 else float(t.ppf((1 + level) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n))


def difference(ours: Scores, theirs: Scores, step: float = 0.0) -> Difference | None:
    """Ours minus theirs: a paired t test where all seeds of the smaller side are shared, otherwise Welch's.

    Args:
        ours: Accuracies by seed.
        theirs: Likewise.
        step: What one image more or less changes an accuracy by. Values that agree only because they are rounded to it
            count as spread by its rounding error, so equal values are no proof of anything.

    Returns:
        None when either side has fewer than `REPEATS` seeds.
    """
    from scipy.stats import t

    repeats = min(len(ours), len(theirs))
    if repeats < REPEATS:
        return None
    shared = sorted(ours.keys() & theirs.keys())
    paired = len(shared) == repeats
    if paired:
        pairs = [ours[seed] - theirs[seed] for seed in shared]
        mean, variance, freedom = statistics.fmean(pairs), max(statistics.variance(pairs), step**2 / 6), repeats - 1.0
        error = math.sqrt(variance / repeats)
    else:
        sides = [list(ours.values()), list(theirs.values())]
        mean = statistics.fmean(sides[0]) - statistics.fmean(sides[1])
        variances = [max(statistics.variance(side), step**2 / 12) for side in sides]
        parts = [v / len(side) for v, side in zip(variances, sides, strict=True)]
        variance, error = sum(variances), math.sqrt(sum(parts))
        below = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
        freedom = sum(parts) ** 2 / below if below else math.inf
    if error == 0:
        return Difference(mean, mean, mean, float(mean == 0), paired, 0.0, repeats)
    width = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = 2 * float(t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - width, mean + width, p, paired, math.sqrt(variance), repeats)


def any_difference(groups: Sequence[Scores], step: float = 0.0) -> float | None:
    """The p value of "all groups have the same mean".

    Groups of the same seeds are blocks of a repeated-measures analysis of variance; others are compared by Welch's.

    Returns:
        None for fewer than two groups, or one of fewer than `REPEATS` seeds.
    """
    from scipy.stats import f, f_oneway

    if len(groups) < 2 or min(map(len, groups)) < REPEATS:
        return None
    if len({frozenset(group) for group in groups}) > 1:
        values = [list(group.values()) for group in groups]
        if min(map(statistics.pvariance, values)) <= step**2 / 12:
            jitter = np.random.default_rng(0)  # Welch's test divides by each variance
            values = [[v + step * (jitter.random() - 0.5) for v in group] for group in values]
        if min(map(statistics.pvariance, values)) == 0:
            return None
        return float(f_oneway(*values, equal_var=False).pvalue)
    table = np.array([[group[seed] for seed in sorted(group)] for group in groups])
    m, n = table.shape
    between = n * table.mean(1).var() * m / (m - 1)
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    within = max(float((rest**2).sum()) / ((m - 1) * (n - 1)), step**2 / 12)
    if within == 0:
        return float(between == 0)
    return float(f.sf(between / within, m - 1, (m - 1) * (n - 1)))


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number, in their order (Holm 1979): each is valid for all of them together."""
    corrected, worst = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        worst = max(worst, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = worst
    return corrected


def runs_to_settle(found: Difference, comparisons: int) -> int | None:
    """Further seeds a side after which a difference of this size would show, four times out of five.

    Args:
        found: What was seen so far; its size and spread are taken for the true ones.
        comparisons: How many are corrected for.

    Returns:
        None when more than `MANY` seeds would be needed.
    """
    from scipy.stats import nct, t

    if found.mean == 0:
        return None
    for n in range(found.repeats + 1, MANY + 1):
        freedom = n - 1 if found.paired else 2 * (n - 1)
        limit = t.ppf(1 - ALPHA / max(1, comparisons) / 2, freedom)
        if found.spread == 0 or nct.sf(limit, freedom, abs(found.mean) / found.spread * math.sqrt(n)) >= POWER:
            return n - found.repeats
    return None


def rounding_step(values: Sequence[float]) -> float:
    """The smallest distance between different accuracies: what one image counts, or more; 0 without two."""
    distinct = sorted({round(value, 6) for value in values})
    return min((b - a for a, b in itertools.pairwise(distinct)), default=0.0)
