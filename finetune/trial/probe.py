"""A head that is fitted to the features of the pretrained network before anything else trains: linear probing."""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ITERATIONS = 500
"""Of L-BFGS, at the most; a linear head is done in a few dozen."""


@dataclass(frozen=True)
class Probe:
    """What fitting the head came to."""

    seconds: float
    """Without the time that features took."""
    val_acc: float
    """Top-1 accuracy on the validation images, of the head on the pretrained network, 0..1."""


def fit_head(
    head: nn.Module,
    features: dict[str, Tensor],
    labels: dict[str, Tensor],
    class_weights: list[float] | None = None,
    label_smoothing: float = 0.0,
) -> Probe:
    """Fit `head` in place, so that training begins with what the network knows already.

    Head first and then the rest (LP-FT) distorts pretrained features less than a random head does, whose first
    gradients are large and say nothing (Kumar et al. 2022, arXiv:2202.10054).

    The sum of cross-entropies plus half the squared weights is minimised by L-BFGS over all images at once, in 64 bits
    and without dropout. For a linear head that is scikit-learn's `LogisticRegression()`, its C=1 included, and has one
    solution; deeper heads start from the values that they have, and end in some minimum.

    Args:
        head: From features, N x width, to logits, N x classes.
        features: Of `train` and `val`.
        labels: Class numbers of these, N each.
        class_weights: How much the images of each class count.
        label_smoothing: As for training.
    """
    started = time.perf_counter()
    was_training = head.training
    head.eval().double()
    x, y = features["train"].double(), labels["train"]
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    penalized = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=_ITERATIONS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(x), y, weights, reduction="sum", label_smoothing=label_smoothing)
        loss = (loss + 0.5 * sum(parameter.square().sum() for parameter in penalized)) / len(y)
        loss.backward()
        return loss

    optimizer.step(closure)
    head.requires_grad_(True).zero_grad(set_to_none=True)
    with torch.no_grad():
        right = head(features["val"].double()).argmax(1) == labels["val"]
    head.float().train(was_training)
    return Probe(round(time.perf_counter() - started, 3), round(float(right.double().mean()), 7))
