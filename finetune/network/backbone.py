"""Pretrained networks as units in forward order, and the weights they start from."""

import functools
import itertools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier."""

    name: str
    model: nn.Module
    """The whole network; its parameter names are the weight file's."""
    units: Mapping[str, nn.Module]
    """The network's parts by name, in forward order; they share `model`'s modules."""
    pool: nn.Module
    """Last unit's output, N x C x H x W, to features, N x width."""
    width: int
    """Features per image."""
    classifier: str = "fc"
    """What torchvision calls the layers that the head replaces; weight files may hold them."""

    @property
    def modules(self) -> list[nn.Module]:
        """The units and then the pooling: what a cut lies between."""
        return [*self.units.values(), self.pool]


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


def build_backbone(name: str) -> Backbone:
    """A randomly initialised backbone; `name` is one of `config.BACKBONES`."""
    if name == "cnn5":
        return _cnn5()

    model: ResNet = NarrowResNet50() if name == "narrow_resnet50" else torchvision.models.get_model(name, weights=None)
    width = int(model.fc.in_features)
    model.fc = nn.Identity()

    stem = nn.Sequential(OrderedDict((part, getattr(model, part)) for part in ("conv1", "bn1", "relu", "maxpool")))
    stages = {part: getattr(model, part) for part in ("layer1", "layer2", "layer3", "layer4")}
    blocks = {f"{stage}.{b}": block for stage, layer in stages.items() for b, block in enumerate(layer)}
    return Backbone(name, model, {"stem": stem, **blocks}, nn.Sequential(model.avgpool, nn.Flatten(1)), width)


@functools.cache
def backbone_shapes(name: str) -> Backbone:
    """A backbone without values, to look at."""
    with torch.device("meta"):
        return build_backbone(name)


def _cnn5() -> Backbone:
    """Five 3 x 3 convolutions, each followed by BatchNorm, ReLU and 2 x 2 max pooling: the study's baseline."""
    channels = (3, 32, 64, 128, 256, 256)
    units: OrderedDict[str, nn.Module] = OrderedDict(
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
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return Backbone("cnn5", nn.Sequential(units), units, pool, channels[-1])
