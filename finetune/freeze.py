"""Where the network is cut: from a freeze depth k in one of four units to what exactly is frozen."""

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from finetune.backbone import Backbone
from finetune.config import FREEZE_UNITS
from finetune.errors import Refused
from finetune.layout import lay_out


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


class FrozenPrefix(nn.Sequential):
    """The frozen units: a pure function, in eval mode for good, without gradient."""

    def train(self, mode: bool = True) -> "FrozenPrefix":
        """Stay in eval mode whatever is asked."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Activations at the cut."""
        with torch.no_grad():
            return torch.as_tensor(super().forward(x))


class SharedPrefix(FrozenPrefix):
    """The frozen units as they run: BatchNorm folded into the convolutions, laid out for speed.

    On a CPU the images go through in chunks of one size, the last one filled up, because there the last bits of an
    image's activations depend on how many images are computed together; so they depend on the image alone.
    """

    CHUNK = 16

    @classmethod
    def of(cls, prefix: FrozenPrefix, before: int | None = None) -> "SharedPrefix":
        """A folded copy of `prefix`, laid out as `lay_out` does; in fp32 it agrees to about 1e-6."""
        made = cls(*(fuse(unit) for unit in prefix)).requires_grad_(False)
        lay_out(made, before)
        made.train()
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Activations at the cut."""
        return self.taps(x, [len(self)])[0]

    def taps(self, x: Tensor, at: Sequence[int], start: int = 0) -> list[Tensor]:
        """Activations after the modules `at`, counted from 1 and ascending, of images or of activations at `start`."""
        with torch.no_grad():
            if x.device.type != "cpu":
                return self._run(x, at, start)
            chunks = [self._run(_filled(chunk, self.CHUNK), at, start) for chunk in x.split(self.CHUNK)]
            return [torch.cat(parts)[: len(x)] for parts in zip(*chunks, strict=True)]

    def _run(self, x: Tensor, at: Sequence[int], start: int) -> list[Tensor]:
        found = [x] if start in at else []
        for i, module in enumerate(itertools.islice(self, start, at[-1]), start=start + 1):
            x = module(x)
            if i in at:
                found.append(x)
        return found


def _filled(x: Tensor, count: int) -> Tensor:
    if len(x) == count:
        return x
    full = x.new_zeros(count, *x.shape[1:])
    if x.ndim == 4:
        full = full.contiguous(memory_format=torch.channels_last)
    full[: len(x)] = x
    return full


class Suffix(nn.Sequential):
    """The trained units; BatchNorms of a partly frozen block, given as `pinned`, stay in eval mode."""

    def __init__(self, *parts: nn.Module, pinned: frozenset[nn.Module] = frozenset()):
        super().__init__(*parts)
        self.pinned = pinned
        self.train()

    def train(self, mode: bool = True) -> "Suffix":
        """Set the mode of all but the pinned BatchNorms."""
        super().train(mode)
        for module in self.pinned:
            module.eval()
        return self


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


def split_at(backbone: Backbone, plan: FreezePlan) -> tuple[FrozenPrefix, Suffix]:
    """Cut a backbone after its first `plan.cut` units; the prefix is frozen for good.

    Both parts share the backbone's modules; nothing is copied. In eval mode `suffix(prefix(x))` equals the network
    without its classifier. With everything frozen the pooling belongs to the prefix, which then gives features.

    Accuracy need not fall smoothly with depth: cutting between co-adapted layers can hurt by itself (Yosinski et
    al. 2014, arXiv:1411.1792).
    """
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_(name not in plan.frozen)
    parts = [*backbone.units.values(), backbone.pool]
    cut = plan.cut + (plan.cut == len(backbone.units))
    modules = dict(backbone.model.named_modules())
    pinned = frozenset(modules[name] for name in plan.pinned)
    return FrozenPrefix(*parts[:cut]).train(), Suffix(*parts[cut:], pinned=pinned)


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
