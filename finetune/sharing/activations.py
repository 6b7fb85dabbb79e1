"""Frozen prefix + pixels → what comes out at a cut, stored once for all trials. Knows no Lightning and no lr."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from finetune.gpu import is_out_of_memory, wait_for
from finetune.network.device import Precision
from finetune.network.parts import SharedPrefix
from finetune.sharing.cost import Costs, cumulative, measure_disk
from finetune.storage.cache import locked
from finetune.storage.parallel import in_order
from finetune.storage.store import Rows, Store, StoreBuilder, open_store
from finetune.storage.system import free_memory

VERSION = 4
"""Part of every store's name; changes when the same input would give other activations."""
_BLOCK = 2 * SharedPrefix.CHUNK
"""Images that are computed, and checked, at once on a CPU."""
_GPU_BLOCK = 256
"""The same on a GPU, of images of 224 px; of larger ones fewer."""


@dataclass(frozen=True)
class Source:
    """The images of one split as they enter the network: augmented as in one view, or as they are.

    Where the split is made of folds, they are the images of all folds, so that trials of any fold share what comes out.
    """

    split: str
    pixels: PixelStore
    preprocess: Preprocess
    seed: int
    view: int | None
    """None for images as they are."""

    @property
    def digest(self) -> str:
        """Equal for equal inputs of the network."""
        return digest_of([self.pixels.digest, self.preprocess.digest(self.seed, self.view)])

    def draws(self) -> Tensor | None:
        """The random numbers of the view."""
        if self.view is None:
            return None
        return self.preprocess.draws(len(self.rows), self.seed, self.view)

    @property
    def rows(self) -> Rows:
        """Their pixels."""
        return self.pixels.images.whole

    def images(self, chosen: slice, draws: Tensor | None, device: torch.device) -> Tensor:
        """The `chosen` images on `device`, N x 3 x H x W."""
        pixels = as_tensor(self.rows, chosen).to(device)
        return self.preprocess(pixels, None if draws is None else draws[chosen].to(device))


def store_key(source: Source, backbone: str, prefix_digest: str, modules: int, precision: Precision) -> str:
    """The name of a store: everything upstream of its activations, nothing downstream."""
    versions = torch.__version__, torchvision.__version__, VERSION
    return digest_of([source.digest, backbone, prefix_digest, modules, precision.name, *versions])


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
        folders: The stores' folders, by the number of modules before the cut.
        precision: The run's.
        costs: How the time that the build takes is shared among the cuts: noted in each store, in seconds of a thread
            an image, from which later trials know what it saves them.
        progress: Called with images done and total.

    Returns:
        The stores by cut, and the seconds of a thread that computing them took here.

    Raises:
        OSError: the disk is full; nothing half-built is left.
        RuntimeError: the GPU is, as `is_out_of_memory` tells; the same.
    """
    with contextlib.ExitStack() as stack:
        for folder in sorted(folders.values()):  # in one order, so that two builders never wait for each other
            stack.enter_context(locked(folder))

        stores = {modules: open_store(folder) for modules, folder in folders.items()}
        absent = {modules: folders[modules] for modules in sorted(stores) if stores[modules] is None}
        seconds = 0.0
        if absent:
            seconds = _build_absent(prefix, source, absent, precision, costs, progress)
            stores |= {modules: open_store(folder, verify=False) for modules, folder in absent.items()}

    return {modules: store for modules, store in stores.items() if store is not None}, seconds


def _build_absent(
    prefix: SharedPrefix,
    source: Source,
    folders: Mapping[int, Path],
    precision: Precision,
    costs: Costs,
    progress: Callable[[int, int], None],
) -> float:
    """Build these stores, none of which is there, in one pass; the seconds of a thread that it took."""
    cuts, total = list(folders), len(source.rows)
    shapes = row_shapes(prefix, source, cuts, precision)
    builds = dict[int, StoreBuilder]()
    seconds, computed = 0.0, 0
    try:
        for modules in cuts:
            builds[modules] = StoreBuilder(folders[modules], *shapes[modules])

        first = min(building.done for building in builds.values())
        row_bytes = sum(building.row_bytes for building in builds.values())
        for done, blocks, block_seconds in compute_rows(prefix, source, cuts, first, precision, row_bytes):
            for building, rows in zip(builds.values(), blocks, strict=True):
                if building.done < done:  # an interrupted build may have got further at one cut than at another
                    building.append(rows)
            seconds += block_seconds
            computed += len(blocks[0])
            progress(done, total)

        for modules, building in builds.items():
            building.publish({"seconds_per_image": _seconds_per_image(costs, modules, cuts[-1], seconds, computed)})
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) or is_out_of_memory(error):
            for building in builds.values():
                building.drop()
        raise
    finally:
        for building in builds.values():
            building.close()
    return seconds


def _seconds_per_image(costs: Costs, modules: int, deepest: int, seconds: float, images: int) -> float:
    """A cut's share of the time that `images` took up to the `deepest` cut."""
    if not images:
        return costs.compute[modules]

    whole = costs.compute[deepest]
    share = costs.compute[modules] / whole if whole else 1.0
    return share * seconds / images


def compute_rows(
    prefix: SharedPrefix, source: Source, cuts: Sequence[int], first: int, precision: Precision, row_bytes: int
) -> Iterator[tuple[int, list[NDArray[Any]], float]]:
    """The number of images done, rows at each of the cuts, and seconds: block by block from image `first` on.

    `row_bytes` are those of an image at all cuts: blocks that wait to be written leave memory to others.
    """
    total, draws = len(source.rows), source.draws()
    size = _block(source, precision)
    first -= first % size

    def compute(start: int) -> tuple[int, list[NDArray[Any]], float]:
        x = source.images(slice(start, start + size), draws, precision.device)
        started = time.perf_counter()
        with precision.autocast(), torch.no_grad():
            rows = [_as_rows(activations) for activations in prefix.activations(x, cuts)]
        return min(start + size, total), rows, time.perf_counter() - started

    def use_one_thread() -> None:
        if precision.device.type == "cpu":  # blocks are what runs in parallel
            torch.set_num_threads(1)

    threads = precision.threads
    ahead = min(2 * threads, max(1, int(free_memory() / (size * row_bytes))))
    return in_order(compute, range(first, total, size), threads, use_one_thread, ahead)


def _block(source: Source, precision: Precision) -> int:
    """How many images are computed at once."""
    if precision.device.type == "cpu":
        return _BLOCK

    _, height, width, _ = source.rows.shape
    return min(_GPU_BLOCK, max(SharedPrefix.CHUNK, _GPU_BLOCK * 224**2 // (height * width)))


def row_shapes(
    prefix: SharedPrefix, source: Source, cuts: Sequence[int], precision: Precision
) -> dict[int, tuple[tuple[int, ...], str]]:
    """Shape and dtype of one image's activations, by the number of modules before the cut."""
    x = source.images(slice(0, 1), None, precision.device)
    with precision.autocast(), torch.no_grad():
        activations = prefix.activations(x, cuts)
    return {
        modules: (_as_rows(rows).shape[1:], str(rows.dtype).removeprefix("torch."))
        for modules, rows in zip(cuts, activations, strict=True)
    }


def _as_rows(x: Tensor) -> NDArray[Any]:
    """Activations as a store holds them: N x H x W x C or N x features; bfloat16, which NumPy lacks, as uint16."""
    x = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).contiguous().cpu()
    return np.asarray((x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy())


def measure_costs(
    prefix: SharedPrefix, source: Source, precision: Precision, cache: Path, batch_size: int | None = None
) -> Costs:
    """Time each module of the prefix on a few images, and the disk.

    A GPU computes an image of a small batch in more time than one of a large block, so there the batches of a trial,
    of `batch_size`, are timed as well.
    """
    on_cpu = precision.device.type == "cpu"
    block = SharedPrefix.CHUNK if on_cpu else _block(source, precision)
    compute = _seconds_of_modules(prefix, source, precision, block)
    in_batches = None
    if batch_size is not None and not on_cpu:
        in_batches = _seconds_of_modules(prefix, source, precision, batch_size)
    return Costs(measure_disk(cache), compute, free_memory(), in_batches)


def _seconds_of_modules(prefix: SharedPrefix, source: Source, precision: Precision, count: int) -> tuple[float, ...]:
    """Seconds an image, of `count` at once, from the input to each cut."""
    images = source.images(slice(0, count), None, precision.device)
    seconds = [float("inf")] * len(prefix)

    with precision.autocast(), torch.no_grad():
        for _ in range(3):
            x = images
            for i, module in enumerate(prefix):
                start = _now(precision.device)
                x = module(x)
                seconds[i] = min(seconds[i], (_now(precision.device) - start) / len(images))

    return cumulative(seconds)


def _now(device: torch.device) -> float:
    wait_for(device)
    return time.perf_counter()
