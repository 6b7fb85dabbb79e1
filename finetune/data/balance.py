"""How much the images of each class count in the loss."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.errors import Refused


def class_weights(
    setting: str | Sequence[float], labels: NDArray[np.int64], classes: Sequence[str]
) -> list[float] | None:
    """The weight of each class in the loss, in label order; None where all count alike.

    `balanced` weighs a class by N / (classes x its images), as scikit-learn's `class_weight="balanced"` does: the
    classes then count alike, however many images they have.

    >>> class_weights("balanced", np.array([0, 0, 0, 1]), ["ant", "bee"])
    [0.666..., 2.0]

    Args:
        setting: `data.class_weights`: `none`, `balanced`, or a number for each class.
        labels: Of the training images.
        classes: Names, in label order.

    Raises:
        Refused: there are more or fewer numbers than classes.
    """
    if setting == "none":
        return None
    if setting == "balanced":
        counts = np.bincount(labels, minlength=len(classes))
        return [float(weight) for weight in len(labels) / (len(classes) * counts)]

    weights = [float(weight) for weight in setting]
    if len(weights) != len(classes):
        names = ", ".join(classes[:8]) + (" …" if len(classes) > 8 else "")
        raise Refused(
            f"data.class_weights has {len(weights)} numbers, but there are {len(classes)} classes: {names}; give one "
            "for each, in this order"
        )
    return weights
