"""The networks of this package: small ones that learned from drawn images, and the study's baseline."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

SHAPES_WEIGHTS = "SHAPES60_V1"
"""The name of the weights that ship with this package."""
_SHIPPED = Path(__file__).parent / "shipped"


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


def cnn5() -> nn.Module:
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


OWN: Mapping[str, Callable[..., nn.Module]] = {"narrow_resnet50": NarrowResNet50, "cnn5": cnn5}
"""What builds each, by its name."""


def shapes_file(name: str) -> Path | None:
    """The weights that ship with a network; None where there are none."""
    file = _SHIPPED / f"{name}_shapes60.safetensors"
    return file if name in OWN and file.is_file() else None
