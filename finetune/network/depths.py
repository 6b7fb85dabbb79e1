"""What a freeze depth counts in a network: the range of k in each unit, and the table of what each k freezes."""

import bisect
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from finetune.config import FREEZE_UNITS, freeze_depth_number
from finetune.errors import Refused
from finetune.network.backbone import Backbone


def boundaries(backbone: Backbone, unit: str) -> list[int]:
    """How many parameter tensors each k freezes: entry k of the list, for k = 0..maximum.

    Tensors are counted in the order of `Backbone.parameter_names`. A layer is a weight of two or more dimensions with
    the vectors that follow it, its norm's among them. Shares are of the blocks, so theirs are the blocks' boundaries.
    """
    names = backbone.parameter_names
    if unit == "tensor":
        return list(range(len(names) + 1))
    if unit == "layer":
        return [0, *_layer_starts(backbone)[1:], len(names)]

    sizes = {name: len(backbone.unit_parameters[name]) for name in backbone.units}
    if unit == "stage":
        stages = itertools.groupby(sizes.items(), key=lambda item: stage_of(item[0]))
        return list(itertools.accumulate((sum(n for _, n in group) for _, group in stages), initial=0))
    return list(itertools.accumulate(sizes.values(), initial=0))


def stage_of(unit: str) -> str:
    """The stage that a unit belongs to: its path up to the first number.

    >>> stage_of("layer3.2"), stage_of("stages.2.blocks.0"), stage_of("features.5.1"), stage_of("stem")
    ('layer3', 'stages.2', 'features.5', 'stem')
    """
    numbered = re.match(r"(?:[^.\d]*\.)*[^.\d]*\d[^.]*", unit)
    return numbered[0] if numbered else unit


def _layer_starts(backbone: Backbone) -> list[int]:
    return [i for i, name in enumerate(backbone.parameter_names) if backbone.model.get_parameter(name).ndim >= 2]


def depth_of(backbone: Backbone, freeze_depth: int | float | str, unit: str) -> tuple[int | float, int]:
    """`freeze_depth` as a number, `all` being the maximum, and how many parameter tensors that freezes.

    A share is rounded to the nearest cut.

    Raises:
        Refused: it is outside the range, or no whole number where that is meant; the message gives the range.
    """
    edges = boundaries(backbone, unit)
    deepest = 1 if unit == "share" else len(edges) - 1
    depth = freeze_depth_number(freeze_depth, deepest)
    if not 0 <= depth <= deepest:
        what = "shares of the blocks" if unit == "share" else f"{unit}s"
        raise Refused(
            f"model.freeze_depth={freeze_depth} is out of range for {backbone.name} in {what}; "
            f"give 0..{deepest}, or all (see `finetune depths {backbone.name} --unit {unit}`)"
        )
    if unit == "share":
        return depth, edges[round(depth * (len(edges) - 1))]
    return int(depth), edges[int(depth)]


@dataclass(frozen=True)
class DepthRow:
    """What freezing `k` units of a backbone means."""

    k: int | float
    name: str
    """The last thing frozen: a unit's, stage's or parameter's name."""
    parameters: int
    """Parameters frozen."""
    parameter_share: float
    """Of the backbone's parameters, 0..1."""
    flop_share: float
    """Of the backbone's forward FLOPs, spent before the shared cut, 0..1."""
    shape: tuple[int, ...]
    """Activations at the shared cut for one image: C x H x W, or features when all is frozen."""
    same: Mapping[str, str]
    """The k that freezes the same tensors, by unit; `3+` where that lies between 3 and 4."""


def depth_table(backbone: Backbone, unit: str, size: int) -> list[DepthRow]:
    """One row per k of `unit`, for images of `size` x `size`; nothing is computed but shapes."""
    sizes = [backbone.model.get_parameter(name).numel() for name in backbone.parameter_names]
    flops, shapes = _trace(backbone, size)
    edges = {other: boundaries(backbone, other) for other in FREEZE_UNITS}

    rows = []
    for k, (tensors, name) in enumerate(zip(edges[unit], _names(backbone, unit), strict=True)):
        units = bisect.bisect_right(edges["block"], tensors) - 1
        rows.append(
            DepthRow(
                k=round(k / (len(edges[unit]) - 1), 3) if unit == "share" else k,
                name=name,
                parameters=sum(sizes[:tensors]),
                parameter_share=sum(sizes[:tensors]) / sum(sizes),
                flop_share=sum(flops[:units]) / sum(flops),
                shape=shapes[units],
                same={other: _equivalent(edges[other], tensors) for other in FREEZE_UNITS if other != "share"},
            )
        )
    return rows


def depth_row(backbone: Backbone, freeze_depth: int | float, unit: str, size: int) -> DepthRow:
    """The row of a freeze depth as `depth_of` gives it."""
    table = depth_table(backbone, unit, size)
    return table[round(freeze_depth * (len(table) - 1)) if unit == "share" else int(freeze_depth)]


def forward_flops(backbone: Backbone, size: int) -> int:
    """FLOPs of the forward pass of one image of `size` x `size` through all units."""
    return sum(_trace(backbone, size)[0])


def _names(backbone: Backbone, unit: str) -> list[str]:
    """What is frozen last at each k."""
    tensors = backbone.parameter_names
    if unit == "tensor":
        names = tensors
    elif unit == "layer":
        names = [tensors[start].removesuffix(".weight") for start in _layer_starts(backbone)]
    elif unit == "stage":
        names = [stage for stage, _ in itertools.groupby(backbone.units, key=stage_of)]
    else:
        names = list(backbone.units)
    return ["(nothing)", *names]


def _equivalent(edges: list[int], tensors: int) -> str:
    k = bisect.bisect_right(edges, tensors) - 1
    return str(k) if edges[k] == tensors else f"{k}+"


def _trace(backbone: Backbone, size: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """Forward FLOPs per unit, and the shape at each cut, by running the units on the meta device."""
    x = torch.empty(1, 3, size, size, device="meta")
    flops, shapes = [], [tuple(x.shape[1:])]
    for module in backbone.units.values():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            x = module.to("meta").eval()(x)
        flops.append(counter.get_total_flops())
        shapes.append(tuple(x.shape[1:]))

    shapes[-1] = (backbone.width,)  # with everything frozen the pooling belongs to the prefix
    return flops, shapes
