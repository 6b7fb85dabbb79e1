"""The networks of this package: small ones that learned from drawn images, and the study's baseline."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

SHAPES_WEIGHTS = "SHAPES60_V1"
"""The name of the weights that ship with this package."""
IMAGE_SIZES: Mapping[str, int] = {"vit_narrow": 64, "convnext_narrow": 64}
"""Pixels a side of the images that these networks take if not told otherwise; the older ones here have 224."""
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


class ViTNarrow(VisionTransformer):
    """A hybrid ViT: four blocks of 96 features over what two stages of the narrow ResNet50 make of 8 x 8 pixels.

    0.6 M parameters. A few tens of thousands of images teach it what a ViT on plain patches does not learn from them.
    """

    def __init__(self, image_size: int = 64) -> None:
        super().__init__(image_size, patch_size=8, num_layers=4, num_heads=3, hidden_dim=96, mlp_dim=384)
        self.conv_proj = nn.Sequential(*_early_stages(2), nn.Conv2d(128, 96, kernel_size=1))


class ConvNeXtNarrow(ConvNeXt):
    """Five ConvNeXt blocks of 64 to 256 channels, for whose stem the narrow ResNet50's first stage stands.

    1.2 M parameters, 256 features.
    """

    def __init__(self) -> None:
        stages = [CNBlockConfig(64, 128, 1), CNBlockConfig(128, 256, 3), CNBlockConfig(256, None, 1)]
        super().__init__(stages, layer_scale=0.5)
        self.features[0] = nn.Sequential(*_early_stages(1))


def _early_stages(count: int) -> list[nn.Module]:
    """The narrow ResNet50's stem and its first stages: 4 x 4 pixels to 64 channels, 8 x 8 to 128."""
    network = NarrowResNet50()
    stages = [network.layer1, network.layer2][:count]
    return [network.conv1, network.bn1, network.relu, network.maxpool, *stages]


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


OWN: Mapping[str, Callable[..., nn.Module]] = {
    "narrow_resnet50": NarrowResNet50,
    "vit_narrow": ViTNarrow,
    "convnext_narrow": ConvNeXtNarrow,
    "cnn5": cnn5,
}
"""What builds each, by its name."""


def shapes_file(name: str) -> Path | None:
    """The weights that ship with a network; None where there are none."""
    file = _SHIPPED / f"{name}_shapes60.safetensors"
    return file if name in OWN and file.is_file() else None
