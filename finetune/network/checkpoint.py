"""A trained network on disk: what was trained, plus what names the frozen weights it stands on."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.config import ModelConfig
from finetune.errors import Refused
from finetune.network.backbone import backbone_shapes
from finetune.network.freeze import find_cut
from finetune.network.network import Network, build_network
from finetune.network.weights import read_weights
from finetune.storage.durable import write_durably


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
    levels: Mapping[str, Any] | None = None
    """Which values become black and white where files have more than 8 bits, as `data.levels.Levels`; None without."""

    @property
    def text(self) -> str:
        """As JSON, for a file's metadata; levels are left out where there are none, as the first release does."""
        values = asdict(self)
        if self.levels is None:
            del values["levels"]
        return json.dumps(values)

    @classmethod
    def parse(cls, text: str) -> "InputSpec":
        """What `text` was made from.

        Raises:
            ValueError, TypeError: it is not such a text.
        """
        raw = json.loads(text)
        return cls(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})


def save_checkpoint(
    path: Path,
    state: dict[str, Tensor],
    model: ModelConfig,
    classes: tuple[str, ...],
    frozen_digest: str,
    preprocessing: InputSpec,
) -> None:
    """Write `state`, with what is needed to rebuild the network around it and to feed it, as one safetensors file."""
    about = {
        "model": json.dumps(asdict(model)),
        "classes": json.dumps(classes),
        "frozen": frozen_digest,
        "preprocessing": preprocessing.text,
    }
    write_durably(path, safetensors.torch.save(state, metadata={**about, "checksum": checksum(state, about)}))


def checksum(state: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """CRC-32 of a file's tensors, with their names, and of what else it says."""
    crc = zlib.crc32(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous().reshape(-1)
        crc = zlib.crc32(f"{name} {value.dtype}".encode(), crc)
        crc = zlib.crc32(value.view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def load_checkpoint(path: Path) -> tuple[Network, tuple[str, ...]]:
    """The trained network in eval mode, and its class names in label order.

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
        classes = tuple(json.loads(about["classes"]))
        model = model_config(json.loads(about["model"]))
        size = InputSpec.parse(about["preprocessing"]).size
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"{path} is not a checkpoint of finetune ({error}); give a best.safetensors file") from error

    backbone = backbone_shapes(model.backbone, size)
    weights = read_weights(backbone, model.weights)
    cut = find_cut(backbone, model.freeze_depth, model.freeze_unit, model.frozen_bn, model.train_units)
    frozen_digest = weights.digest_of(cut.frozen_part)
    if frozen_digest != about["frozen"]:
        raise Refused(
            f"{path} was trained on frozen weights {about['frozen'][:12]}, but model.weights={model.weights} gives "
            f"{frozen_digest[:12]}; restore the weights it was trained on"
        )

    network = build_network(model, weights, cut, len(classes), size=size)
    network.load_trained_state(state)
    return network.eval(), classes


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The settings of a network as a file has them, nested, in the schema's types.

    Raises:
        ValueError: a setting is unknown or of the wrong type.
    """
    merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), settings)
    return cast(ModelConfig, OmegaConf.to_object(merged))
