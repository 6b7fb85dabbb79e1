"""Stored pixels as batches, augmented and normalised on the training device. Knows no k and no model."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from finetune.data.augment import Augment
from finetune.data.pixels import PixelStore

Batch = tuple[Tensor, Tensor, Tensor]
"""Pixels, uint8, N x H x W x 3; labels, int64, N; positions in the split, int64, N."""


class StoredImages(Dataset[Batch]):
    """A pixel store whose items are fetched a batch at a time."""

    def __init__(self, store: PixelStore):
        self.store = store

    def __len__(self) -> int:
        return len(self.store.images)

    def __getitems__(self, indices: list[int]) -> Batch:
        """One gather for the whole batch."""
        index = torch.as_tensor(indices)
        return torch.from_numpy(self.store.images[indices]), torch.from_numpy(self.store.labels[indices]), index


class PixelData(pl.LightningDataModule):
    """Batches of normalised images N x 3 x H x W, channels last, with labels N.

    The training order depends on (seed, epoch), an image's augmentation on (seed, epoch, image).
    """

    def __init__(
        self,
        stores: dict[str, PixelStore],
        augment: Augment,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        seed: int,
    ):
        """`stores` has `train` and `val`, and `test` where there is one; `mean` and `std` are for pixels in 0..1."""
        super().__init__()
        self.stores, self.augment, self.batch_size, self.seed = stores, augment, batch_size, seed
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._std = torch.tensor(std).view(1, 3, 1, 1)
        self._draws: tuple[int, Tensor] = (-1, torch.empty(0))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; a last batch of a single image, on which BatchNorm cannot train, is dropped."""
        images = StoredImages(self.stores["train"])
        # the sampler adds the epoch to its seed; far apart, one seed's orders are not another's a few epochs later
        order: DistributedSampler[Batch] = DistributedSampler(
            images, num_replicas=1, rank=0, shuffle=True, seed=self.seed * 1_000_003
        )
        alone = len(images) > self.batch_size and len(images) % self.batch_size == 1
        return DataLoader(images, self.batch_size, sampler=order, collate_fn=_as_is, drop_last=alone)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation images in order."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images in order."""
        return self._in_order("test")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Pixels as the network wants them, augmented while training."""
        pixels, labels, index = batch
        x = pixels.permute(0, 3, 1, 2).float().div_(255)
        assert self.trainer is not None
        if self.trainer.training and self.augment.random:
            x = self.augment(x, self._epoch_draws(self.trainer.current_epoch)[index.cpu()].to(x.device))
        x = (x - self._mean.to(x.device)) / self._std.to(x.device)
        return x.contiguous(memory_format=torch.channels_last), labels

    def _in_order(self, split: str) -> DataLoader[Batch]:
        return DataLoader(StoredImages(self.stores[split]), self.batch_size, collate_fn=_as_is)

    def _epoch_draws(self, epoch: int) -> Tensor:
        if self._draws[0] != epoch:
            self._draws = epoch, self.augment.draws(len(self.stores["train"].images), self.seed, epoch)
        return self._draws[1]


def _as_is(batch: Any) -> Any:
    return batch
