"""Frozen prefix + pixels → what comes out at a cut, stored once for all trials. Knows no Lightning and no lr."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from finetune.config import digest_of
from finetune.data.augment import Preprocess
from finetune.data.batches import as_tensor
from finetune.data.pixels import PixelStore
from finetune.network.device import Precision
from finetune.network.parts import SharedPrefix
from finetune.sharing.cost import Costs, cumulative, measure_disk
from finetune.storage.cache import locked
from finetune.storage.parallel import free_memory, in_order
from finetune.storage.store import Store, StoreBuilder, open_store

VERSION = 4
"""Part of every store's name; changes when the same input would give other activations."""
_BLOCK = 2 * SharedPrefix.CHUNK
"""Images that are computed, and checked, at once on a CPU."""
_GPU_BLOCK = 256
"""The same on a GPU, of images of 224 px; of larger ones fewer."""


@dataclass(frozen=True)
class Source:
    """The images of one split as they enter the network: augmented as in one view, or as they are."""

    split: str
    pixels: PixelStore
    preprocess: Preprocess
    seed: int
    view: int | None

    @property
    def digest(self) -> str:
        """Equal for equal inputs of the network."""
        return digest_of([self.pixels.digest, self.preprocess.digest(self.seed, self.view)])

    def draws(self) -> Tensor | None:
        """The random numbers of the view."""
        if self.view is None:
            return None
        return self.preprocess.draws(len(self.pixels.labels), self.seed, self.view)

    def images(self, chosen: slice, draws: Tensor | None, device: torch.device) -> Tensor:
        """Some of them on `device`."""
        pixels = as_tensor(self.pixels.images, chosen).to(device)
        return self.preprocess(pixels, None if draws is None else draws[chosen].to(device))


def store_key(source: Source, backbone: str, prefix_digest: str, cut: int, precision: Precision) -> str:
    """The name of a store: everything upstream of its activations, nothing downstream."""
    made_by = torch.__version__, torchvision.__version__, VERSION
    return digest_of([source.digest, backbone, prefix_digest, cut, precision.name, *made_by])


def build(
    prefix: SharedPrefix,
    source: Source,
    folders: Mapping[int, Path],
    precision: Precision,
    costs: Costs,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[int, Store], float]:
    """Run the images once through the prefix and store what comes out at several cuts; what is there stays.

    An interrupted build is continued.

    Args:
        prefix: Reaches at least to the deepest cut.
        source: The images.
        folders: Of the stores, by the number of modules before the cut.
        precision: The run's.
        costs: How the time that the build takes is shared among the cuts: noted in each store, in seconds of a thread
            an image, from which later trials know what it saves them.
        progress: Called with images done and total.

    Returns:
        The stores by cut, and the seconds of a thread that computing them took here.

    Raises:
        OSError: the disk is full; nothing half-built is left.
        torch.OutOfMemoryError: the GPU is; the same.
    """
    total, spent = len(source.pixels.labels), 0.0
    with contextlib.ExitStack() as stack:
        for folder in sorted(folders.values()):  # in one order, so that two builders never wait for each other
            stack.enter_context(locked(folder))
        found = {at: open_store(folder) for at, folder in folders.items()}
        absent = sorted(at for at, store in found.items() if store is None)
        if absent:
            shapes = row_shapes(prefix, source, absent, precision)
            parts, computed = dict[int, StoreBuilder](), 0
            try:
                for at in absent:
                    parts[at] = StoreBuilder(folders[at], *shapes[at])
                first, row_bytes = min(part.done for part in parts.values()), sum(p.row_bytes for p in parts.values())
                for done, blocks, seconds in _computed(prefix, source, absent, first, precision, row_bytes):
                    for part, rows in zip((parts[at] for at in absent), blocks, strict=True):
                        if part.done < done:
                            part.append(rows)
                    spent, computed = spent + seconds, computed + len(blocks[0])
                    progress(done, total)
                whole = costs.compute[absent[-1]]
                for at, part in parts.items():
                    share = costs.compute[at] / whole if whole else 1.0
                    part.publish({"seconds_per_image": share * spent / computed if computed else costs.compute[at]})
            except (OSError, torch.OutOfMemoryError):
                for part in parts.values():
                    part.drop()
                raise
            finally:
                for part in parts.values():
                    part.close()
            found |= {at: open_store(folders[at], verify=False) for at in absent}
    return {at: store for at, store in found.items() if store is not None}, spent


def _computed(
    prefix: SharedPrefix, source: Source, at: Sequence[int], first: int, precision: Precision, row_bytes: int
) -> Any:
    """The number of images done, rows at each of the cuts, and seconds: block by block from image `first` on.

    `row_bytes` are those of an image at all cuts: blocks that wait to be written leave memory to others.
    """
    total, draws = len(source.pixels.labels), source.draws()
    on_cpu = precision.device.type == "cpu"
    size = _block(source, precision)
    first -= first % size

    def block(start: int) -> tuple[int, list[NDArray[Any]], float]:
        x, started = source.images(slice(start, start + size), draws, precision.device), time.perf_counter()
        with precision.autocast(), torch.no_grad():
            rows = [_as_rows(tap) for tap in prefix.taps(x, at)]
        return min(start + size, total), rows, time.perf_counter() - started

    threads = precision.threads
    ahead = min(2 * threads, max(1, int(free_memory() / (size * row_bytes))))
    at_start = lambda: torch.set_num_threads(1) if on_cpu else None  # noqa: E731
    return in_order(block, range(first, total, size), threads, at_start, ahead)


def _block(source: Source, precision: Precision) -> int:
    """Images that are computed at once."""
    if precision.device.type == "cpu":
        return _BLOCK
    _, high, wide, _ = source.pixels.images.shape
    return min(_GPU_BLOCK, max(SharedPrefix.CHUNK, _GPU_BLOCK * 224**2 // (high * wide)))


def row_shapes(
    prefix: SharedPrefix, source: Source, at: Sequence[int], precision: Precision
) -> dict[int, tuple[tuple[int, ...], str]]:
    """Shape and dtype of one image's activations after so many modules."""
    x = source.images(slice(0, 1), None, precision.device)
    with precision.autocast(), torch.no_grad():
        taps = prefix.taps(x, at)
    return {
        i: (_as_rows(tap).shape[1:], str(tap.dtype).removeprefix("torch.")) for i, tap in zip(at, taps, strict=True)
    }


def _as_rows(x: Tensor) -> NDArray[Any]:
    x = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).contiguous().cpu()
    return np.asarray((x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy())


def measure_costs(prefix: SharedPrefix, source: Source, precision: Precision, cache: Path) -> Costs:
    """Time each module of the prefix on a few images, and the disk."""
    count = SharedPrefix.CHUNK if precision.device.type == "cpu" else _block(source, precision)
    seconds = [float("inf")] * len(prefix)
    images = source.images(slice(0, count), None, precision.device)
    with precision.autocast(), torch.no_grad():
        for _ in range(3):
            x = images
            for i, module in enumerate(prefix):
                start = _now(precision.device)
                x = module(x)
                seconds[i] = min(seconds[i], (_now(precision.device) - start) / len(images))
    return Costs(measure_disk(cache), cumulative(seconds), free_memory())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
