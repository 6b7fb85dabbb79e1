"""The parts of a cut network: the frozen prefix, the trained suffix, and how both lie in memory."""

import contextlib
import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from finetune.network.backbone import Backbone, backbone_shapes
from finetune.network.device import Precision
from finetune.network.freeze import Cut


class FrozenPrefix(nn.Sequential):
    """The frozen units: a pure function, in eval mode for good, without gradient."""

    def train(self, mode: bool = True) -> "FrozenPrefix":
        """Stay in eval mode whatever is asked."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images, N x 3 x H x W, to activations at the cut, N x C x H x W, or to features, N x width."""
        with torch.no_grad():
            return torch.as_tensor(super().forward(x))


class SharedPrefix(FrozenPrefix):
    """The frozen units as they run: BatchNorm folded into the convolutions, arranged in memory for speed.

    On a CPU the images go through in chunks of one size, the last one filled up, because there the last bits of an
    image's activations depend on how many images are computed together; so they depend on the image alone.
    """

    CHUNK = 16
    """Images in a chunk. Larger ones are no faster on a CPU, and need more memory in each thread."""

    @classmethod
    def of(
        cls, prefix: FrozenPrefix, first_contiguous: int | None = None, dtype: torch.dtype = torch.float32
    ) -> "SharedPrefix":
        """A folded copy of `prefix`, arranged as `arrange_in_memory` does; in 32-bit it agrees to about 1e-6.

        The weights of its convolutions are rounded to a `dtype` of 16 bits here, once. Autocast would round them in
        each pass, for it remembers only those with a gradient; what comes out is the same to the bit.
        """
        folded = cls(*map(_folded, prefix)).requires_grad_(False)
        for module in folded.modules():
            if type(module) is nn.Conv2d:  # others may compute with their weights
                module.to(dtype)
        arrange_in_memory(folded, first_contiguous)
        folded.train()
        return folded

    def forward(self, x: Tensor) -> Tensor:
        """Activations at the cut."""
        return self.activations(x, [len(self)])[0]

    def activations(self, x: Tensor, cuts: Sequence[int]) -> list[Tensor]:
        """Activations of images at several `cuts`, each a number of modules, ascending, in one pass."""
        with torch.no_grad():
            if x.device.type != "cpu":
                return self._run(x, cuts)

            chunks = [self._run(_filled(chunk, self.CHUNK), cuts) for chunk in x.split(self.CHUNK)]
            return [torch.cat(parts)[: len(x)] for parts in zip(*chunks, strict=True)]

    def _run(self, x: Tensor, cuts: Sequence[int]) -> list[Tensor]:
        activations = [x] if 0 in cuts else []
        for modules, module in enumerate(itertools.islice(self, cuts[-1]), start=1):
            x = module(x)
            if modules in cuts:
                activations.append(x)
        return activations


def _folded(unit: nn.Module) -> nn.Module:
    """A copy of a frozen unit, its BatchNorms folded into the convolutions before them where it can be traced."""
    if any(isinstance(module, nn.BatchNorm2d) for module in unit.modules()):
        with contextlib.suppress(Exception):  # whatever the unit's own code makes of a trace
            folded: nn.Module = fuse(unit)
            return folded
    return copy.deepcopy(unit)


def _filled(x: Tensor, count: int) -> Tensor:
    """`x` with images of zeros behind its own, `count` in all."""
    if len(x) == count:
        return x

    full = x.new_zeros(count, *x.shape[1:])
    if x.ndim == 4:
        full = full.contiguous(memory_format=torch.channels_last)
    full[: len(x)] = x
    return full


class Suffix(nn.Sequential):
    """The trained units; frozen modules among them, given as `pinned`, stay in eval mode."""

    def __init__(self, *parts: nn.Module, pinned: frozenset[nn.Module] = frozenset()):
        super().__init__(*parts)
        self.pinned = pinned
        self.train()

    def train(self, mode: bool = True) -> "Suffix":
        """Set the mode of all but the pinned modules."""
        super().train(mode)
        for module in self.pinned:
            module.training = False
        return self


def split_at(backbone: Backbone, cut: Cut) -> tuple[FrozenPrefix, Suffix]:
    """A backbone in two parts, before and after its cut; the prefix is frozen for good.

    Both parts share the backbone's modules; nothing is copied. In eval mode `suffix(prefix(x))` equals the network
    without its classifier. With everything frozen the pooling belongs to the prefix, which then gives features.

    Accuracy need not fall smoothly with depth: cutting between co-adapted layers can hurt by itself (Yosinski et
    al. 2014, arXiv:1411.1792).
    """
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_(name not in cut.frozen)

    pinned = frozenset(backbone.model.get_submodule(name) for name in cut.pinned)
    before, after = backbone.modules[: cut.modules], backbone.modules[cut.modules :]
    return FrozenPrefix(*before).train(), Suffix(*after, pinned=pinned)


_MANY_WEIGHTS = 1_000_000
_WEIGHTS_PER_VALUE = 128
"""Where contiguous memory begins to pay, read off timings of single blocks (docs/log.md, "The layout of deep units")"""


def first_contiguous(name: str, size: int, precision: Precision) -> int | None:
    """The unit of the backbone `name` from which on contiguous memory is faster, at `size` x `size` pixels.

    Channels last is faster in 16 bits, and where activations outnumber weights. A GPU computes 32-bit convolutions in
    contiguous memory, and would bring all into that order first. On a CPU 32-bit convolutions bring weights
    that lie so into another order in every pass, which takes longest where weights are many and maps small: from the
    first unit on that has over a million weights, and 128 times as many as values that it gives for an image.

    Returns:
        Its number, from 0; None where channels last is faster throughout.
    """
    if precision.has_16_bits:
        return None
    if precision.device.type != "cpu":
        return 0
    if not torch.backends.mkldnn.is_available():
        return None

    heavy = list[bool]()
    x = torch.empty(1, 3, size, size, device="meta")
    with torch.no_grad():
        for unit in backbone_shapes(name, size).units.values():
            x = unit.eval()(x)
            weights = sum(parameter.numel() for parameter in unit.parameters())
            heavy.append(weights >= max(_MANY_WEIGHTS, _WEIGHTS_PER_VALUE * x.numel()))

    heavy_at_the_end = sum(1 for _ in itertools.takewhile(bool, reversed(heavy)))
    return len(heavy) - heavy_at_the_end if heavy_at_the_end else None


def arrange_in_memory(parts: nn.Sequential, first_contiguous: int | None = None) -> None:
    """Put the weights of `parts` into channels last, those of `first_contiguous` and all that follow into contiguous.

    Args:
        parts: Units in forward order.
        first_contiguous: A position in `parts`; 0 or less makes all contiguous, None makes none.
    """
    for i, part in enumerate(parts):
        contiguous = first_contiguous is not None and i >= first_contiguous
        part.to(memory_format=torch.contiguous_format if contiguous else torch.channels_last)

        if contiguous and i in (0, first_contiguous):
            part.register_forward_pre_hook(_make_contiguous)


def _make_contiguous(part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # a copy even of 1 x 1 pixels, which count as both: PyTorch chooses its kernel by their strides
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in inputs)
