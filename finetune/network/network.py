"""A backbone cut at its freeze depth, with a new head."""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.config import ModelConfig
from finetune.network.backbone import build_backbone
from finetune.network.freeze import Cut, _before, find_cut, plan_freeze
from finetune.network.head import build_head
from finetune.network.parts import FrozenPrefix, Suffix, split_at
from finetune.network.weights import Weights, load_state, read_weights


def trained_entries(network: nn.Module) -> dict[str, Tensor]:
    """Parameters with a gradient, and buffers of modules in training use, of `suffix` and `head`, by name.

    The tensors are the network's own, not copies.
    """
    entries: dict[str, Tensor] = {}
    for part in ("suffix", "head"):
        whole = network.get_submodule(part)
        pinned = whole.pinned if isinstance(whole, Suffix) else frozenset()
        for prefix, module in whole.named_modules(prefix=part):
            entries |= {f"{prefix}.{n}": p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
            if module not in pinned:
                entries |= {f"{prefix}.{n}": b for n, b in module.named_buffers(recurse=False)}
    return entries


@dataclass(frozen=True)
class Network:
    """A backbone cut at its freeze depth, with a new head."""

    prefix: FrozenPrefix
    suffix: Suffix
    head: nn.Sequential
    cut: Cut
    weights: Weights


def build_network(
    model: ModelConfig, num_classes: int, seed: int = 0, known: Weights | None = None, with_prefix: bool = True
) -> Network:
    """Build, load and cut the network of a composed config.

    Args:
        model: Its settings.
        num_classes: Logits of the head.
        seed: Of torch's global generator, set anew before the random layers and again before the head.
        known: The same weights, checked and hashed by an earlier call.
        with_prefix: Load the frozen units too; without, they have shapes but no values, and cannot run.

    Raises:
        Refused: weights that are missing or do not fit, or a freeze depth out of range.
    """
    pretrained = model.rest == "pretrained" and model.weights != "none"
    torch.manual_seed(seed)
    with torch.device("meta") if pretrained else contextlib.nullcontext():
        backbone = build_backbone(model.backbone)
    plan = plan_freeze(backbone, model.freeze_depth, model.freeze_unit, model.frozen_bn)
    needed = None if with_prefix else backbone.model.state_dict().keys() - _before(backbone, plan.cut)
    weights = read_weights(backbone, model.weights, None if known is None else known.digests, needed)
    load_state(backbone, weights.state, only=None if pretrained else plan.part)
    prefix, suffix = split_at(backbone, plan)
    torch.manual_seed(seed)
    head = build_head(backbone.width, model.head.hidden, num_classes, model.head.dropout, model.head.activation)
    return Network(prefix, suffix, head, find_cut(model, weights), weights)
