"""One network: a backbone that is cut at its freeze depth, with a new head."""

import torch
from torch import Tensor, nn

from finetune.config import ModelConfig
from finetune.network.backbone import build_backbone
from finetune.network.freeze import Cut
from finetune.network.head import build_head
from finetune.network.parts import Suffix, split_at
from finetune.network.weights import Weights, load_state, read_weights


class Network(nn.Module):
    """prefix (frozen) → suffix (trained) → head (trained)."""

    def __init__(self, prefix: nn.Module, suffix: nn.Module, head: nn.Module):
        super().__init__()
        self.prefix, self.suffix, self.head = prefix, suffix, head

    def train(self, mode: bool = True) -> "Network":
        """Set the mode. On the way to evaluation too, layers forget tables that they keep of their parameters.

        Those of timm's LeViT, among others, forget them when they are told to train, and Lightning tells nobody after
        a validation: it sets the flags itself.
        """
        super().train(True)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, N x 3 x H x W, to logits, N x classes."""
        return self.after_cut(self.prefix(x))

    def after_cut(self, activations: Tensor) -> Tensor:
        """What the prefix gives, computed now or stored before, to logits, N x classes."""
        return torch.as_tensor(self.head(self.suffix(activations)))

    def trained_state(self) -> dict[str, Tensor]:
        """A copy, on the CPU, of what training changes: parameters with a gradient and BatchNorm statistics in use."""
        own = self._trained_tensors()
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in own.items()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `trained_state` returned.

        Raises:
            ValueError: the entries are not those of this network at this freeze depth.
        """
        own = self._trained_tensors()
        if own.keys() != state.keys():
            first = sorted(own.keys() ^ state.keys())[0]
            raise ValueError(f"the checkpoint is of another network or freeze depth: {first}")

        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def _trained_tensors(self) -> dict[str, Tensor]:
        """The network's own tensors, not copies, by name."""
        tensors: dict[str, Tensor] = {}
        pinned = self.suffix.pinned if isinstance(self.suffix, Suffix) else frozenset[nn.Module]()

        for part_name, part in (("suffix", self.suffix), ("head", self.head)):
            for module_name, module in part.named_modules(prefix=part_name):
                for name, parameter in module.named_parameters(recurse=False):
                    if parameter.requires_grad:
                        tensors[f"{module_name}.{name}"] = parameter

                if module not in pinned:  # whose statistics stay as they are
                    tensors |= {f"{module_name}.{name}": b for name, b in module.named_buffers(recurse=False)}

        return tensors


def build_network(
    model: ModelConfig,
    weights: Weights,
    cut: Cut,
    classes: int,
    seed: int = 0,
    with_prefix: bool = True,
    size: int | None = None,
) -> Network:
    """Build, load and cut the network of a composed config.

    Args:
        model: Its settings.
        weights: What it starts from, checked and hashed; values that it lacks are read here.
        cut: Where it is cut.
        classes: Logits of the head.
        seed: Of torch's global generator, set anew before the random layers and again before the head.
        with_prefix: Load the frozen units too; without, they have shapes but no values, and cannot run.
        size: Height and width of its images, pixels; None is what the network has by itself.

    Raises:
        Refused: weights that are no longer there, or cannot be read.
    """
    pretrained = model.rest == "pretrained" and model.weights != "none"
    torch.manual_seed(seed)
    backbone = build_backbone(model.backbone, size, empty=pretrained)

    state = weights.state
    if not state:
        needed = None if with_prefix else {*backbone.model.state_dict()} - cut.prefix
        state = read_weights(backbone, model.weights, weights.digests, needed).state
    load_state(backbone, state, only=None if pretrained else cut.frozen_part)
    prefix, suffix = split_at(backbone, cut)

    torch.manual_seed(seed)  # whether the layers before it were drawn or read, the head is the same
    head = build_head(backbone.width, model.head.hidden, classes, model.head.dropout, model.head.activation)
    return Network(prefix, suffix, head)
