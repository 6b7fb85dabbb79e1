"""Configurations against the best one by an error that holds for new seeds and new images. Knows no records.

Trials of one data set are right and wrong on the same images, so their bits are crossed: seeds by images. What new
seeds would change is the spread of accuracies over seeds, moderated over the configurations (Smyth 2004); what new
images would change is the spread of the difference over images. Satterthwaite's rule gives the degrees of freedom of
their sum. docs/report.md has the formulas.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.report.stats import ALPHA, Name

LOOKS = (3, 5, 8)
"""Seeds of a configuration at which it is judged; the last is the most that it gets."""
_PRIOR_FREEDOM = 4.0
"""Degrees of freedom that the spread of all configurations together counts for in the spread of one."""
_USUAL_SPREAD = 0.02
"""Standard deviation of an accuracy over seeds that is taken where too few seeds tell."""
_PLANNED_FREEDOM = 30.0
"""Degrees of freedom of an error with all seeds that there may be, about; they matter little from here on."""
_LEAST_IMAGES = 0.2
"""Share of the error over images that endless seeds would leave, at the least: it is itself only estimated."""

Bits = NDArray[np.bool_] | NDArray[np.float64]
"""Seeds x images: whether each was right, in each seed's best epoch. Or seeds x 1: a score a seed, where nothing is
known of single images; then images add no error."""


@dataclass(frozen=True)
class Comparison:
    """One configuration against the leader; accuracies are 0..1."""

    lead: float
    """The leader's accuracy minus this one's."""
    half_width: float
    """Half of the 95 % interval of this lead alone."""
    low: float
    """The least that the lead is, with 95 % for all pairs together; above 0 this one is worse."""
    loss: float
    """The most that taking the leader can lose against this one, with 95 % for all of them together."""
    standing: str
    """`worse`; `within` the margin: if it is better, then by no more; `open`: as many seeds as there may be would tell,
    were the lead to stay; `images`: they would not, it takes more images."""
    images_needed: float
    """About so many would tell, with as many seeds as there may be; infinite where it takes more seeds too."""


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


def leader_of(entrants: Mapping[Name, Bits]) -> Name:
    """The best by the mean over seeds; one with a single seed leads only where all have no more."""
    repeated = [name for name, bits in entrants.items() if len(bits) > 1]
    return max(repeated or entrants, key=lambda name: float(entrants[name].mean()))


def compare(entrants: Mapping[Name, Bits], leader: Name, margin: float) -> dict[Name, Comparison]:
    """Every other configuration against the leader.

    >>> rng = np.random.default_rng(0)
    >>> depths = {4: rng.random((3, 400)) < 0.6, 9: rng.random((3, 400)) < 0.8}
    >>> row = compare(depths, leader=9, margin=0.02)[4]
    >>> 0 < row.low < row.lead, row.loss < 0, row.standing
    (True, True, 'worse')

    Args:
        entrants: The bits of each configuration, all of the same images.
        leader: The one that the others are compared with.
        margin: The difference that is worth having, 0..1.
    """
    spreads = _spreads(entrants)
    levels = ALPHA / (len(entrants) * (len(entrants) - 1) or 1), ALPHA / (len(entrants) - 1 or 1)
    best = entrants[leader]
    comparisons = {}
    for name, bits in entrants.items():
        if name == leader:
            continue

        lead = float(best.mean() - bits.mean())
        over_images = _over_images(best.mean(0) - bits.mean(0))
        error, freedom = _error(spreads[leader].of_mean(len(best)), spreads[name].of_mean(len(bits)), over_images)
        worse, loss = (_t(level, freedom) * error for level in levels)

        # What would be left of the error with as many seeds as there may be, and with endless ones
        planned = tuple(_t(level, _PLANNED_FREEDOM) for level in levels)
        seeds_alone = (spreads[leader].value + spreads[name].value) / LOOKS[-1]
        noise, noise_then = _noise_of_seeds(best, bits)
        images_alone = max(over_images.value - noise, _LEAST_IMAGES * over_images.value)
        last = math.sqrt(seeds_alone + noise_then + images_alone)

        if lead > worse:
            standing = "worse"
        elif loss - lead <= margin:
            standing = "within"
        else:
            tells = lead > planned[0] * last or planned[1] * last - lead <= margin
            standing = "open" if tells else "images"

        room = max((lead / planned[0]) ** 2, ((margin + lead) / planned[1]) ** 2) - seeds_alone
        images = best.shape[1]
        needed = max(images, (images_alone + noise_then) * images / room) if room > 0 else math.inf
        half_width = _t(ALPHA / 2, freedom) * error
        comparisons[name] = Comparison(lead, half_width, lead - worse, loss - lead, standing, needed)
    return comparisons


def next_looks(seeds: Mapping[Name, int], comparisons: Mapping[Name, Comparison], leader: Name) -> dict[Name, int]:
    """How many seeds configurations should have next; nothing when no further seed would decide anything.

    Args:
        seeds: Those that each has.
        comparisons: With the leader.
        leader: Gets as many seeds as any that is compared with it.
    """
    more = {
        name: next(look for look in LOOKS if look > seeds[name])
        for name, row in comparisons.items()
        if seeds[name] < LOOKS[-1] and (row.standing == "open" or (row.standing == "images" and seeds[name] < LOOKS[0]))
    }
    if more and seeds[leader] < max(more.values()):
        more[leader] = max(more.values())
    return more


def expect(epochs: Sequence[NDArray[np.bool_]]) -> Expectation:
    """The accuracy of a configuration on new images, its epoch chosen as training chooses it.

    The best of many epochs is too good on the images that chose it, so each half of the images is judged in the epoch
    that was best on the other half.

    Args:
        epochs: Of each seed, epochs x images: whether each was right.
    """
    judged = np.stack([_judged_by_halves(correct) for correct in epochs])
    return Expectation(float(judged.mean()), half_widths({0: judged})[0], len(judged))


def half_widths(entrants: Mapping[Name, Bits]) -> dict[Name, float]:
    """Half of the 95 % interval of each one's own mean, for new seeds and, where bits are of images, new images.

    Also of one with a single seed: what seeds change is then taken from the others.

    >>> rng = np.random.default_rng(0)
    >>> widths = half_widths({4: rng.random((3, 400)) < 0.6, 9: rng.random((8, 400)) < 0.6})
    >>> 0 < widths[9] < widths[4] < 0.1
    True
    """
    widths = {}
    for name, spread in _spreads(entrants).items():
        bits = entrants[name]
        error, freedom = _error(spread.of_mean(len(bits)), _over_images(bits.mean(0)))
        widths[name] = _t(ALPHA / 2, freedom) * error
    return widths


def _judged_by_halves(correct: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each image is right in the epoch that is best on the other half of them."""
    halves = np.arange(correct.shape[1]) % 2  # images lie in order of class, so every second one is of every class
    judged = np.empty(correct.shape[1], np.bool_)
    for half in (0, 1):
        epoch = int(correct[:, halves != half].mean(1).argmax())
        judged[halves == half] = correct[epoch, halves == half]
    return judged


def _spreads(entrants: Mapping[Name, Bits]) -> dict[Name, _Variance]:
    """Each one's spread over seeds, drawn towards that of all together, and never below its own."""
    own = {name: float(bits.mean(1).var(ddof=1)) if len(bits) > 1 else 0.0 for name, bits in entrants.items()}
    freedom = {name: len(bits) - 1 for name, bits in entrants.items()}
    total = sum(freedom.values())
    pooled = sum(freedom[name] * own[name] for name in entrants) / total if total else 0.0
    missing = max(0.0, _PRIOR_FREEDOM - total)
    pooled = (min(total, _PRIOR_FREEDOM) * pooled + missing * _USUAL_SPREAD**2) / _PRIOR_FREEDOM

    spreads = {}
    for name in entrants:
        moderated = (_PRIOR_FREEDOM * pooled + freedom[name] * own[name]) / (_PRIOR_FREEDOM + freedom[name])
        if own[name] > moderated:  # the others tell nothing of one that is more restless than they
            spreads[name] = _Variance(own[name], freedom[name])
        else:
            spreads[name] = _Variance(moderated, _PRIOR_FREEDOM + freedom[name])
    return spreads


def _noise_of_seeds(*sides: Bits) -> tuple[float, float]:
    """The part of the error over images that comes of few seeds: as it is, and with as many as there may be.

    An image that is right with some seeds and wrong with others has a mean that new seeds would change.
    """
    now, then = 0.0, 0.0
    for bits in sides:
        seeds, images = bits.shape
        if seeds > 1 and images > 1:
            share = bits.mean(0)
            now += float((share * (1 - share)).mean()) / (seeds - 1) / images
            then += float((share * (1 - share)).mean()) * seeds / (seeds - 1) / images / LOOKS[-1]
    return now, then


def _t(level: float, freedom: float) -> float:
    """What Student's t exceeds with this probability."""
    from scipy.special import stdtrit  # as scipy.stats.t.isf, in a hundredth of its time

    return -float(stdtrit(freedom, level))


def _over_images(values: NDArray[np.float64]) -> _Variance:
    """Of the mean of these values, one an image; nothing where there are no single images."""
    if len(values) < 2:
        return _Variance(0.0, math.inf)
    return _Variance(float(values.var(ddof=1)), len(values) - 1.0).of_mean(len(values))


def _error(*parts: _Variance) -> tuple[float, float]:
    """The standard error that these make together, and its degrees of freedom (Satterthwaite 1946)."""
    variance = sum(part.value for part in parts)
    below = sum(part.value**2 / part.freedom for part in parts)
    return math.sqrt(variance), variance**2 / below if below else math.inf
