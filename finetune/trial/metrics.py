"""What a trial measures on its validation images, besides loss and accuracy: on the device where the logits are."""

import warnings

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_auroc, multiclass_f1_score


def measure(metric: str, logits: Tensor, labels: Tensor) -> float:
    """A metric of predictions, 0..1, as scikit-learn defines it (tests/trial/test_metrics.py).

    >>> measure("val/balanced_acc", torch.tensor([[2.0, 1], [2, 1], [2, 1], [1, 2]]), torch.tensor([0, 0, 1, 1]))
    0.75

    Args:
        metric: `val/balanced_acc`, the mean recall of the classes that have images; `val/f1`, the mean F1 score of the
            classes that have images or predictions; or `val/auroc`, the mean over the classes that have images of the
            area under the ROC curve of each against the rest.
        logits: N x classes, float32.
        labels: N.
    """
    classes = logits.shape[1]
    has_images = torch.bincount(labels, minlength=classes) > 0
    if metric == "val/f1":
        return float(multiclass_f1_score(logits, labels, classes, average="macro", validate_args=False))

    if metric == "val/auroc":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes without images, which are left out
            areas = multiclass_auroc(logits.softmax(1), labels, classes, average=None, validate_args=False)
        assert areas is not None
        return float(areas[has_images].mean())

    assert metric == "val/balanced_acc", metric
    right = torch.bincount(labels[logits.argmax(1) == labels], minlength=classes)
    images = torch.bincount(labels, minlength=classes)
    return float((right[has_images] / images[has_images]).mean())
