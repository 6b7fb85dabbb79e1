"""Random changes to a batch on the training device: each image has its own, fixed by (seed, epoch, image)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.config import AugmentConfig, digest_of

_DRAWS = 14
"""Uniform numbers that one image uses in one epoch."""


@dataclass(frozen=True)
class Augment:
    """Flip, random resized crop and rotation in one resampling; then colour, then erasing."""

    flip: float
    min_area: float
    rotate: float
    color: float
    erase: float

    @classmethod
    def from_config(cls, config: AugmentConfig) -> "Augment":
        """The augmentation of a composed config."""
        return cls(**{name: float(value) for name, value in asdict(config).items()})

    @property
    def random(self) -> bool:
        """Whether an image looks different from epoch to epoch."""
        return self != Augment(flip=0, min_area=1, rotate=0, color=0, erase=0)

    @property
    def digest(self) -> str:
        """Names the transform: equal settings, equal digest."""
        return digest_of(asdict(self))

    def draws(self, images: int, seed: int, epoch: int) -> Tensor:
        """One row of uniform numbers per image of the training set, images x 14; the same for the same arguments."""
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
        area = self.min_area + (1 - self.min_area) * u[:, 0]
        stretch = ((u[:, 1] * 2 - 1) * (0.2876 if self.min_area < 1 else 0.0)).exp()  # 3/4..4/3
        stretch = stretch.clamp(area, 1 / area)  # neither side longer than the image's
        wide, high = (area * stretch).sqrt(), (area / stretch).sqrt()
        middle_x, middle_y = (1 - wide) * (u[:, 2] * 2 - 1), (1 - high) * (u[:, 3] * 2 - 1)
        wide = torch.where(u[:, 4] < self.flip, -wide, wide)
        angle = torch.deg2rad((u[:, 5] * 2 - 1) * self.rotate)
        cos, sin = angle.cos(), angle.sin()
        theta = torch.stack([wide * cos, -wide * sin, middle_x, high * sin, high * cos, middle_y], 1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _recolor(self, x: Tensor, u: Tensor) -> Tensor:
        brightness, contrast, saturation = (1 + (u * 2 - 1) * self.color).view(-1, 3, 1, 1, 1).unbind(1)
        x = x * brightness
        red, green, blue = x.split(1, dim=1)
        grey: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
        x = grey + (x - grey) * saturation
        mean = grey.mean((2, 3), keepdim=True)
        return (mean + (x - mean) * contrast).clamp(0, 1)

    def _erase(self, x: Tensor, u: Tensor) -> Tensor:
        area, ratio = 0.02 + 0.18 * u[:, 1], ((u[:, 2] * 2 - 1) * 1.2).exp()
        high, wide = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        top, left = u[:, 3] * (1 - high), u[:, 4] * (1 - wide)
        rows = (torch.arange(x.shape[2], device=x.device) + 0.5) / x.shape[2]
        columns = (torch.arange(x.shape[3], device=x.device) + 0.5) / x.shape[3]
        in_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
        hit = (u[:, 0] < self.erase)[:, None, None] & in_rows[:, :, None] & in_columns[:, None, :]
        return torch.where(hit[:, None], 0.5, x)


class Preprocess:
    """Pixels, uint8, N x H x W x 3, to normalised images, float32, N x 3 x H x W, channels last."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], augment: Augment, views: int | None = None):
        """`mean` and `std` are for pixels in 0..1; `views` is how often an image is augmented anew, None for ever."""
        self.mean, self.std, self.augment, self.views = tuple(mean), tuple(std), augment, views
        self._normal = torch.tensor([self.mean, self.std]).view(2, 1, 3, 1, 1)

    def __call__(self, pixels: Tensor, draws: Tensor | None = None) -> Tensor:
        """Normalise, and augment by one row of `draws` an image where they are given."""
        x = pixels.permute(0, 3, 1, 2).float().div_(255)
        if draws is not None:
            x = self.augment(x, draws)
        if self._normal.device != x.device:
            self._normal = self._normal.to(x.device)
        mean, std = self._normal
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
        augmented = view is not None and self.augment.random
        return digest_of([self.mean, self.std, [self.augment.digest, seed, view] if augmented else None])
