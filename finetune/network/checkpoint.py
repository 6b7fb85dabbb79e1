"""A trained network on disk: what was trained, plus what names the frozen weights it stands on."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.config import ModelConfig
from finetune.errors import Refused
from finetune.network.network import build_network
from finetune.network.weights import Weights
from finetune.storage.durable import write_durably
from finetune.trial.module import FineTune


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
