"""The parts of a cut network: the frozen prefix, the trained suffix, and how both lie in memory."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from finetune.network.backbone import Backbone, backbone_shapes
from finetune.network.device import Precision
from finetune.network.freeze import FreezePlan


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
