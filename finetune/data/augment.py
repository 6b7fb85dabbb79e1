"""Random changes to a batch on the training device: each image has its own, fixed by (seed, epoch, image)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.config import AugmentConfig, digest_of

_DRAWS = 14
"""Uniform numbers that one image uses in one epoch."""
_LOG_4_3 = 0.2876
"""The logarithm of 4/3, to the digits that every release drew crops with."""


@dataclass(frozen=True)
class Augment:
    """Flip, random resized crop and rotation in one resampling; then colour, then erasing.

    The random numbers are arguments: an image looks the same whatever batch it is in and whichever device computes it.
    """

    flip: float
    min_area: float
    rotate: float
    color: float
    erase: float

    @classmethod
    def from_config(cls, config: AugmentConfig) -> "Augment":
        """The augmentation of a composed config."""
        return cls(**{field.name: float(getattr(config, field.name)) for field in fields(cls)})

    @property
    def random(self) -> bool:
        """Whether an image looks different from epoch to epoch."""
        return self != NO_AUGMENTATION

    @property
    def digest(self) -> str:
        """Names the transform: equal settings, equal digest."""
        return digest_of(asdict(self))

    def draws(self, images: int, seed: int, epoch: int) -> Tensor:
        """One row of uniform numbers per image of the training set, images x 14; the same for the same arguments."""
        # seeds lie a prime apart, so that no epoch of one seed is an epoch of another
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        return torch.rand(images, _DRAWS, generator=generator)

    def __call__(self, x: Tensor, draws: Tensor) -> Tensor:
        """Change images N x 3 x H x W, 0..1, by their rows of `draws`, N x 14; the result is 0..1 too."""
        if self.flip > 0 or self.min_area < 1 or self.rotate > 0:
            x = self._resample(x, draws[:, :6])
        if self.color > 0:
            x = self._recolor(x, draws[:, 6:9])
        if self.erase > 0:
            x = self._erase(x, draws[:, 9:14])
        return x

    def _resample(self, x: Tensor, u: Tensor) -> Tensor:
        """Crop, mirror and turn in one bilinear sampling, so that an image is blurred once; `u` is N x 6."""
        # 1. The crop: a share of the area and an aspect ratio, 3/4..4/3, as in Szegedy et al. 2015 (arXiv:1409.4842);
        #    neither side gets longer than the image's
        area = self.min_area + (1 - self.min_area) * u[:, 0]
        log_ratio = _LOG_4_3 if self.min_area < 1 else 0.0
        stretch = ((u[:, 1] * 2 - 1) * log_ratio).exp()
        stretch = stretch.clamp(area, 1 / area)
        width = (area * stretch).sqrt()
        height = (area / stretch).sqrt()

        # 2. Where it lies, in affine_grid's coordinates: -1..1, the image's middle is 0
        middle_x = (1 - width) * (u[:, 2] * 2 - 1)
        middle_y = (1 - height) * (u[:, 3] * 2 - 1)

        # 3. A negative width mirrors
        width = torch.where(u[:, 4] < self.flip, -width, width)
        angle = torch.deg2rad((u[:, 5] * 2 - 1) * self.rotate)
        cos = angle.cos()
        sin = angle.sin()

        rows = [width * cos, -width * sin, middle_x, height * sin, height * cos, middle_y]
        grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _recolor(self, x: Tensor, u: Tensor) -> Tensor:
        """torchvision's brightness, then saturation, then contrast; `u` is N x 3."""
        factors = 1 + (u * 2 - 1) * self.color
        brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1).unbind(1)

        x = x * brightness
        red, green, blue = x.split(1, dim=1)
        grey: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
        x = grey + (x - grey) * saturation

        # saturation leaves the grey as it is, so the mean need not be taken anew
        mean = grey.mean((2, 3), keepdim=True)
        return (mean + (x - mean) * contrast).clamp(0, 1)

    def _erase(self, x: Tensor, u: Tensor) -> Tensor:
        """Blank a rectangle in a share of the images; `u` is N x 5. Shares of area and side are of the image's."""
        area = 0.02 + 0.18 * u[:, 1]
        ratio = ((u[:, 2] * 2 - 1) * 1.2).exp()
        height = (area * ratio).sqrt().clamp(max=1)
        width = (area / ratio).sqrt().clamp(max=1)
        top = u[:, 3] * (1 - height)
        left = u[:, 4] * (1 - width)

        # the middles of the pixels
        rows = (torch.arange(x.shape[2], device=x.device) + 0.5) / x.shape[2]
        columns = (torch.arange(x.shape[3], device=x.device) + 0.5) / x.shape[3]
        in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])

        is_erased = (u[:, 0] < self.erase)[:, None, None]
        blank = is_erased & in_rows[:, :, None] & in_columns[:, None, :]
        return torch.where(blank[:, None], 0.5, x)


NO_AUGMENTATION = Augment(flip=0, min_area=1, rotate=0, color=0, erase=0)


def build_mix(config: AugmentConfig, classes: int) -> Callable[[Tensor, Tensor], Any] | None:
    """Mixup and CutMix as torchvision defines them; None where neither is asked for.

    A batch of images N x 3 x H x W and labels N becomes mixed images and, N x classes, the share of each class in them
    (Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899). What is drawn comes from torch's global
    generator on the CPU. Mixing is linear, so it does not matter that images are normalised before.
    """
    from torchvision.transforms import v2

    mixes = [
        kind(alpha=alpha, num_classes=classes)
        for kind, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
        if alpha > 0
    ]
    return v2.RandomChoice(mixes) if mixes else None


class Preprocess:
    """Pixels, uint8, N x H x W x 3, to normalised images, float32, N x 3 x H x W, channels last."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], augment: Augment, views: int | None = None):
        """`mean` and `std` are for pixels in 0..1; `views` is how often an image is augmented anew, None for ever."""
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.augment = augment
        self.views = views
        self._mean_and_std = torch.tensor([self.mean, self.std]).view(2, 1, 3, 1, 1)

    def __call__(self, pixels: Tensor, draws: Tensor | None = None) -> Tensor:
        """Normalise, and augment by one row of `draws` an image where there are some."""
        x = pixels.permute(0, 3, 1, 2).float().div_(255)
        if draws is not None:
            x = self.augment(x, draws)

        if self._mean_and_std.device != x.device:  # copied once, not for each batch
            self._mean_and_std = self._mean_and_std.to(x.device)
        mean, std = self._mean_and_std
        x = x.sub_(mean).div_(std)
        return x.contiguous(memory_format=torch.channels_last)

    def view(self, epoch: int) -> int:
        """Which augmentation an epoch shows; views are repeated in turn."""
        return epoch if self.views is None else epoch % self.views

    def draws(self, images: int, seed: int, view: int) -> Tensor | None:
        """The random numbers of a view of the training set; None where nothing is random."""
        return self.augment.draws(images, seed, view) if self.augment.random else None

    def digest(self, seed: int, view: int | None) -> str:
        """Names what comes out of equal pixels; `view` is None for images that are not augmented."""
        is_augmented = view is not None and self.augment.random
        augmentation = [self.augment.digest, seed, view] if is_augmented else None
        return digest_of([self.mean, self.std, augmentation])
