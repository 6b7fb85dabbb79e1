"""Where the network is cut: from a freeze depth k in one of four units to what exactly is frozen."""

import bisect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from finetune.config import FREEZE_UNITS, ModelConfig
from finetune.errors import Refused
from finetune.network.backbone import Backbone, backbone_shapes
from finetune.network.weights import Weights


@dataclass(frozen=True)
class FreezePlan:
    """What a freeze depth means for one backbone."""

    depth: int
    """k as a number, in its own unit."""
    cut: int
    """Whole units before the cut: they form the prefix."""
    frozen: frozenset[str]
    """Names of the parameters that get no gradient."""
    part: frozenset[str]
    """Names of all that the first k units hold, parameters and BatchNorm statistics; it always starts pretrained."""
    pinned: frozenset[str]
    """Names of the BatchNorms that stay in eval mode."""


def boundaries(backbone: Backbone, unit: str) -> list[int]:
    """How many parameter tensors each k freezes: entry k of the list, for k = 0..maximum.

    Tensors are counted in `parameters()` order without the classifier. A layer is a weight of two or more
    dimensions with the vectors that follow it, its BatchNorm's among them.
    """
    tensors = list(backbone.model.parameters())
    if unit == "tensor":
        return list(range(len(tensors) + 1))
    if unit == "layer":
        return [0, *_layer_starts(backbone)[1:], len(tensors)]
    sizes = {name: len(list(module.parameters())) for name, module in backbone.units.items()}
    if unit == "stage":
        stages = itertools.groupby(sizes.items(), key=lambda item: item[0].partition(".")[0])
        return list(itertools.accumulate((sum(n for _, n in group) for _, group in stages), initial=0))
    return list(itertools.accumulate(sizes.values(), initial=0))


def _layer_starts(backbone: Backbone) -> list[int]:
    return [i for i, tensor in enumerate(backbone.model.parameters()) if tensor.ndim >= 2]


def depth_of(backbone: Backbone, freeze_depth: int | str, unit: str) -> int:
    """`freeze_depth` as a number in 0..maximum; `all` is the maximum.

    Raises:
        Refused: it is outside the range, which the message gives.
    """
    deepest = len(boundaries(backbone, unit)) - 1
    depth = deepest if freeze_depth == "all" else int(freeze_depth)
    if not 0 <= depth <= deepest:
        raise Refused(
            f"model.freeze_depth={freeze_depth} is out of range for {backbone.name} in {unit}s; "
            f"give 0..{deepest}, or all (see `finetune depths {backbone.name} --unit {unit}`)"
        )
    return depth


def plan_freeze(backbone: Backbone, freeze_depth: int | str, unit: str, frozen_bn: str = "eval") -> FreezePlan:
    """What `freeze_depth` in `unit` freezes.

    Args:
        backbone: The network.
        freeze_depth: 0 freezes nothing; the maximum, or `all`, everything but the head.
        unit: One of `config.FREEZE_UNITS`.
        frozen_bn: `eval` fixes a frozen BatchNorm. `stats` lets its statistics follow the data and `train` its
            affine part too; then nothing before it is a pure function, and the cut moves to the input.

    Raises:
        Refused: the depth is out of range.
    """
    depth = depth_of(backbone, freeze_depth, unit)
    count = boundaries(backbone, unit)[depth]
    names = [name for name, _ in backbone.model.named_parameters()]
    frozen = set(names[:count])
    norms = {name: m for name, m in backbone.model.named_modules() if isinstance(m, _BatchNorm)}
    within = {name for name in norms if {f"{name}.weight", f"{name}.bias"} <= frozen}
    part = frozenset(frozen | {f"{name}.{buffer}" for name in within for buffer, _ in norms[name].named_buffers()})
    if frozen_bn == "eval":
        cut = bisect.bisect_right(boundaries(backbone, "block"), count) - 1
        return FreezePlan(depth, cut, frozenset(frozen), part, frozenset(within))
    if frozen_bn == "train":
        frozen -= {f"{name}.{part}" for name in within for part in ("weight", "bias")}
    return FreezePlan(depth, 0, frozenset(frozen), part, frozenset())


@dataclass(frozen=True)
class DepthRow:
    """What freezing `k` units of a backbone means."""

    k: int
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
    """By unit, the k that freezes the same tensors; `3+` where that lies between 3 and 4."""


def depth_table(backbone: Backbone, unit: str, size: int) -> list[DepthRow]:
    """One row per k of `unit`, for images of `size` x `size`; nothing is computed but shapes."""
    sizes = [tensor.numel() for tensor in backbone.model.parameters()]
    flops, shapes = _trace(backbone, size)
    edges = {other: boundaries(backbone, other) for other in FREEZE_UNITS}
    rows = []
    for k, (count, name) in enumerate(zip(edges[unit], _names(backbone, unit), strict=True)):
        cut = bisect.bisect_right(edges["block"], count) - 1
        rows.append(
            DepthRow(
                k=k,
                name=name,
                parameters=sum(sizes[:count]),
                parameter_share=sum(sizes[:count]) / sum(sizes),
                flop_share=sum(flops[:cut]) / sum(flops),
                shape=shapes[cut],
                same={other: _equivalent(edges[other], count) for other in FREEZE_UNITS},
            )
        )
    return rows


def _names(backbone: Backbone, unit: str) -> list[str]:
    """What is frozen last at each k."""
    tensors = [name for name, _ in backbone.model.named_parameters()]
    if unit == "tensor":
        named = tensors
    elif unit == "layer":
        named = [tensors[start].removesuffix(".weight") for start in _layer_starts(backbone)]
    elif unit == "stage":
        named = list(dict.fromkeys(name.partition(".")[0] for name in backbone.units))
    else:
        named = list(backbone.units)
    return ["(nothing)", *named]


def _equivalent(edges: list[int], count: int) -> str:
    at = bisect.bisect_right(edges, count) - 1
    return str(at) if edges[at] == count else f"{at}+"


def _trace(backbone: Backbone, size: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """Forward FLOPs per unit, and the shape at each cut, by running the units on the meta device."""
    x = torch.empty(1, 3, size, size, device="meta")
    flops, shapes = [], [tuple(x.shape[1:])]
    for module in backbone.units.values():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            x = module.to("meta").eval()(x)
        flops.append(counter.get_total_flops())
        shapes.append(tuple(x.shape[1:]))
    shapes[-1] = (backbone.width,)
    return flops, shapes


@dataclass(frozen=True)
class Cut:
    """What a freeze depth means for a backbone and its weights."""

    plan: FreezePlan
    modules: int
    """Before the cut; with everything frozen the pooling is one of them."""
    frozen_digest: str
    """Of the frozen part's values; `none` at freeze depth 0."""
    prefix_digest: str
    """Of the values before the cut; `none` where it lies at the input."""


def find_cut(model: ModelConfig, weights: Weights) -> Cut:
    """Where the network of a composed config is cut; nothing is computed but names.

    Raises:
        Refused: a freeze depth out of range.
    """
    backbone = backbone_shapes(model.backbone)
    plan = plan_freeze(backbone, model.freeze_depth, model.freeze_unit, model.frozen_bn)
    modules = plan.cut + (plan.cut == len(backbone.units))
    return Cut(plan, modules, weights.digest_of(plan.part), weights.digest_of(_before(backbone, plan.cut)))


def _before(backbone: Backbone, cut: int) -> frozenset[str]:
    """Names of all that the first `cut` units hold."""
    return plan_freeze(backbone, cut, "block").part
