"""Where networks come from: this package, torchvision, timm, and whoever registers one. Builds them; knows no cuts."""

import fnmatch
import functools
import importlib.util
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.resnet import Bottleneck, ResNet

from finetune.config import TIMM, UNSET_WEIGHTS, Config
from finetune.errors import Refused, nearest
from finetune.plugin import registered

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GOOGLE: dict[str, Any] = {"aux_logits": False, "init_weights": True, "transform_input": True}
_OPTIONS: dict[str, dict[str, Any]] = {"inception_v3": _GOOGLE, "googlenet": _GOOGLE}
"""As torchvision builds them for their pretrained weights, without the classifiers that only scratch training uses."""


class NarrowResNet50(ResNet):
    """ResNet50 at a quarter of the width: the same stem and 16 blocks, 1.5 M parameters, 512 features."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], zero_init_residual=True)
        self.conv1 = nn.Conv2d(3, 16, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(512, 1000)

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        if planes == 64:
            self.inplanes = 16
        layer: nn.Sequential = super()._make_layer(block, planes // 4, blocks, stride, dilate)
        return layer


def _cnn5() -> nn.Module:
    """Five 3 x 3 convolutions, each followed by BatchNorm, ReLU and 2 x 2 max pooling: the study's baseline."""
    channels = (3, 32, 64, 128, 256, 256)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        (
            f"conv{i}",
            nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(before, after, 3, padding=1, bias=False),
                    bn=nn.BatchNorm2d(after),
                    relu=nn.ReLU(inplace=True),
                    pool=nn.MaxPool2d(2, ceil_mode=True),
                )
            ),
        )
        for i, (before, after) in enumerate(itertools.pairwise(channels), start=1)
    )
    return nn.Sequential(layers | {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(1)})


_OWN: Mapping[str, Callable[[], nn.Module]] = {"narrow_resnet50": NarrowResNet50, "cnn5": _cnn5}


def create(name: str, size: int | None = None) -> nn.Module:
    """A randomly initialised network, with or without its classifier.

    Args:
        name: One of this package, of torchvision's classification networks, or `timm/NAME` with or without a tag.
        size: Height and width of the images, for networks whose parameters depend on it; None is what it has by itself.

    Raises:
        Refused: there is no such network, or it cannot take images of that size.
    """
    if name in _OWN:
        return _OWN[name]()
    if name.startswith(TIMM):
        return _of_timm(name, size)
    if name not in torchvision_names():
        own = registered()
        if name in own:
            return _built(name, size, own[name])
        known = [*_OWN, *own, *torchvision_names()]
        raise Refused(f"model.backbone={name} is not known; {nearest(name, known)}")

    options = options_of(name, size)
    return _built(name, size, lambda: torchvision.models.get_model(name, weights=None, **options))


def options_of(name: str, size: int | None) -> dict[str, Any]:
    """What the builder of torchvision's or timm's is told besides a network's name, for images of this size."""
    if name.startswith(TIMM):
        settings = timm_settings(name)
        fixed = settings.get("fixed_input_size") and size not in (None, settings["input_size"][-1])
        return {"img_size": size} if fixed else {}
    if name.startswith("vit_") and size is not None:
        return {"image_size": size}
    return dict(_OPTIONS.get(name, {}))


def _of_timm(name: str, size: int | None) -> nn.Module:
    timm, bare = timm_package(name), name.removeprefix(TIMM)
    if not timm.is_model(bare.partition(".")[0]):
        names = timm.list_models()
        raise Refused(f"model.backbone={name} is not known; {nearest(bare.partition('.')[0], names)}")

    options = options_of(name, size)
    return _built(name, size, lambda: timm.create_model(bare, pretrained=False, num_classes=0, **options))


def _built(name: str, size: int | None, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, NotImplementedError):  # the meta device lacks something
            raise
        raise cannot_take(name, size, error) from error


def cannot_take(name: str, size: int | None, error: BaseException) -> Refused:
    """What to say of a size that a network refuses."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Refused(
        f"{name} cannot take images of {size} x {size} ({reason}); set data.size={default_size(name)}, its own"
    )


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
    return name in _OWN or name.startswith(TIMM) or name in torchvision_names()


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
        return NetworkInput(224, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    preset = entries.get(weights.rpartition(".")[2], next(iter(entries.values()))).transforms()
    return NetworkInput(
        int(preset.crop_size[0]), _interpolation(preset.interpolation.value), tuple(preset.mean), tuple(preset.std)
    )


def _interpolation(name: str) -> str:
    return name if name in ("nearest", "bilinear", "bicubic", "lanczos") else "bicubic"


def weights_of(name: str) -> dict[str, Any]:
    """torchvision's weights of a network by their names, the oldest first, and `pretrained` for the best of them."""
    if name in _OWN or name not in torchvision_names():
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


class _Undrawn(TorchFunctionMode):
    """Leaves new parameters as they are: drawing them takes most of the time that building a network takes."""

    _DRAWS = (Tensor.uniform_, Tensor.normal_, Tensor.erfinv_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._DRAWS or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def create_empty(name: str, size: int | None = None) -> nn.Module:
    """A network whose parameters and buffers, still to be read, are on the meta device; its other tables are there."""
    try:
        with torch.device("meta"):
            model = create(name, size)
    except NotImplementedError:  # it computes with values while it is built
        return _create_undrawn(name, size)

    kept = model.state_dict().keys()
    tables = [buffer for path, buffer in model.named_buffers() if path not in kept]
    return _create_undrawn(name, size) if tables else model


def _create_undrawn(name: str, size: int | None) -> nn.Module:
    with torch.device("cpu"), _Undrawn():
        model = create(name, size)
    empty = {path: value.to("meta") for path, value in model.state_dict().items()}
    model.load_state_dict(empty, assign=True)
    return model


def create_shapes(name: str, size: int | None = None) -> nn.Module:
    """A network wholly on the meta device, to look at."""
    return on_meta(lambda: create(name, size))


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes, wholly on the meta device."""
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # it computes with values while it is built
        with torch.device("cpu"), _Undrawn():
            return build().to("meta")


def known_names(pattern: str = "") -> list[str]:
    """The names that `create` takes, of timm where it is installed, those that contain `pattern` or match it."""
    names = [*_OWN, *registered(), *torchvision_names()]
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
    return name == "narrow_resnet50" or any(file.is_file() for file in files)
