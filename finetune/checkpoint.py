"""A trained network on disk: what was trained, plus what names the frozen weights it stands on."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from finetune.backbone import Weights, build_backbone, load_state, read_weights, state_digest
from finetune.config import ModelConfig
from finetune.durable import write_durably
from finetune.errors import Refused
from finetune.freeze import FreezePlan, FrozenPrefix, Suffix, plan_freeze, split_at
from finetune.head import build_head
from finetune.module import FineTune


@dataclass(frozen=True)
class Preprocessing:
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
    def parse(cls, text: str) -> "Preprocessing":
        """What `text` was made from.

        Raises:
            ValueError, TypeError: it is not such a text.
        """
        raw = json.loads(text)
        return cls(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})


@dataclass(frozen=True)
class Network:
    """A backbone cut at its freeze depth, with a new head."""

    prefix: FrozenPrefix
    suffix: Suffix
    head: nn.Sequential
    plan: FreezePlan
    weights: Weights
    frozen_digest: str
    """Of the frozen part's values; `none` at freeze depth 0."""


def build_network(model: ModelConfig, num_classes: int) -> Network:
    """Build, load and cut the network of a composed config; what is random comes from torch's global generator.

    Raises:
        Refused: weights that are missing or do not fit, or a freeze depth out of range.
    """
    backbone = build_backbone(model.backbone)
    plan = plan_freeze(backbone, model.freeze_depth, model.freeze_unit, model.frozen_bn)
    weights = read_weights(backbone, model.weights)
    load_state(backbone, weights.state, only=plan.part if model.rest == "scratch" else None)
    prefix, suffix = split_at(backbone, plan)
    head = build_head(backbone.width, model.head.hidden, num_classes, model.head.dropout, model.head.activation)
    frozen = {name: value for name, value in backbone.model.state_dict().items() if name in plan.part}
    return Network(prefix, suffix, head, plan, weights, state_digest(frozen) if frozen else "none")


def save_checkpoint(
    path: Path,
    state: dict[str, Tensor],
    model: ModelConfig,
    classes: tuple[str, ...],
    frozen_digest: str,
    preprocessing: Preprocessing,
) -> None:
    """Write `state`, with what is needed to rebuild the network around it and to feed it, as one safetensors file."""
    about = {"model": json.dumps(asdict(model)), "classes": json.dumps(classes), "frozen": frozen_digest}
    write_durably(path, safetensors.torch.save(state, metadata={**about, "preprocessing": preprocessing.text}))


def load_checkpoint(path: Path) -> tuple[FineTune, Weights, tuple[str, ...]]:
    """The trained network in eval mode, the weights it stands on and its class names in label order.

    The frozen part is read from the pretrained weights again and must be the very one the checkpoint was trained on.

    Raises:
        Refused: the file is not a checkpoint of ours, or the frozen weights differ.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        raw, classes = json.loads(about["model"]), tuple(json.loads(about["classes"]))
        model = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), raw))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"{path} is not a checkpoint of finetune ({error}); give a best.safetensors file") from error
    assert isinstance(model, ModelConfig)
    network = build_network(model, len(classes))
    if network.frozen_digest != about["frozen"]:
        raise Refused(
            f"{path} was trained on frozen weights {about['frozen'][:12]}, but model.weights={model.weights} gives "
            f"{network.frozen_digest[:12]}; restore the weights it was trained on"
        )
    module = FineTune.of_parts(network.prefix, network.suffix, network.head, len(classes))
    module.load_trained_state(state)
    return module.eval(), network.weights, classes
