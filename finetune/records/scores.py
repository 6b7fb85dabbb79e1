"""How good predictions are: accuracy, figures of each class, confusions, calibration. Imports no torch."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.errors import Refused, nearest
from finetune.records.predictions import Predictions

_BINS = 10
"""Bins of confidence."""


@dataclass(frozen=True)
class ClassFigures:
    """How one class is predicted; a figure is None where it would divide by zero."""

    name: str
    images: int
    """Images that are of the class."""
    right: int
    """Images of the class that are predicted as such."""
    precision: float | None
    """The share of the images predicted as the class that are of it, 0..1."""
    recall: float | None
    """The share of the images of the class that are predicted as such, 0..1."""

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall."""
        if self.recall is None:
            return None

        if not self.precision or not self.recall:
            return 0.0
        return 2 * self.precision * self.recall / (self.precision + self.recall)


@dataclass(frozen=True)
class Mistake:
    """Images of one class that were taken for another, by the classes' numbers."""

    true: int
    predicted: int
    images: int


@dataclass(frozen=True)
class Confusion:
    """What images of each class were taken for; entry i of both arrays belongs to image i.

    >>> confusion = Confusion(("ant", "bee"), np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    >>> confusion.accuracy, confusion.counts.tolist()
    (0.75, [[2, 1], [0, 1]])
    """

    classes: tuple[str, ...]
    true: NDArray[np.int64]
    """N class numbers."""
    predicted: NDArray[np.int64]
    """N class numbers."""

    @classmethod
    def of(cls, predictions: Predictions, classes: Sequence[str]) -> "Confusion":
        """The confusions of a trial on its validation images."""
        return cls(tuple(classes), predictions.labels, predictions.predicted)

    @property
    def images(self) -> int:
        """How many images there are."""
        return len(self.true)

    @property
    def right(self) -> int:
        """How many of them are predicted as what they are."""
        return int((self.true == self.predicted).sum())

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0..1."""
        return self.right / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, for images drawn at random."""
        return wilson_interval(self.right, self.images)

    @property
    def mean_recall(self) -> float:
        """The mean over the classes that have images: the accuracy if all had equally many."""
        recalls = [figures.recall for figures in self.per_class if figures.recall is not None]
        return float(np.mean(recalls))

    @property
    def per_class(self) -> list[ClassFigures]:
        """The figures of each class, in label order."""
        count = len(self.classes)
        images = np.bincount(self.true, minlength=count).tolist()
        predicted = np.bincount(self.predicted, minlength=count).tolist()
        right = np.bincount(self.true[self.true == self.predicted], minlength=count).tolist()
        return [
            ClassFigures(
                name=name,
                images=images[i],
                right=right[i],
                precision=right[i] / predicted[i] if predicted[i] else None,
                recall=right[i] / images[i] if images[i] else None,
            )
            for i, name in enumerate(self.classes)
        ]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Images by true class, in rows, and predicted class, in columns: as many cells as classes squared."""
        counts = np.zeros((len(self.classes), len(self.classes)), np.int64)
        np.add.at(counts, (self.true, self.predicted), 1)
        return counts

    @property
    def mistakes(self) -> list[Mistake]:
        """Every kind of mistake that was made, the most frequent first."""
        wrong = self.true != self.predicted
        cells, images = np.unique(self.true[wrong] * len(self.classes) + self.predicted[wrong], return_counts=True)
        true, predicted = np.divmod(cells, len(self.classes))
        mistakes = list(map(Mistake, true.tolist(), predicted.tolist(), images.tolist()))
        return sorted(mistakes, key=lambda mistake: -mistake.images)

    def among(self, numbers: Sequence[int]) -> "Confusion":
        """The confusions of some of the classes with one another."""
        places = {number: place for place, number in enumerate(numbers)}
        kept = np.isin(self.true, numbers) & np.isin(self.predicted, numbers)
        true = [places[number] for number in self.true[kept].tolist()]
        predicted = [places[number] for number in self.predicted[kept].tolist()]
        names = tuple(self.classes[number] for number in numbers)
        return Confusion(names, np.array(true, np.int64), np.array(predicted, np.int64))


def class_numbers(labels: Sequence[str], classes: Sequence[str], where: str) -> NDArray[np.int64]:
    """The place of each label among the classes that a model knows, however accents are written.

    >>> class_numbers(["bee", "ant"], ["ant", "bee"], "photos").tolist()
    [1, 0]

    Raises:
        Refused: a label that the model does not know; the message begins with `where` the images are.
    """
    numbers = {unicodedata.normalize("NFC", name): number for number, name in enumerate(classes)}
    composed = [unicodedata.normalize("NFC", label) for label in labels]  # a Mac takes accents apart
    for label in sorted(set(composed)):
        if label not in numbers:
            raise Refused(f"{where}: the model knows no class {label!r}; {nearest(label, classes)}")
    return np.array([numbers[label] for label in composed], np.int64)


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
    """Confidence against accuracy, by those bins of confidence that have images."""

    confidence: tuple[float, ...]
    """The mean in each bin, 0..1."""
    accuracy: tuple[float, ...]
    images: tuple[int, ...]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of confidence and accuracy, weighted by images."""
        bins = zip(self.confidence, self.accuracy, self.images, strict=True)
        return sum(abs(confidence - accuracy) * images for confidence, accuracy, images in bins) / sum(self.images)


def calibration(predictions: Predictions) -> Calibration:
    """How far the probability of the predicted class can be relied on, in ten equal bins of it."""
    confidence = predictions.probabilities.max(1).astype(np.float64)
    right = predictions.predicted == predictions.labels

    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    members = [bins == i for i in range(_BINS) if (bins == i).any()]
    return Calibration(
        confidence=tuple(float(confidence[bin].mean()) for bin in members),
        accuracy=tuple(float(right[bin].mean()) for bin in members),
        images=tuple(int(bin.sum()) for bin in members),
    )
