"""Configurations against the best one by an error that holds for new seeds and new images. Knows no records.

Trials of one data set are right and wrong on the same images, so their bits are crossed: seeds by images. What new
seeds would change is the spread of accuracies over seeds, moderated over the configurations (Smyth 2004); what new
images would change is the spread of the difference over images. Satterthwaite's rule gives the degrees of freedom of
their sum. docs/report.md has the formulas.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from finetune.report.folds import Pair, accuracies, are_folded, folded_errors, own_errors
from finetune.report.stats import ALPHA, Name
from finetune.report.variance import Bits, error_of, noise_of_seeds, over_images, over_seeds, t_limit

FIRST_LOOK, LAST_LOOK = 3, 8
"""Seeds of a configuration at which it is judged first and last; in between it is judged after each one."""
_PLANNED_FREEDOM = 30.0
"""Degrees of freedom of an error with all seeds that there may be, about; they matter little from here on."""
_LEAST_IMAGES = 0.2
"""Share of the error over images that endless seeds would leave, at the least: it is itself only estimated."""


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


def leader_of(entrants: Mapping[Name, Bits]) -> Name:
    """The best by the mean over seeds; one with a single seed leads only where all have no more."""
    repeated = [name for name, bits in entrants.items() if len(bits) > 1]
    if are_folded(entrants):  # some folds are easier than others, so only those with the most of them can be compared
        most = max(len(bits) for bits in entrants.values())
        repeated = [name for name, bits in entrants.items() if len(bits) == most]
    return max(repeated or entrants, key=lambda name: float(accuracies(entrants[name]).mean()))


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
    error_with = folded_errors if are_folded(entrants) else _crossed_errors
    levels = ALPHA / (len(entrants) * (len(entrants) - 1) or 1), ALPHA / (len(entrants) - 1 or 1)
    planned = tuple(t_limit(level, _PLANNED_FREEDOM) for level in levels)
    comparisons = {}
    for name, pair in error_with(entrants, leader, LAST_LOOK).items():
        lead = pair.lead
        worse, loss = (t_limit(level, pair.freedom) * pair.error for level in levels)
        last = math.sqrt(pair.seeds_last + pair.images_last)

        if lead > worse:
            standing = "worse"
        elif loss - lead <= margin:
            standing = "within"
        else:
            tells = lead > planned[0] * last or planned[1] * last - lead <= margin
            standing = "open" if tells else "images"

        room = max((lead / planned[0]) ** 2, ((margin + lead) / planned[1]) ** 2) - pair.seeds_last
        needed = max(pair.images, pair.images_last * pair.images / room) if room > 0 else math.inf
        half_width = t_limit(ALPHA / 2, pair.freedom) * pair.error
        comparisons[name] = Comparison(lead, half_width, lead - worse, loss - lead, standing, needed)
    return comparisons


def _crossed_errors(entrants: Mapping[Name, Bits], leader: Name, most: int) -> dict[Name, Pair]:
    """Each one with the leader, where all were judged on the same images; with `most` seeds at the most."""
    spreads, best = over_seeds(entrants), entrants[leader]
    pairs = {}
    for name, bits in entrants.items():
        if name == leader:
            continue

        images = over_images(best.mean(0) - bits.mean(0))
        error, freedom = error_of(spreads[leader].of_mean(len(best)), spreads[name].of_mean(len(bits)), images)

        # What endless seeds would leave of the error over images, and what many seeds would add to that
        noise, noise_then = noise_of_seeds(best, bits, most=most)
        images_alone = max(images.value - noise, _LEAST_IMAGES * images.value)
        seeds_last = (spreads[leader].value + spreads[name].value) / most
        lead = float(best.mean() - bits.mean())
        pairs[name] = Pair(lead, error, freedom, seeds_last, images_alone + noise_then, best.shape[1])
    return pairs


def next_looks(seeds: Mapping[Name, int], comparisons: Mapping[Name, Comparison], leader: Name) -> dict[Name, int]:
    """How many seeds configurations should have next; nothing when no further seed would decide anything.

    Args:
        seeds: Those that each has.
        comparisons: With the leader.
        leader: Gets as many seeds as any that is compared with it.
    """
    more = {
        name: max(FIRST_LOOK, seeds[name] + 1)
        for name, row in comparisons.items()
        if seeds[name] < LAST_LOOK
        and (row.standing == "open" or (row.standing == "images" and seeds[name] < FIRST_LOOK))
    }
    if more and seeds[leader] < max(more.values()):
        more[leader] = max(more.values())
    return more


def expect(judged: Bits) -> Expectation:
    """The accuracy of a configuration on new images; `judged` as `judged_by_halves` judges each seed."""
    return Expectation(float(accuracies(judged).mean()), half_widths({0: judged})[0], len(judged))


def half_widths(entrants: Mapping[Name, Bits]) -> dict[Name, float]:
    """Half of the 95 % interval of each one's own mean, for new seeds and, where bits are of images, new images.

    Also of one with a single seed: what seeds change is then taken from the others.

    >>> rng = np.random.default_rng(0)
    >>> widths = half_widths({4: rng.random((3, 400)) < 0.6, 9: rng.random((8, 400)) < 0.6})
    >>> 0 < widths[9] < widths[4] < 0.1
    True
    """
    if are_folded(entrants):
        return {name: t_limit(ALPHA / 2, freedom) * error for name, (error, freedom) in own_errors(entrants).items()}

    widths = {}
    for name, spread in over_seeds(entrants).items():
        bits = entrants[name]
        error, freedom = error_of(spread.of_mean(len(bits)), over_images(bits.mean(0)))
        widths[name] = t_limit(ALPHA / 2, freedom) * error
    return widths


def judged_by_halves(correct: Bits) -> Bits:
    """Whether each image is right in the epoch that is best on the other half of them.

    The best of many epochs is too good on the images that chose it.

    Args:
        correct: Epochs x images: whether each was right.
    """
    halves = np.arange(correct.shape[1]) % 2  # images lie in order of class, so every second one is of every class
    judged: Bits = np.empty_like(correct[0])
    for half in (0, 1):
        epoch = int(correct[:, halves != half].mean(1).argmax())
        judged[halves == half] = correct[epoch, halves == half]
    return judged
