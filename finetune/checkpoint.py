"""A trained network on disk: what was trained, plus what names the frozen weights it stands on."""

import contextlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from finetune.backbone import Backbone, Weights, backbone_shapes, build_backbone, load_state, read_weights
from finetune.config import ModelConfig
from finetune.durable import write_durably
from finetune.errors import Refused
from finetune.freeze import FreezePlan, FrozenPrefix, Suffix, plan_freeze, split_at
from finetune.head import build_head
from finetune.module import FineTune


@dataclass(frozen=True)
class InputSpec:
    """How an image of any size becomes the network's input: resized, divided by 255, then normalised."""

    size: int
    """Height and width, pixels."""
    resize: str
    """`squash`, `crop` or `pad`, as in `data.resize`."""
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, for pixels in 0..1."""

    @property
    def text(self) -> str:
        """As JSON, for a file's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "InputSpec":
        """What `text` was made from.

        Raises:
            ValueError, TypeError: it is not such a text.
        """
        raw = json.loads(text)
        return cls(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})


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


@dataclass(frozen=True)
class Network:
    """A backbone cut at its freeze depth, with a new head."""

    prefix: FrozenPrefix
    suffix: Suffix
    head: nn.Sequential
    cut: Cut
    weights: Weights


def find_cut(model: ModelConfig, weights: Weights) -> Cut:
    """Where the network of a composed config is cut; nothing is computed but names.

    Raises:
        Refused: a freeze depth out of range.
    """
    backbone = backbone_shapes(model.backbone)
    plan = plan_freeze(backbone, model.freeze_depth, model.freeze_unit, model.frozen_bn)
    modules = plan.cut + (plan.cut == len(backbone.units))
    return Cut(plan, modules, weights.digest_of(plan.part), weights.digest_of(_before(backbone, plan.cut)))


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


def _before(backbone: Backbone, cut: int) -> frozenset[str]:
    """Names of all that the first `cut` units hold."""
    return plan_freeze(backbone, cut, "block").part


def save_checkpoint(
    path: Path,
    state: dict[str, Tensor],
    model: ModelConfig,
    classes: tuple[str, ...],
    frozen_digest: str,
    preprocessing: InputSpec,
) -> None:
    """Write `state`, with what is needed to rebuild the network around it and to feed it, as one safetensors file."""
    about = {"model": json.dumps(asdict(model)), "classes": json.dumps(classes), "frozen": frozen_digest}
    about |= {"preprocessing": preprocessing.text}
    write_durably(path, safetensors.torch.save(state, metadata={**about, "checksum": checksum(state, about)}))


def checksum(state: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """CRC-32 of a file's tensors, with their names, and of what else it says."""
    found = zlib.crc32(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous().reshape(-1)
        found = zlib.crc32(value.view(torch.uint8).numpy().data, zlib.crc32(f"{name} {value.dtype}".encode(), found))
    return f"{found:08x}"


def load_checkpoint(path: Path) -> tuple[FineTune, Weights, tuple[str, ...]]:
    """The trained network in eval mode, the weights it stands on and its class names in label order.

    The frozen part is read from the pretrained weights again and must be the very one the checkpoint was trained on.

    Raises:
        Refused: the file is not a checkpoint of ours, or the frozen weights differ.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.pop("checksum") != checksum(state, about):
            raise ValueError("its checksum differs: the file was damaged")
        raw, classes = json.loads(about["model"]), tuple(json.loads(about["classes"]))
        model = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), raw))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"{path} is not a checkpoint of finetune ({error}); give a best.safetensors file") from error
    assert isinstance(model, ModelConfig)
    network = build_network(model, len(classes))
    if network.cut.frozen_digest != about["frozen"]:
        raise Refused(
            f"{path} was trained on frozen weights {about['frozen'][:12]}, but model.weights={model.weights} gives "
            f"{network.cut.frozen_digest[:12]}; restore the weights it was trained on"
        )
    module = FineTune.of_parts(network.prefix, network.suffix, network.head)
    module.load_trained_state(state)
    return module.eval(), network.weights, classes
