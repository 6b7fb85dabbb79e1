"""Stored pixels as the network wants them, on whatever device they are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.config import digest_of
from finetune.data.augment import Augment


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
