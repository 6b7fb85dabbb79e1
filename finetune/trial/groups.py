"""Which learning rate and which weight decay each parameter gets."""

from collections import defaultdict
from typing import Any

from torch import nn

from finetune.config import OptimConfig
from finetune.network.network import Network


def parameter_groups(network: Network, optim: OptimConfig) -> list[dict[str, Any]]:
    """All that trains, as groups for an optimizer of PyTorch; `lr_scale` is the factor on `optim.lr`.

    The head has `optim.head_lr`. The unit before it has `layer_decay`, the one before that its square, and so on to
    the cut (Clark et al. 2020, arXiv:2003.10555; with `head_lr=1` as timm's `param_groups_layer_decay`). Without
    `decay_norms`, vectors have no weight decay: biases, and the scales and offsets of normalisation.

    >>> from finetune.network.head import build_head
    >>> network = Network(nn.Identity(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), build_head(4, [], 2))
    >>> groups = parameter_groups(network, OptimConfig(lr=0.1, head_lr=10, layer_decay=0.5))
    >>> [(group["lr_scale"], group["lr"], len(group["params"])) for group in groups]
    [(0.25, 0.025, 2), (0.5, 0.05, 2), (10, 1.0, 2)]
    """
    units = trained_units(network)
    scaled = [(unit, optim.layer_decay**i) for unit, i in zip(units, range(len(units), 0, -1), strict=True)]

    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for module, scale in [*scaled, (network.head, optim.head_lr)]:
        for parameter in module.parameters():
            if parameter.requires_grad:
                decays = optim.decay_norms or parameter.ndim > 1
                groups[scale, optim.weight_decay if decays else 0.0].append(parameter)
    return [
        {"params": parameters, "lr": optim.lr * scale, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def trained_units(network: Network) -> list[nn.Module]:
    """What trains before the head, in forward order: units of the backbone, without what has no parameters."""
    parts = list(network.suffix.children()) or [network.suffix]
    return [part for part in parts if any(parameter.requires_grad for parameter in part.parameters())]


def rates(network: Network, optim: OptimConfig) -> dict[str, float]:
    """What is logged beside `lr`, as factors on it: `lr/head`, and `lr/first` of the first unit after the cut."""
    factors = {"lr/head": optim.head_lr, "lr/first": optim.layer_decay ** len(trained_units(network))}
    return {name: factor for name, factor in factors.items() if factor != 1}
