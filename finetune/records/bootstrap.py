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

    Wilson's interval for accuracy; Student's, of a mean, for the loss; 1.96 bootstrap standard errors over resamples of
    the images for the others (Efron 1979).

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

    measure = _MEASURES[metric]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(_DRAWS):
        chosen = rng.integers(len(labels), size=len(labels))
        values.append(measure(probabilities[chosen], labels[chosen]))
    value, width = measure(probabilities, labels), 1.96 * float(np.nanstd(values, ddof=1))
    return value, max(0.0, value - width), min(1.0, value + width)


def _losses(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    of_label = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.maximum(of_label, np.finfo(np.float32).tiny))


def _of_mean(values: NDArray[np.float64]) -> tuple[float, float, float]:
    from scipy.stats import t

    mean, count = float(values.mean()), len(values)
    width = float(t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("inf")
    return mean, mean - width, mean + width


def balanced_accuracy(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The mean recall of the classes that have images."""
    images = np.bincount(labels)
    right = np.bincount(labels[probabilities.argmax(1) == labels], minlength=len(images))
    return float((right[images > 0] / images[images > 0]).mean())


def macro_f1(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The mean F1 score of the classes that have images or predictions."""
    classes, predicted = probabilities.shape[1], probabilities.argmax(1)
    right = np.bincount(labels[predicted == labels], minlength=classes)
    both = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float((2 * right[both > 0] / both[both > 0]).mean())


def macro_auroc(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The mean area under the ROC curves of the classes that have images, each against the rest (Mann and Whitney)."""
    from scipy.stats import rankdata

    ranks = rankdata(probabilities, axis=0)
    own = np.bincount(labels, minlength=probabilities.shape[1])
    sums = np.zeros(len(own))
    np.add.at(sums, labels, ranks[np.arange(len(labels)), labels])

    pairs = own * (len(labels) - own)
    areas = (sums - own * (own + 1) / 2)[pairs > 0] / pairs[pairs > 0]
    return float(areas.mean()) if len(areas) else float("nan")


_MEASURES: dict[str, Callable[[NDArray[Any], NDArray[np.int64]], float]] = {
    "val/balanced_acc": balanced_accuracy,
    "val/f1": macro_f1,
    "val/auroc": macro_auroc,
}
