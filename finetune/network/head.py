"""The new layers after the backbone."""

import itertools
from collections.abc import Sequence

from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def build_head(
    width: int, hidden: Sequence[int], num_classes: int, dropout: float = 0.0, activation: str = "relu"
) -> nn.Sequential:
    """Features, N x width, to logits, N x num_classes, through dense layers of the `hidden` widths.

    Every dense layer but the last is followed by the activation; each is preceded by dropout where it is above 0.
    `hidden=[]` is a linear head.
    """
    widths = [width, *hidden, num_classes]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        if layers:
            layers.append(ACTIVATIONS[activation]())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)
