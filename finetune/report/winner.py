"""What the predictions of one trial say: confusions, precision and recall, calibration, its surest mistakes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.predictions import Predictions

BINS = 10


@dataclass(frozen=True)
class ClassFigures:
    """Of one class; shares are 0..1, None where nothing was to divide by."""

    name: str
    images: int
    precision: float | None
    """Of the images called this class, those that are."""
    recall: float | None
    """Of this class's images, those called so."""


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Images by true class (rows) and predicted class."""
    classes = predictions.probabilities.shape[1]
    flat = predictions.labels * classes + predictions.predicted
    return np.bincount(flat, minlength=classes**2).reshape(classes, classes)


def per_class(predictions: Predictions, names: list[str]) -> list[ClassFigures]:
    """Precision and recall of each class, in label order."""
    counts = confusion(predictions)
    right, called, images = counts.diagonal(), counts.sum(0), counts.sum(1)
    return [
        ClassFigures(
            name,
            int(images[i]),
            float(right[i] / called[i]) if called[i] else None,
            float(right[i] / images[i]) if images[i] else None,
        )
        for i, name in enumerate(names)
    ]


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
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    held = [bins == i for i in range(BINS) if (bins == i).any()]
    return Calibration(
        tuple(float(sure[these].mean()) for these in held),
        tuple(float(right[these].mean()) for these in held),
        tuple(int(these.sum()) for these in held),
    )
