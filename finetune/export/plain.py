"""An export in the network of its own library: the code there that its weights load into."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

from finetune.config import TIMM
from finetune.errors import Refused
from finetune.export.classifier import Classifier
from finetune.network.catalog import timm_package, torchvision_names
from finetune.network.create import on_meta, options_of

_LOAD = 'network.load_state_dict(load_file("model.safetensors"))'
_LOAD_VERSION = """state = network.state_dict()  # has a version that this network asks for
state.update(load_file("model.safetensors"))
network.load_state_dict(state)"""
_APART = """state = load_file("model.safetensors")
head = {head}
own = [name for name in state if name.startswith("{prefix}")]
head.load_state_dict({{name.removeprefix("{prefix}"): state.pop(name) for name in own}})
features = {builder}
features.load_state_dict(state)
network = torch.nn.Sequential(features, head)"""


def library_of(name: str) -> str:
    """Whose network it is: `torchvision`, `timm`, or empty for this package's and a user's own."""
    if name.startswith(TIMM):
        return "timm"
    return "torchvision" if name in torchvision_names() else ""


def plain_code(classifier: Classifier) -> str:
    """Lines that make `network`, images to logits, of an export's `model.safetensors` with its library alone.

    They need `torch`, the library and `load_file` of `safetensors.torch`. Empty where no library has the network.
    """
    name, size = classifier.model.backbone, classifier.preprocessing.size
    library = library_of(name)
    if not library:
        return ""

    layers = [f"torch.nn.{layer!r}" for layer in classifier.head]
    linear = [layer for layer in layers if "Linear" in layer]
    head = linear[0] if len(linear) == 1 else f"torch.nn.Sequential({', '.join(layers)})"
    place = classifier.backbone.classifier
    load = _LOAD_VERSION if isinstance(classifier.backbone.model, torchvision.models.MNASNet) else _LOAD

    # 1. The library builds the very network, where the head is one linear layer and nothing else lies beside it
    classes = len(classifier.classes)
    if len(linear) == 1 and _takes(classifier, lambda: _built(name, size, num_classes=classes)):
        return f"network = {_builder(name, size, num_classes=classes)}\n{load}"

    # 2. The head stands where the library has its classifier
    bare = {"num_classes": 0} if library == "timm" else {}
    if _takes_head(classifier, on_meta(lambda: _built(name, size, **bare))):
        return f"network = {_builder(name, size, **bare)}\nnetwork{_attribute(place)} = {head}\n{load}"

    # 3. It has no such place: the head is a network of its own
    return _APART.format(head=head, prefix=f"{place}.", builder=_builder(name, size, **bare))


def _takes(classifier: Classifier, build: Callable[[], nn.Module]) -> bool:
    """Whether a network has the tensors of an export, by name and shape, and no others."""
    try:
        own = on_meta(build).state_dict()
    except (Refused, TypeError, ValueError, RuntimeError):  # it has no classifier of so many classes
        return False
    return {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in classifier.state().items()}


def _takes_head(classifier: Classifier, network: nn.Module) -> bool:
    """Whether a network, on the meta device, gives logits once the head stands in its classifier's place.

    It may have no such place, or have a convolution there, and flatten its features after it.
    """
    parent, _, child = classifier.backbone.classifier.rpartition(".")
    if not any(path == classifier.backbone.classifier for path, _ in network.named_modules()):
        return False

    setattr(network.get_submodule(parent), child, copy.deepcopy(classifier.head).to("meta"))
    size = classifier.preprocessing.size
    try:
        logits = network.eval()(torch.empty(2, 3, size, size, device="meta"))
    except RuntimeError:
        return False
    return bool(logits.shape == (2, len(classifier.classes)))


def _built(name: str, size: int, **more: Any) -> nn.Module:
    options = {**options_of(name, size), **more}
    network: nn.Module
    if name.startswith(TIMM):
        network = timm_package(name).create_model(name.removeprefix(TIMM), pretrained=False, **options)
    else:
        network = torchvision.models.get_model(name, weights=None, **options)
    return network


def _builder(name: str, size: int, **more: Any) -> str:
    """`_built` as code."""
    arguments = [f"{key}={value!r}" for key, value in {**more, **options_of(name, size)}.items()]
    if name.startswith(TIMM):
        quoted = f'"{name.removeprefix(TIMM)}"'
        return f"timm.create_model({', '.join([quoted, *arguments])})"
    return f"torchvision.models.{name}({', '.join(arguments)})"


def _attribute(path: str) -> str:
    """`classifier.2` as code: `.classifier[2]`."""
    return "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in path.split("."))
