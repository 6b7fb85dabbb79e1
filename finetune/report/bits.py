"""What trials came to, image by image, as the judge wants it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from finetune.records.correct import effective_images, unpack, unpack_labels
from finetune.records.ranking import Objective, fold_of
from finetune.records.result import Result
from finetune.report.variance import Bits

BALANCED = ("val/balanced_acc_best", "val/balanced_acc")
"""The mean recall of the classes: a mean over validation images in which each counts as one of so many of its class."""
PER_IMAGE = ("val/acc_best", "val/acc", *BALANCED)
"""Metrics that are a mean over validation images; of another, only seeds can be judged."""
RACED = (*PER_IMAGE, "val/f1_best", "val/f1", "val/auroc_best", "val/auroc")
"""Metrics of 0..1, whose error a share's error stands for well enough to stop a trial that is far behind."""


@dataclass(frozen=True)
class Columns:
    """Which column of the bits is which validation image."""

    of_fold: Mapping[int | None, slice]
    """By fold; None where there are none, and every trial was judged on the same images."""
    images: int
    """Of all folds, also of those that no trial was judged on."""

    @property
    def judged(self) -> int:
        """Images that trials were judged on."""
        return sum(columns.stop - columns.start for columns in self.of_fold.values())

    def row(self, trial: Result, right: Bits) -> Bits:
        """Whether each image was right, or what it adds to the metric; NaN for those that did not judge the trial."""
        if None in self.of_fold:
            return right

        row = np.full(self.images, np.nan)
        row[self.of_fold[fold_of(trial)]] = right
        return row


def columns_of(groups: Iterable[Sequence[Result]], objective: Objective) -> Columns | None:
    """Where the images of these trials are, those of a configuration together.

    None where they cannot be compared image by image: where records do not tell, as those of older versions; the
    images are not the same; or two configurations have no fold in common.
    """
    groups = [list(group) for group in groups if group]
    trials = [trial for group in groups for trial in group]
    images = {(fold_of(r), r.digests.get("split"), r.val_images, r.val_labels) for r in trials}
    splits = {(trial.config.get("data.folds"), trial.config.get("data.split_seed")) for trial in trials}
    pixels = {(*resizing_of(trial), trial.digests.get("dataset")) for trial in trials}
    same_pixels = len(pixels) == len({pixel[:2] for pixel in pixels})  # of each size that was swept
    folds = {fold_of(trial) for trial in trials}
    if objective.metric not in PER_IMAGE or len(images) != len(folds) or len(splits) != 1 or not same_pixels:
        return None
    if not set.intersection(*({fold_of(trial) for trial in group} for group in groups)):
        return None
    try:
        if any(len(values_by_epoch(trial, objective)) == 0 for trial in trials):
            return None
    except ValueError:
        return None

    count = {fold: count for fold, _, count, _ in images}
    of_fold, start = dict[int | None, slice](), 0
    for fold in sorted(count, key=lambda fold: -1 if fold is None else fold):
        of_fold[fold] = slice(start, start + count[fold])
        start += count[fold]
    (number, _), *_ = splits
    unseen = round(start / len(count)) * (int(number) - len(count)) if number else 0
    return Columns(of_fold, start + unseen)


def resizing_of(trial: Result) -> tuple[str, str]:
    """Size and interpolation of a trial's images: what two networks may take the same images in."""
    names = ("size", "interpolation")
    size, interpolation = (str(trial.input.get(name, trial.config.get(f"data.{name}"))) for name in names)
    return size, interpolation


def epochs_of(trial: Result) -> NDArray[np.bool_]:
    """Epochs x images: whether each was right.

    Raises:
        ValueError: the record was damaged.
    """
    return unpack(trial.correct, trial.val_images)


def images_behind(trial: Result) -> int:
    """How many validation images a trial's metric counts as, for its error."""
    return effective_images(unpack_labels(trial.val_labels)) if trial.val_labels else trial.val_images


def values_by_epoch(trial: Result, objective: Objective) -> Bits:
    """Epochs x images: what each adds to the metric, whose value is the mean over images.

    Whether it was right; for balanced accuracy, N / (classes x images of its class) where it was.

    Raises:
        ValueError: the record was damaged, or lacks the classes.
    """
    if objective.metric not in BALANCED:
        return epochs_of(trial)
    labels = unpack_labels(trial.val_labels)
    if len(labels) != trial.val_images:
        raise ValueError(f"{len(labels)} classes are not those of {trial.val_images} images")
    counts = np.bincount(labels)
    return np.asarray(epochs_of(trial) * (len(labels) / (np.count_nonzero(counts) * counts[labels])), np.float64)


def values_of(trials: Sequence[Result], objective: Objective, columns: Columns | None) -> Bits:
    """Seeds x images, in the epoch that the metric is of, or seeds x 1: the scores.

    Args:
        trials: Those of one configuration.
        objective: What the sweep optimises.
        columns: Of these and all that they are compared with, as `columns_of` gives them.
    """
    if columns is None:
        return np.array([[objective.score_of(trial)] for trial in trials])

    rows = []
    for trial in trials:
        epochs = values_by_epoch(trial, objective)
        best = int(epochs.mean(1).argmax()) if objective.metric.endswith("_best") else -1
        rows.append(columns.row(trial, epochs[best]))
    return cast(Bits, np.stack(rows))
