"""What is known of networks by their names: whose they are, which weights they have, and which images those want."""

import fnmatch
import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision

from finetune.config import TIMM, UNSET_WEIGHTS, Config
from finetune.errors import Refused, nearest
from finetune.network.own import IMAGE_SIZES, OWN, shapes_file
from finetune.plugin import registered

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def classifier_of(name: str) -> str:
    """Where a network that `create` builds without its classifier has it otherwise."""
    path = timm_settings(name).get("classifier") if name.startswith(TIMM) else None
    return path if isinstance(path, str) else next(iter(path or ()), "fc")


def timm_package(name: str) -> Any:
    """The package timm.

    Raises:
        Refused: it is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise Refused(f"model.backbone={name} needs timm, which is missing; pip install timm")

    import timm

    return timm


@functools.cache
def timm_settings(name: str) -> Mapping[str, Any]:
    """What timm knows of a network's pretrained weights: input size, mean, std and more.

    Raises:
        Refused: no weights have that tag; the message lists those there are.
    """
    timm_package(name)
    from timm.models import get_pretrained_cfg, list_pretrained

    bare = name.removeprefix(TIMM)
    try:
        settings = get_pretrained_cfg(bare, allow_unregistered=False)
    except RuntimeError as error:
        architecture = bare.partition(".")[0]
        tags = [known.partition(".")[2] for known in list_pretrained(f"{architecture}.*")]
        tags = [tag for tag in tags if tag]
        raise Refused(f"model.backbone={name}: {architecture} has no such weights; {nearest(bare, tags)}") from error
    return {} if settings is None else dict(settings.to_dict())


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """torchvision's classification networks."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def is_public(name: str) -> bool:
    """Whether a network is this package's, torchvision's or timm's, and so none that somebody registers."""
    return name in OWN or name.startswith(TIMM) or name in torchvision_names()


@dataclass(frozen=True)
class NetworkInput:
    """The images that weights were trained with."""

    size: int
    """Height and width, pixels."""
    interpolation: str
    """How they were resized, as in `data.interpolation`."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, for pixels in 0..1."""


def input_of(name: str, weights: str = UNSET_WEIGHTS) -> NetworkInput:
    """What a network's weights were trained with; for those of a file, what the network's first ones were.

    >>> input_of("inception_v3").size
    299
    """
    if name.startswith(TIMM):
        known = timm_settings(name)
        return NetworkInput(
            int(known.get("input_size", (3, 224, 224))[-1]),
            _interpolation(known.get("interpolation", "bicubic")),
            tuple(known.get("mean", IMAGENET_MEAN)),
            tuple(known.get("std", IMAGENET_STD)),
        )

    entries = weights_of(name)
    if not entries:
        return NetworkInput(IMAGE_SIZES.get(name, 224), "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    preset = entries.get(weights.rpartition(".")[2], next(iter(entries.values()))).transforms()
    return NetworkInput(
        int(preset.crop_size[0]), _interpolation(preset.interpolation.value), tuple(preset.mean), tuple(preset.std)
    )


def _interpolation(name: str) -> str:
    return name if name in ("nearest", "bilinear", "bicubic", "lanczos") else "bicubic"


def weights_of(name: str) -> dict[str, Any]:
    """torchvision's weights of a network by their names, the oldest first, and `pretrained` for the best of them."""
    if name in OWN or name not in torchvision_names():
        return {}
    entries = torchvision.models.get_model_weights(name)
    known = dict(entries.__members__)
    return {**{key: known[key] for key in known if key != "DEFAULT"}, "pretrained": entries.DEFAULT} if known else {}


def default_size(name: str) -> int:
    """Height and width that a network's weights were trained with, pixels; 224 where that is not known."""
    return input_of(name).size


def with_input(config: Config, own: NetworkInput | None = None) -> Config:
    """The config with image size and interpolation as numbers and names, where they were left to the network.

    `own` is what the network was trained with, where its config is another's.
    """
    data = config.data
    if data.size and data.interpolation != "auto":
        return config

    own = own or input_of(config.model.backbone, config.model.weights)
    interpolation = own.interpolation if data.interpolation == "auto" else data.interpolation
    return replace(config, data=replace(data, size=data.size or own.size, interpolation=interpolation))


def known_names(pattern: str = "") -> list[str]:
    """The names that `create` takes, of timm where it is installed, those that contain `pattern` or match it."""
    names = [*OWN, *registered(), *torchvision_names()]
    if importlib.util.find_spec("timm") is not None:
        import timm

        names += [f"{TIMM}{name}" for name in timm.list_models()]
    return [name for name in names if fnmatch.fnmatch(name, pattern) or pattern in name]


def has_weights_here(name: str) -> bool:
    """Whether pretrained weights of a network lie on this machine, so that none need be downloaded."""
    if name.startswith(TIMM):
        from huggingface_hub import try_to_load_from_cache

        repository = str(timm_settings(name).get("hf_hub_id") or "").partition("@")[0]
        return bool(repository) and isinstance(try_to_load_from_cache(repository, "model.safetensors"), str)

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    files = [folder / str(entry.url).rpartition("/")[2] for entry in weights_of(name).values()]
    return shapes_file(name) is not None or any(file.is_file() for file in files)
