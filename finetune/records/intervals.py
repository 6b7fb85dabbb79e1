"""Metrics of kept predictions with intervals for new images: a formula where there is one, else bootstrap. No torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.records.predictions import Predictions
from finetune.records.scores import wilson_interval

_DRAWS = 200
"""Resamplings behind a standard error, which they give to about 5 %."""


def estimate(metric: str, predictions: Predictions, seed: int = 0) -> tuple[float, float, float]:
    """A metric with the ends of its 95 % interval for other images of the same kind.

    Wilson's interval for accuracy; Student's, of a mean, for the loss; 1.96 standard errors for the others, of DeLong
    et al. (1988) for the area under the ROC curves, and of a bootstrap over the images for balanced accuracy and F1
    (Efron 1979).

    Args:
        metric: One of `config.METRICS`.
        predictions: Of one model.
        seed: Of the resampling.
    """
    probabilities, labels = predictions.probabilities.astype(np.float64), predictions.labels
    if metric == "val/acc":
        return (predictions.right / len(labels), *wilson_interval(predictions.right, len(labels)))
    if metric == "val/loss":
        return _of_mean(_losses(probabilities, labels))

    if metric == "val/auroc":
        value, error = _macro_auroc(probabilities, labels)
    else:
        value, error = _bootstrapped(_MEASURES[metric], probabilities, labels, seed)
    low, high = np.clip([value - 1.96 * error, value + 1.96 * error], 0, 1)
    return value, float(low), float(high)


def _losses(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    of_label = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.maximum(of_label, np.finfo(np.float32).tiny))


def _of_mean(values: NDArray[np.float64]) -> tuple[float, float, float]:
    from scipy.stats import t

    mean, count = float(values.mean()), len(values)
    width = float(t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("inf")
    return mean, mean - width, mean + width


def _macro_auroc(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, float]:
    """The mean area under the ROC curves of the classes that have images, each against the rest; its standard error.

    An area is a mean over pairs of an image of the class and one of the rest, of which the former should have the
    larger probability; ties count half. How much each image adds to the areas gives the variance of their mean (DeLong,
    DeLong and Clarke-Pearson 1988, here of all classes together, which share the images). nan with a single class.
    """
    areas = []
    deviations = np.zeros(len(labels))
    for label in np.unique(labels):
        own = labels == label
        if own.all():
            continue

        of_class, of_rest = probabilities[own, label], probabilities[~own, label]
        won = _share_below(of_rest, of_class)
        lost = 1 - _share_below(of_class, of_rest)
        areas.append(won.mean())
        deviations[own] += _scaled(won)
        deviations[~own] += _scaled(lost)

    if not areas:
        return float("nan"), float("nan")
    return float(np.mean(areas)), float(np.linalg.norm(deviations) / len(areas))


def _share_below(values: NDArray[Any], of: NDArray[Any]) -> NDArray[np.float64]:
    """For each of `of` the share of `values` that lies below it; equal ones count half."""
    ordered = np.sort(values)
    twice = np.searchsorted(ordered, of, "left") + np.searchsorted(ordered, of, "right")
    return np.asarray(twice / (2 * len(values)))


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deviations from the mean, such that the sum of their squares is the variance of the mean."""
    deviations = values - values.mean()
    return np.asarray(deviations / np.sqrt(len(values) * max(1, len(values) - 1)))


def _bootstrapped(
    measure: Callable[[NDArray[np.int64], NDArray[np.int64]], float],
    probabilities: NDArray[Any],
    labels: NDArray[np.int64],
    seed: int,
) -> tuple[float, float]:
    """A metric of predicted and true labels, and its standard error."""
    predicted = probabilities.argmax(1)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(_DRAWS):
        chosen = rng.integers(len(labels), size=len(labels))
        values.append(measure(predicted[chosen], labels[chosen]))
    return measure(predicted, labels), float(np.std(values, ddof=1))


def _balanced_accuracy(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """The mean recall of the classes that have images."""
    images = np.bincount(labels)
    right = np.bincount(labels[predicted == labels], minlength=len(images))
    return float((right[images > 0] / images[images > 0]).mean())


def _macro_f1(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """The mean F1 score of the classes that have images or predictions."""
    classes = 1 + max(predicted.max(), labels.max())
    right = np.bincount(labels[predicted == labels], minlength=classes)
    both = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float((2 * right[both > 0] / both[both > 0]).mean())


_MEASURES: dict[str, Callable[[NDArray[np.int64], NDArray[np.int64]], float]] = {
    "val/balanced_acc": _balanced_accuracy,
    "val/f1": _macro_f1,
}
