"""How a network's weights and activations lie in memory: channels last, but for deep units on a CPU."""

import itertools
from typing import Any

import torch
from torch import nn

from finetune.backbone import backbone_shapes
from finetune.precision import Precision

_WEIGHTS, _MORE = 1_000_000, 128


def contiguous_from(name: str, size: int, precision: Precision) -> int | None:
    """After how many units of the backbone `name` contiguous is faster, at `size` x `size` pixels; None for never.

    Channels last is faster where activations outnumber weights. On a CPU, however, 32-bit convolutions bring weights
    that lie so into another order in every pass, which takes longest where weights are many and maps small: from the
    first unit on that has over a million weights, and 128 times as many as values that it gives for an image
    (docs/log.md, "The layout of deep units").
    """
    if precision.device.type != "cpu" or precision.bf16 or not torch.backends.mkldnn.is_available():
        return None
    units, heavy = backbone_shapes(name).units, list[bool]()
    x = torch.empty(1, 3, size, size, device="meta")
    with torch.no_grad():
        for unit in units.values():
            x = unit.eval()(x)
            heavy.append(sum(p.numel() for p in unit.parameters()) >= max(_WEIGHTS, _MORE * x.numel()))
    light = len(heavy) - sum(1 for _ in itertools.takewhile(bool, reversed(heavy)))
    return light if light < len(heavy) else None


def lay_out(parts: nn.Sequential, before: int | None = None) -> None:
    """Put the weights of the first `before` parts, by default of all, into channels last; the others are contiguous."""
    for i, part in enumerate(parts):
        heavy = before is not None and i >= before
        part.to(memory_format=torch.contiguous_format if heavy else torch.channels_last)
        if heavy and i in (0, before):
            part.register_forward_pre_hook(_contiguous)


def _contiguous(part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # a copy even of 1 x 1 pixels, which count as both: PyTorch chooses by their strides
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in inputs)
