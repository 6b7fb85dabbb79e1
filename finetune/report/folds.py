"""Configurations against the best one where each repeat was judged on another fold of the images. Knows no records.

Images lie in folds, and what a fold's images are like is common to all that were judged on it: so two configurations
are compared within the folds that both have. What new images would change is the spread of their difference over the
images of these folds, none of which is in two. The rest, of seeds and training sets, is what accuracies differ by from
repeat to repeat beyond that. Any two training sets have most of their images in common, so the mean of repeats is less
sure than as many independent ones would make it: the variance of this rest is taken times 1/n + test/train images
(Nadeau and Bengio, "Inference for the Generalization Error", 2003; for repeated cross-validation Bouckaert and Frank
2004) instead of 1/n.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.report.stats import Name
from finetune.report.variance import USUAL_SPREAD, Bits, Variance, error_of, moderated

_LEAST_SEEDS = 0.5
"""Share of the variance from repeat to repeat that is not of the images, at the least: it is itself only estimated."""


@dataclass(frozen=True)
class Pair:
    """A configuration with the leader."""

    lead: float
    """The leader's accuracy minus this one's."""
    error: float
    """The standard error of the lead."""
    freedom: float
    """Its degrees of freedom."""
    seeds_last: float
    """The part of the squared error that seeds would still have with as many as there may be."""
    images_last: float
    """The part that images would have then, which is less with more images."""
    images: int
    """How many there are."""


def are_folded(entrants: Mapping[Name, Bits]) -> bool:
    """Whether not all were judged on all images."""
    return any(bits.dtype != np.bool_ and bool(np.isnan(bits).any()) for bits in entrants.values())


def accuracies(bits: Bits) -> NDArray[np.float64]:
    """Of each seed, on the images that it was judged on."""
    return np.asarray(np.nanmean(bits, 1) if bits.dtype != np.bool_ else bits.mean(1))


def folded_errors(entrants: Mapping[Name, Bits], leader: Name, most: int) -> dict[Name, Pair]:
    """Each one with the leader, over the folds that both have; with `most` repeats at the most."""
    folds = {name: _by_fold(bits) for name, bits in entrants.items()}
    noise = _noise_of_images(folds)
    spreads = _over_folds(entrants, folds, noise)
    best = folds[leader]
    pairs = {}
    for name, own in folds.items():
        if name == leader:
            continue

        common = sorted(best.keys() & own.keys())
        differences = [best[fold].mean(0) - own[fold].mean(0) for fold in common]
        lead = float(np.mean([difference.mean() for difference in differences]))
        images, overlap = _over_nested_images(differences), _overlap(entrants[name])
        error, freedom = error_of(
            images, *(spreads[one].times(_share(folds[one], common) + overlap) for one in (leader, name))
        )

        all_folds = 1 + 1 / overlap
        seeds_last = (spreads[leader].value + spreads[name].value) * (1 / most + overlap)
        images_last = images.value * len(common) / all_folds
        pairs[name] = Pair(lead, error, freedom, seeds_last, images_last, entrants[name].shape[1])
    return pairs


def own_errors(entrants: Mapping[Name, Bits]) -> dict[Name, tuple[float, float]]:
    """Standard error and degrees of freedom of each one's own accuracy, for new seeds and new images."""
    folds = {name: _by_fold(bits) for name, bits in entrants.items()}
    spreads = _over_folds(entrants, folds, _noise_of_images(folds))
    errors = {}
    for name, own in folds.items():
        images = _over_nested_images([rows.mean(0) for rows in own.values()])
        spread = spreads[name].times(_share(own, list(own)) + _overlap(entrants[name]))
        errors[name] = error_of(images, spread)
    return errors


_Folds = Mapping[bytes, NDArray[np.float64]]
"""By fold, seeds x images of those that it judges; a fold's name tells which images these are."""


def _by_fold(bits: Bits) -> _Folds:
    rows: dict[bytes, list[NDArray[np.float64]]] = {}
    for row in bits.astype(np.float64):
        judged = ~np.isnan(row)
        rows.setdefault(judged.tobytes(), []).append(row[judged])
    return {fold: np.stack(of_fold) for fold, of_fold in rows.items()}


def _overlap(bits: Bits) -> float:
    """Images that a repeat is judged on, as a share of those that it trains on."""
    judged = float((~np.isnan(bits[0].astype(np.float64))).mean())
    return judged / (1 - judged) if judged < 1 else 0.0


def _share(folds: _Folds, common: Sequence[bytes]) -> float:
    """What the variance of one repeat is multiplied by in the mean over folds, were the repeats independent."""
    return sum(1 / len(folds[fold]) for fold in common) / len(common) ** 2


def _over_nested_images(values: Sequence[NDArray[np.float64]]) -> Variance:
    """Of the mean over folds, each of these values an image's: no image is in two folds."""
    variance = sum(float(of_fold.var(ddof=1)) / len(of_fold) for of_fold in values) / len(values) ** 2
    return Variance(variance, sum(len(of_fold) - 1 for of_fold in values))


def _noise_of_images(folds: Mapping[Name, _Folds]) -> dict[Name, float]:
    """What the images of a fold alone add to the variance of a repeat's accuracy, beyond what is common to all."""
    of_folds: dict[Name, list[float]] = {name: [] for name in folds}
    for fold in {fold for own in folds.values() for fold in own}:
        means = {name: own[fold].mean(0) for name, own in folds.items() if fold in own}
        if len(means) < 2:
            continue

        common = np.mean(list(means.values()), 0)
        for name, mean in means.items():
            of_folds[name].append(float((mean - common).var(ddof=1)) / len(mean) * len(means) / (len(means) - 1))
    return {name: float(np.mean(noise)) if noise else 0.0 for name, noise in of_folds.items()}


def _over_folds(
    entrants: Mapping[Name, Bits], folds: Mapping[Name, _Folds], noise: Mapping[Name, float]
) -> dict[Name, Variance]:
    """The variance that seeds and training sets alone give each one's accuracy from repeat to repeat.

    That is what is left once what is common to a fold, and what its images add, are taken away.
    """
    residuals, freedom = _residuals(entrants, folds)
    repeats = sum(len(bits) for bits in entrants.values())
    own = {}
    for name, bits in entrants.items():
        share = len(bits) * freedom / repeats
        own[name] = Variance(float((residuals[name] ** 2).sum()) / share if share else 0.0, share)

    usual = USUAL_SPREAD**2 + float(np.mean(list(noise.values())))
    spreads = moderated(own, usual)
    return {
        name: Variance(max(spread.value - noise[name], _LEAST_SEEDS * spread.value), spread.freedom)
        for name, spread in spreads.items()
    }


def _residuals(
    entrants: Mapping[Name, Bits], folds: Mapping[Name, _Folds]
) -> tuple[dict[Name, NDArray[np.float64]], int]:
    """Accuracies minus what a configuration and a fold explain (least squares), and the degrees of freedom left."""
    names = list(entrants)
    order = sorted({fold for own in folds.values() for fold in own})
    rows, values, owners = [], list[float](), list[int]()
    for i, name in enumerate(names):
        for row in entrants[name].astype(np.float64):
            judged = ~np.isnan(row)
            of_name = np.arange(len(names)) == i
            of_fold = np.arange(len(order)) == order.index(judged.tobytes())
            rows.append(np.concatenate([of_name, of_fold]))
            values.append(float(row[judged].mean()))
            owners.append(i)

    design, accuracy = np.array(rows, dtype=np.float64), np.array(values)
    effects, _, rank, _ = np.linalg.lstsq(design, accuracy, rcond=None)
    left = accuracy - design @ effects
    return {name: left[np.array(owners) == i] for i, name in enumerate(names)}, len(values) - int(rank)
