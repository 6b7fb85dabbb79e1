"""Where the network is cut: from a freeze depth k in one of five units to what exactly is frozen."""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.config import Config
from finetune.errors import Refused
from finetune.network.backbone import Backbone, backbone_shapes
from finetune.network.catalog import with_input
from finetune.network.depths import boundaries, depth_of


@dataclass(frozen=True)
class Cut:
    """Where one network is cut, and what that freezes: found once a trial and handed on.

    Names are those of the backbone's parameters and buffers, as weight files have them.
    """

    freeze_depth: int | float
    """k as a number, in its own unit."""
    modules: int
    """Modules before the cut: whole units, and with everything frozen the pooling too. They form the prefix."""
    frozen: frozenset[str]
    """Parameters that get no gradient."""
    frozen_part: frozenset[str]
    """All that the first k units hold, parameters and BatchNorm statistics; it always starts pretrained."""
    pinned: frozenset[str]
    """Modules that stay in eval mode: frozen BatchNorms, and dropout of frozen units."""
    prefix: frozenset[str]
    """All that the modules before the cut hold, parameters and BatchNorm statistics."""


def find_cut(
    backbone: Backbone,
    freeze_depth: int | float | str,
    unit: str,
    frozen_bn: str = "eval",
    train_units: Sequence[int] | None = None,
) -> Cut:
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
        train_units: A window `[a, b)` that alone trains, instead of all after the first `freeze_depth` units: surgical
            fine-tuning (Lee et al. 2023, arXiv:2210.11466). The cut lies before it; what lies behind it is frozen, too.

    Raises:
        Refused: the depth, or the window, is out of range.
    """
    if train_units is not None:
        freeze_depth = train_units[0]
        _refuse_outside(backbone, unit, train_units)
    # 1. What is frozen: the first tensors, with the statistics of BatchNorms and the tables that belong to them
    depth, tensors = depth_of(backbone, freeze_depth, unit)
    parameters = backbone.parameter_names
    end = len(parameters) if train_units is None else boundaries(backbone, unit)[train_units[1]]
    frozen = {*parameters[:tensors], *parameters[end:]}
    norms = _frozen_norms(backbone, frozen)

    blocks = boundaries(backbone, "block")
    units = bisect.bisect_right(blocks, tensors) - 1
    whole_units = list(backbone.units.values())[:units]
    behind = list(backbone.units.values())[bisect.bisect_left(blocks, end) :]
    frozen_part = frozenset(frozen | _buffers(backbone, norms) | backbone.state_names([*whole_units, *behind]))

    # 2. Frozen BatchNorms that follow the data: whole units are no pure functions then, but drop nothing
    if frozen_bn != "eval" and norms:
        if frozen_bn == "train":
            frozen -= {f"{name}.{affine}" for name in norms for affine in ("weight", "bias")}
        dropping = _dropping(backbone, [*whole_units, *behind])
        return Cut(depth, 0, frozenset(frozen), frozen_part, dropping, frozenset())

    # 3. Whole frozen units are the prefix; with all of them goes the pooling, for features are small
    modules = units + (units == len(backbone.units))
    prefix = frozenset(backbone.state_names(whole_units))
    pinned = norms | _dropping(backbone, behind)
    return Cut(depth, modules, frozenset(frozen), frozen_part, pinned, prefix)


def _refuse_outside(backbone: Backbone, unit: str, window: Sequence[int]) -> None:
    deepest = len(boundaries(backbone, unit)) - 1
    if not 0 <= window[0] < window[1] <= deepest:
        raise Refused(
            f"model.train_units={list(window)} is out of range for {backbone.name} in {unit}s; give [a,b] with "
            f"0 <= a < b <= {deepest} (see `finetune depths {backbone.name} --unit {unit}`)"
        )


def cut_of(config: Config) -> Cut:
    """Where the network of `config` is cut, with batches that it can be trained on.

    Raises:
        Refused: the depth is out of range, or a BatchNorm would train on batches of one image.
    """
    config = with_input(config)
    model = config.model
    backbone = backbone_shapes(model.backbone, config.data.size)
    cut = find_cut(backbone, model.freeze_depth, model.freeze_unit, model.frozen_bn, model.train_units)

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


def _dropping(backbone: Backbone, units: Iterable[nn.Module]) -> frozenset[str]:
    """What drops at random while it trains, in these units: dropout, stochastic depth, attention that drops."""
    inside = {module for unit in units for module in unit.modules() if not isinstance(module, _BatchNorm)}
    return frozenset(
        name
        for name, module in backbone.model.named_modules()
        # what drops asks in its forward pass whether it trains, whatever its class is called
        if module in inside and "training" in type(module).forward.__code__.co_names
    )
