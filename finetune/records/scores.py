"""How good predictions are: accuracy, per-class figures, confusions, calibration. Imports no torch."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.errors import Refused, nearest
from finetune.records.predictions import Predictions

_BINS = 10
"""Bins of confidence."""


@dataclass(frozen=True)
class ClassFigures:
    """One class; a figure is None where it would divide by zero."""

    name: str
    images: int
    right: int
    precision: float | None
    """Of the images said to be of the class, the share that is, 0..1."""
    recall: float | None
    """Of the images of the class, the share that was found, 0..1."""

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall."""
        if not self.precision or not self.recall:
            return None if self.recall is None else 0.0
        return 2 * self.precision * self.recall / (self.precision + self.recall)


@dataclass(frozen=True)
class Confusion:
    """Counts of images by true class, rows, and predicted class, columns."""

    classes: tuple[str, ...]
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, classes: Sequence[str], given: Collection[str], where: str) -> "Confusion":
        """No image yet, for a model that knows `classes` and images labelled with the names `given`.

        Raises:
            Refused: a name that the model does not know.
        """
        for name in given:
            if name not in classes:
                raise Refused(f"{where}: the model knows no class {name!r}; {nearest(name, classes)}")
        return cls(tuple(classes), np.zeros((len(classes), len(classes)), dtype=np.int64))

    @classmethod
    def of(cls, predictions: Predictions, classes: Sequence[str]) -> "Confusion":
        """Of a trial's predictions on its validation images."""
        flat = predictions.labels * len(classes) + predictions.predicted
        counts = np.bincount(flat, minlength=len(classes) ** 2)
        return cls(tuple(classes), counts.reshape(len(classes), len(classes)))

    def add(self, true: str, predicted: int) -> None:
        """Count one image of class `true` that was taken for class number `predicted`."""
        self.counts[self.classes.index(true), predicted] += 1

    @property
    def images(self) -> int:
        """All of them."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Top-1, 0..1."""
        return float(np.trace(self.counts) / self.images)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, for images drawn at random."""
        return wilson_interval(int(np.trace(self.counts)), self.images)

    @property
    def mean_recall(self) -> float:
        """Over the classes that have images: what the accuracy would be if all had equally many."""
        return float(np.mean([row.recall for row in self.per_class if row.recall is not None]))

    @property
    def per_class(self) -> list[ClassFigures]:
        """One row a class, in label order."""
        rows = []
        for i, name in enumerate(self.classes):
            right, true, said = (int(n) for n in (self.counts[i, i], self.counts[i].sum(), self.counts[:, i].sum()))
            rows.append(ClassFigures(name, true, right, right / said if said else None, right / true if true else None))
        return rows


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy, for images drawn at random.

    >>> wilson_interval(8, 10)
    (0.49..., 0.94...)
    """
    from scipy.stats import binomtest

    interval = binomtest(right, images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy, by bins of confidence that hold images."""

    confidence: tuple[float, ...]
    """Mean in each bin, 0..1."""
    accuracy: tuple[float, ...]
    images: tuple[int, ...]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of the two, weighted by images."""
        gaps = [abs(c - a) * n for c, a, n in zip(self.confidence, self.accuracy, self.images, strict=True)]
        return sum(gaps) / sum(self.images)


def calibration(predictions: Predictions) -> Calibration:
    """Of the predicted class's probability, in ten equal bins."""
    sure = predictions.probabilities.max(1).astype(np.float64)
    right = predictions.predicted == predictions.labels
    bins = np.minimum((sure * _BINS).astype(np.int64), _BINS - 1)
    held = [bins == i for i in range(_BINS) if (bins == i).any()]
    return Calibration(
        tuple(float(sure[these].mean()) for these in held),
        tuple(float(right[these].mean()) for these in held),
        tuple(int(these.sum()) for these in held),
    )
