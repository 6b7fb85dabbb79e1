"""What trials came to, image by image, as the judge wants it."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.records.correct import unpack
from finetune.records.ranking import Objective
from finetune.records.result import Result
from finetune.report.judge import Bits

PER_IMAGE = ("val/acc_best", "val/acc")
"""Metrics that are a mean over validation images; of another, only seeds can be judged."""


def are_comparable_by_image(trials: Iterable[Result], objective: Objective) -> bool:
    """Whether all of these trials tell which images they got right, and the images are the same.

    Records of older versions do not tell.
    """
    trials = list(trials)
    images = {(trial.digests.get("split"), trial.val_images) for trial in trials}
    pixels = {(trial.config.get("data.size"), trial.digests.get("dataset")) for trial in trials}
    same_pixels = len(pixels) == len({size for size, _ in pixels})  # of each size that was swept
    if objective.metric not in PER_IMAGE or len(images) != 1 or not same_pixels:
        return False
    try:
        return all(len(epochs_of(trial)) > 0 for trial in trials)
    except ValueError:
        return False


def epochs_of(trial: Result) -> NDArray[np.bool_]:
    """Epochs x images: whether each was right.

    Raises:
        ValueError: the record was damaged.
    """
    return unpack(trial.correct, trial.val_images)


def values_of(trials: Sequence[Result], objective: Objective, by_image: bool) -> Bits:
    """Seeds x images, in the epoch that the metric is of, or seeds x 1: the scores.

    Args:
        trials: Those of one configuration.
        objective: What the sweep optimises.
        by_image: Whether they `are_comparable_by_image`, together with all that they are compared with.
    """
    if not by_image:
        return np.array([[objective.score_of(trial)] for trial in trials])

    rows = []
    for trial in trials:
        epochs = epochs_of(trial)
        best = int(epochs.mean(1).argmax()) if objective.metric == "val/acc_best" else -1
        rows.append(epochs[best])
    return np.stack(rows)
