"""A trained network to use: from a checkpoint, or from an exported folder, which needs no pretrained weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from finetune.config import ModelConfig
from finetune.errors import Refused
from finetune.network.backbone import Backbone, build_backbone
from finetune.network.checkpoint import InputSpec, checksum, load_checkpoint, model_config
from finetune.network.head import build_head
from finetune.network.network import Network

_ABOUT = "finetune-model"
"""The metadata key that tells an exported file from a checkpoint."""


@dataclass(frozen=True)
class Classifier:
    """A network that is not trained any more, and what its input and output mean."""

    backbone: Backbone
    head: nn.Sequential
    """Features to logits, N x classes."""
    model: ModelConfig
    classes: tuple[str, ...]
    """In the order of the logits."""
    preprocessing: InputSpec
    refit: bool = False
    """Whether it was trained on the validation images too, as far as the file says: a checkpoint's record knows."""

    @property
    def network(self) -> Network:
        """Normalised images, N x 3 x size x size, to logits, in eval mode."""
        return Network(nn.Identity(), nn.Sequential(*self.backbone.modules), self.head).eval()

    def state(self) -> dict[str, Tensor]:
        """Every tensor by its library's name; the head stands where torchvision, or timm, has its classifier.

        For a ResNet that is `fc.weight` and `fc.bias` when the head is linear, and `fc.0.weight`, `fc.2.weight` …, by
        place in the head, when it has hidden layers.
        """
        head = {f"{self.backbone.classifier}.{name}": value for name, value in self.head_state().items()}
        return {name: value.contiguous() for name, value in (self.backbone.model.state_dict() | head).items()}

    def head_state(self) -> dict[str, Tensor]:
        """The head's tensors; a linear head's are `weight` and `bias`, with or without dropout before it."""
        state = self.head.state_dict()
        return {name.partition(".")[2] if len(state) == 2 else name: value for name, value in state.items()}


def load_classifier(path: Path) -> Classifier:
    """The network of a checkpoint (`best.safetensors`) or of an exported `model.safetensors`.

    Raises:
        Refused: the file is neither, or a checkpoint's pretrained weights are not there or not the same.
    """
    about = _metadata(path)
    try:
        return _exported(path, about) if _ABOUT in about else _trained(path, about)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Refused(f"{path} is damaged or of another version ({error}); train or export it again") from error


def _trained(path: Path, about: dict[str, str]) -> Classifier:
    """The network of a checkpoint, with the pretrained weights that it stands on."""
    network, classes = load_checkpoint(path)
    model = model_config(json.loads(about["model"]))

    preprocessing = InputSpec.parse(about["preprocessing"])
    backbone = build_backbone(model.backbone, preprocessing.size)
    trained = [*network.prefix.children(), *network.suffix.children()]
    for module, source in zip(backbone.modules, trained, strict=True):
        module.load_state_dict(source.state_dict())

    head = cast(nn.Sequential, network.head)
    return Classifier(backbone, head, model, classes, preprocessing)


def _exported(path: Path, about: dict[str, str]) -> Classifier:
    """The network of an exported file, which has all of its tensors."""
    known = json.loads(about[_ABOUT])
    model, classes = model_config(known["model"]), tuple(known["classes"])
    state = safetensors.torch.load_file(path)
    checksum_noted = about.pop("checksum", None)
    if checksum_noted != checksum(state, about):
        raise ValueError("its checksum differs")

    preprocessing = InputSpec.parse(about["preprocessing"])
    backbone = build_backbone(model.backbone, preprocessing.size)
    settings = model.head
    head = build_head(backbone.width, settings.hidden, len(classes), settings.dropout, settings.activation)
    classifier = Classifier(backbone, head, model, classes, preprocessing, bool(known.get("refit")))
    _fill(classifier, state)
    return classifier


def exported_bytes(classifier: Classifier) -> bytes:
    """All tensors in their library's layout, as a safetensors file that `load_classifier` reads."""
    known = {"model": asdict(classifier.model), "classes": classifier.classes, "refit": classifier.refit}
    about = {_ABOUT: json.dumps(known), "preprocessing": classifier.preprocessing.text, "format": "pt"}
    state = classifier.state()
    return safetensors.torch.save(state, metadata={**about, "checksum": checksum(state, about)})


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise Refused(f"{path} cannot be read ({error}); give a best.safetensors or an exported folder") from error
    if "preprocessing" not in about:
        raise Refused(f"{path} is not a model of finetune; give a best.safetensors, or a folder that was exported")
    return cast(dict[str, str], about)


def _fill(classifier: Classifier, state: dict[str, Tensor]) -> None:
    own = classifier.state()  # shares its memory with the network's
    if own.keys() != state.keys():
        raise ValueError(f"{sorted(own.keys() ^ state.keys())[0]} is missing or unknown")
    for name, value in own.items():
        value.copy_(state[name])
