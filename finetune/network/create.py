"""Builds networks by their names, with or without values; knows no cuts."""

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetune.config import TIMM
from finetune.errors import Refused, nearest
from finetune.network.catalog import default_size, timm_package, timm_settings, torchvision_names
from finetune.network.own import OWN
from finetune.plugin import registered

_GOOGLE: dict[str, Any] = {"aux_logits": False, "init_weights": True, "transform_input": True}
_OPTIONS: dict[str, dict[str, Any]] = {"inception_v3": _GOOGLE, "googlenet": _GOOGLE}
"""As torchvision builds them for their pretrained weights, without the classifiers that only scratch training uses."""


def create(name: str, size: int | None = None) -> nn.Module:
    """A randomly initialised network, with or without its classifier.

    Args:
        name: One of this package, of torchvision's classification networks, or `timm/NAME` with or without a tag.
        size: Height and width of the images, for networks whose parameters depend on it; None is what it has by itself.

    Raises:
        Refused: there is no such network, or it cannot take images of that size.
    """
    if name in OWN:
        return _built(name, size, lambda: OWN[name](**options_of(name, size)))
    if name.startswith(TIMM):
        return _of_timm(name, size)
    if name not in torchvision_names():
        own = registered()
        if name in own:
            return _built(name, size, own[name])
        known = [*OWN, *own, *torchvision_names()]
        raise Refused(f"model.backbone={name} is not known; {nearest(name, known)}")

    options = options_of(name, size)
    return _built(name, size, lambda: torchvision.models.get_model(name, weights=None, **options))


def options_of(name: str, size: int | None) -> dict[str, Any]:
    """What a network's builder is told besides its name, for images of this size; of any `vit_…` the size itself."""
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


class _Undrawn(TorchFunctionMode):
    """Leaves new parameters as they are: drawing them takes most of the time that building a network takes."""

    _DRAWS = (Tensor.uniform_, Tensor.normal_, Tensor.erfinv_)
    _SCALES = (Tensor.mul_, Tensor.div_, Tensor.add_, Tensor.clamp_)
    """What timm does to a parameter that it has drawn."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_draw = func in self._DRAWS or getattr(func, "__module__", "") == "torch.nn.init"
        if is_draw or (func in self._SCALES and isinstance(args[0], nn.Parameter)):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def create_empty(name: str, size: int | None = None) -> nn.Module:
    """A network whose parameters and buffers, still to be read, are on the meta device; its other tables are there."""
    try:
        with torch.device("meta"), _Undrawn():
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
        with torch.device("meta"), _Undrawn():
            return build()
    except NotImplementedError:  # it computes with values while it is built
        with torch.device("cpu"), _Undrawn():
            return build().to("meta")
