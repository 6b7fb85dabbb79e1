"""Stored pixels, or stored activations, as batches on the training device. Knows no k and no model."""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from finetune.data.augment import Preprocess
from finetune.data.pixels import PixelStore
from finetune.gpu import CPU, is_out_of_memory, room_on_gpu, wait_for
from finetune.storage.store import Rows

_COPIED = 256 << 20
"""Bytes that go to a GPU at once."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Rows; labels, int64, N; positions in the split, int64, N."""


class StoredImages(Dataset[Batch]):
    """Rows of stores that are fetched a batch at a time, each epoch from the next of the `views`."""

    def __init__(
        self, views: Sequence[Rows], labels: NDArray[Any], order: "DistributedSampler[Batch] | None", fetch: bool = True
    ):
        """`order` knows the epoch; without `fetch` a batch has no rows, which are on the device already."""
        self.views = views
        self.labels = labels
        self.order = order
        self.fetch = fetch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        """One gather for the whole batch; PyTorch calls it instead of `__getitem__` where there is one."""
        epoch = self.order.epoch if self.order else 0
        rows = self.views[epoch % len(self.views)]
        x = as_tensor(rows, indices) if self.fetch else torch.empty(0)
        return x, torch.from_numpy(self.labels[indices]), torch.as_tensor(indices)


def as_tensor(rows: Rows, chosen: slice | list[int]) -> Tensor:
    """Rows of a store, in its dtype."""
    x = torch.from_numpy(rows[chosen])
    if rows.dtype == "bfloat16":  # NumPy has no such type, so the bits were read as uint16
        return x.view(torch.bfloat16)
    return x


class PixelData(pl.LightningDataModule):
    """Batches for the network with labels N: normalised images N x 3 x H x W, or what was stored at a cut.

    The training order depends on (seed, epoch), an image's augmentation on (seed, view of the epoch, image).
    """

    def __init__(
        self,
        stores: Mapping[str, PixelStore],
        preprocess: Preprocess,
        batch_size: int,
        seed: int,
        stored: Mapping[str, Sequence[Rows]] | None = None,
    ):
        """`stores` has `train` and `val`, and `test` where there is one.

        `stored` has the activations of some of them, N x H x W x C or N x features, for training one store a view.
        """
        super().__init__()
        self.stores = stores
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.seed = seed
        self.stored = stored or {}
        self.augmenting = Stopwatch()
        """How long augmentation took so far."""
        self.at_once = 1
        """Batches of `batch_size` images that training gets as one."""
        self.start = (0, 0)
        """An epoch, and how many of its batches come too late: where a trial goes on."""
        self.on_gpu = True
        """Whether images, or activations, are kept on a GPU where there is room."""
        self._draws: tuple[int, Tensor | None] = (-1, None)
        """An epoch with its random numbers."""
        self._resident: dict[str, list[Tensor]] = {}
        """The views of splits that lie on the GPU."""

    def setup(self, stage: str) -> None:
        """Put on a GPU what there is room for."""
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        if self.on_gpu and device.type != "cpu" and not self._resident:
            self.keep_on(device, room_on_gpu(device))

    def keep_on(self, device: torch.device, room: int) -> None:
        """Copy to `device` the splits that fit into `room` bytes, from which their batches are then gathered."""
        for split in self.stores:
            views = self._views(split)
            size = sum(len(rows) * rows.row_bytes for rows in views)
            if size > room:
                continue

            try:
                self._resident[split] = [_copied_to(device, rows) for rows in views]
                room -= size
            except RuntimeError as error:  # others took the room; the loader will do
                if not is_out_of_memory(error):
                    raise

    @property
    def resident(self) -> bool:
        """Whether a GPU keeps some of the images, or activations."""
        return bool(self._resident)

    @property
    def steps_of_epoch(self) -> int:
        """Training batches of `batch_size` images in an epoch on one device."""
        order = _Order(len(self.stores["train"].labels), self.seed, 0, 0)
        order.leave_out_single(self.batch_size)
        return -(-len(order) // self.batch_size)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; a last batch of a single image, on which BatchNorm cannot train, is dropped."""
        labels = self.stores["train"].labels

        # the sampler adds the epoch to its seed; far apart, one seed's orders are not another's a few epochs later
        epoch, batches = self.start
        devices, own = self._devices
        images_at_once = self.at_once * self.batch_size
        order = _Order(len(labels), self.seed * 1_000_003, epoch, batches * images_at_once, devices, own)
        order.leave_out_single(self.batch_size)

        images = StoredImages(self._views("train"), labels, order, fetch="train" not in self._resident)
        return DataLoader(images, images_at_once, sampler=order, collate_fn=_as_is)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation images in order."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images in order."""
        return self._in_order("test")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """What the network takes, augmented while training."""
        x, labels, index = batch
        assert self.trainer is not None
        split = "train" if self.trainer.training else "test" if self.trainer.testing else "val"
        epoch = self.trainer.current_epoch if split == "train" else 0

        if split in self._resident:
            views = self._resident[split]
            x = views[epoch % len(views)][index]

        if split in self.stored:
            return (x.permute(0, 3, 1, 2) if x.ndim == 4 else x), labels  # stored as N x H x W x C

        draws = self._epoch_draws(epoch, x.device) if split == "train" else None
        if draws is None:
            return self.preprocess(x), labels
        with self.augmenting.on(x.device):
            return self.preprocess(x, draws[index]), labels

    def _views(self, split: str) -> Sequence[Rows]:
        return self.stored.get(split) or [self.stores[split].images]

    def _in_order(self, split: str) -> DataLoader[Batch]:
        images = StoredImages(self._views(split), self.stores[split].labels, None, fetch=split not in self._resident)

        # an order of its own, for Lightning would show each of several devices a part
        several = self._devices[0] > 1
        order = DistributedSampler[Batch](images, num_replicas=1, rank=0, shuffle=False) if several else None
        return DataLoader(images, self.batch_size, sampler=order, collate_fn=_as_is)

    @property
    def _devices(self) -> tuple[int, int]:
        """How many devices train together, and which of them this process has."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _epoch_draws(self, epoch: int, device: torch.device) -> Tensor | None:
        if self._draws[0] != epoch:
            # drawn for all images of the store, so that an image of a fold looks as it does in a store of all folds
            images = self.stores["train"].images
            draws = self.preprocess.draws(len(images.whole), self.seed, self.preprocess.view(epoch))
            if draws is not None and images.positions is not None:
                draws = draws[torch.from_numpy(images.positions)]
            self._draws = epoch, None if draws is None else draws.to(device)
        return self._draws[1]


def _copied_to(device: torch.device, rows: Rows) -> Tensor:
    """All of `rows`, copied a block at a time, so that they need no room in this process's own memory."""
    step = max(1, _COPIED // rows.row_bytes)
    whole = torch.empty(rows.shape, dtype=as_tensor(rows, slice(0, 1)).dtype, device=device)
    for start in range(0, len(rows), step):
        block = as_tensor(rows, slice(start, start + step))
        whole[start : start + len(block)] = block
    return whole


class _Order(DistributedSampler[Batch]):
    """The images in an order drawn for each epoch; `epoch` begins later, with image `first`.

    Of several `devices` that train together, each has every so many of them, from its `own` number on.
    """

    def __init__(self, images: int, seed: int, epoch: int, first: int, devices: int = 1, own: int = 0):
        super().__init__(range(images), devices, own, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self._resumed_epoch = epoch
        self._first = first
        self._count = super().__len__()

    def leave_out_single(self, batch_size: int) -> None:
        """Have no last batch of one image, unless it is the only one."""
        if self._count > batch_size and self._count % batch_size == 1:
            self._count -= 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        skipped = self._first if self.epoch == self._resumed_epoch else 0
        return itertools.islice(super().__iter__(), skipped, self._count)


class Stopwatch:
    """Adds up stretches of work on a device without waiting for it."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events = deque[tuple[Any, Any]]()
        self._device = CPU

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Count what happens inside."""
        if device.type == "cpu":
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
            return

        # a GPU works behind the program, so it is asked for the times itself
        self._device = device
        event = torch.mps.Event if device.type == "mps" else torch.cuda.Event
        first, last = event(enable_timing=True), event(enable_timing=True)
        first.record()
        yield
        last.record()
        self._events.append((first, last))
        self._add_finished(wait=False)

    @property
    def seconds(self) -> float:
        """The sum; waits for a GPU to be done."""
        if self._events:
            wait_for(self._device)
        self._add_finished(wait=True)
        return self._seconds

    def _add_finished(self, wait: bool) -> None:
        """Add the stretches that a GPU has done; two events are kept of each until then."""
        while self._events and (wait or self._events[0][1].query()):
            first, last = self._events.popleft()
            self._seconds += first.elapsed_time(last) / 1000


def _as_is(batch: Any) -> Any:
    return batch
