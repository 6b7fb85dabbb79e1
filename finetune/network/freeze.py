"""Where the network is cut: from a freeze depth k in one of four units to what exactly is frozen."""

import bisect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from finetune.config import FREEZE_UNITS, Config, freeze_depth_number
from finetune.errors import Refused
from finetune.network.backbone import Backbone, backbone_shapes


@dataclass(frozen=True)
class Cut:
    """Where one network is cut, and what that freezes: found once a trial and handed on.

    Names are those of the backbone's parameters and buffers, as weight files have them.
    """

    freeze_depth: int
    """k as a number, in its own unit."""
    modules: int
    """Modules before the cut: whole units, and with everything frozen the pooling too. They form the prefix."""
    frozen: frozenset[str]
    """Parameters that get no gradient."""
    frozen_part: frozenset[str]
    """All that the first k units hold, parameters and BatchNorm statistics; it always starts pretrained."""
    pinned: frozenset[str]
    """BatchNorms that stay in eval mode."""
    prefix: frozenset[str]
    """All that the modules before the cut hold, parameters and BatchNorm statistics."""


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
    depth = freeze_depth_number(freeze_depth, deepest)
    if not 0 <= depth <= deepest:
        raise Refused(
            f"model.freeze_depth={freeze_depth} is out of range for {backbone.name} in {unit}s; "
            f"give 0..{deepest}, or all (see `finetune depths {backbone.name} --unit {unit}`)"
        )
    return int(depth)


def find_cut(backbone: Backbone, freeze_depth: int | str, unit: str, frozen_bn: str = "eval") -> Cut:
    """Where `freeze_depth` in `unit` cuts a backbone; nothing is computed but names.

    >>> from finetune.network.backbone import build_backbone
    >>> find_cut(build_backbone("resnet50"), 14, "block").modules
    14

    Args:
        backbone: The network; shapes will do.
        freeze_depth: 0 freezes nothing; the maximum, or `all`, everything but the head.
        unit: One of `config.FREEZE_UNITS`.
        frozen_bn: `eval` fixes a frozen BatchNorm. `stats` lets its statistics follow the data and `train` its
            affine part too; then nothing before it is a pure function, and the cut moves to the input.

    Raises:
        Refused: the depth is out of range.
    """
    depth = depth_of(backbone, freeze_depth, unit)
    tensors = boundaries(backbone, unit)[depth]
    parameters = [name for name, _ in backbone.model.named_parameters()]
    frozen = set(parameters[:tensors])
    norms = _frozen_norms(backbone, frozen)
    frozen_part = frozenset(frozen | _buffers(backbone, norms))

    if frozen_bn == "train":
        frozen -= {f"{name}.{affine}" for name in norms for affine in ("weight", "bias")}
    if frozen_bn != "eval":
        return Cut(depth, 0, frozenset(frozen), frozen_part, frozenset(), frozenset())

    blocks = boundaries(backbone, "block")
    units = bisect.bisect_right(blocks, tensors) - 1
    modules = units + (units == len(backbone.units))  # features, which are small, are kept rather than maps
    before = set(parameters[: blocks[units]])
    prefix = before | _buffers(backbone, _frozen_norms(backbone, before))
    return Cut(depth, modules, frozenset(frozen), frozen_part, norms, frozenset(prefix))


def cut_of(config: Config) -> Cut:
    """Where the network of `config` is cut, with batches that it can be trained on.

    Raises:
        Refused: the depth is out of range, or a BatchNorm would train on batches of one image.
    """
    model = config.model
    backbone = backbone_shapes(model.backbone)
    cut = find_cut(backbone, model.freeze_depth, model.freeze_unit, model.frozen_bn)

    training = [name for name in _norms(backbone) if name not in cut.pinned]
    if config.data.batch_size == 1 and training:
        raise Refused(
            f"data.batch_size=1 with model.freeze_depth={model.freeze_depth}: {training[0]} and other BatchNorms would "
            "take their statistics from a single image; set data.batch_size=2 or more, or model.freeze_depth=all with "
            "model.frozen_bn=eval"
        )
    return cut


def _norms(backbone: Backbone) -> list[str]:
    """The BatchNorms, in order."""
    return [name for name, module in backbone.model.named_modules() if isinstance(module, _BatchNorm)]


def _frozen_norms(backbone: Backbone, frozen: set[str]) -> frozenset[str]:
    """The BatchNorms whose weight and bias are both among `frozen`."""
    return frozenset(name for name in _norms(backbone) if {f"{name}.weight", f"{name}.bias"} <= frozen)


def _buffers(backbone: Backbone, modules: frozenset[str]) -> set[str]:
    named = {name: backbone.model.get_submodule(name) for name in modules}
    return {f"{name}.{buffer}" for name, module in named.items() for buffer, _ in module.named_buffers()}


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
    """The k that freezes the same tensors, by unit; `3+` where that lies between 3 and 4."""


def depth_table(backbone: Backbone, unit: str, size: int) -> list[DepthRow]:
    """One row per k of `unit`, for images of `size` x `size`; nothing is computed but shapes."""
    sizes = [tensor.numel() for tensor in backbone.model.parameters()]
    flops, shapes = _trace(backbone, size)
    edges = {other: boundaries(backbone, other) for other in FREEZE_UNITS}

    rows = []
    for k, (tensors, name) in enumerate(zip(edges[unit], _names(backbone, unit), strict=True)):
        units = bisect.bisect_right(edges["block"], tensors) - 1
        rows.append(
            DepthRow(
                k=k,
                name=name,
                parameters=sum(sizes[:tensors]),
                parameter_share=sum(sizes[:tensors]) / sum(sizes),
                flop_share=sum(flops[:units]) / sum(flops),
                shape=shapes[units],
                same={other: _equivalent(edges[other], tensors) for other in FREEZE_UNITS},
            )
        )
    return rows


def _names(backbone: Backbone, unit: str) -> list[str]:
    """What is frozen last at each k."""
    tensors = [name for name, _ in backbone.model.named_parameters()]
    if unit == "tensor":
        names = tensors
    elif unit == "layer":
        names = [tensors[start].removesuffix(".weight") for start in _layer_starts(backbone)]
    elif unit == "stage":
        names = list(dict.fromkeys(name.partition(".")[0] for name in backbone.units))
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
