"""How long the parts of a trial take on this machine: units of a network, decoding, Lightning."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from finetune.compose import compose_config, override
from finetune.data.augment import Preprocess
from finetune.data.decode import Transform, decode
from finetune.gpu import wait_for
from finetune.network.backbone import build_backbone
from finetune.network.device import Precision
from finetune.network.parts import FrozenPrefix, SharedPrefix, Suffix, arrange_in_memory, first_contiguous
from finetune.trial.run import train

_PASSES = 3
"""Passes that are timed at least, besides one that warms up."""
_LONG_ENOUGH = 1.5
"""Seconds of passes after which no more are needed."""
_FORWARD_AND_BACK = 3.0
"""Roughly how many forward passes a training step takes."""
_DECODED = 32
"""Images that are decoded at the most."""


@dataclass(frozen=True)
class UnitSeconds:
    """Seconds an image in each unit of a network, in forward order, the pooling last."""

    frozen: tuple[float, ...]
    """Forward, as a frozen unit runs."""
    trained: tuple[float, ...]
    """Forward and backward, as a trained unit runs."""
    optimizer: float
    """Seconds of one step of the optimizer over all parameters."""


def time_units(
    name: str,
    size: int,
    batch: int,
    precision: Precision,
    budget: float,
    average: Callable[[Sequence[float]], float] = statistics.mean,
) -> UnitSeconds:
    """Time each unit of a backbone by itself, frozen and trained: from these follows the time of a step at any depth.

    Weights and pixels are random, for a step takes as long whatever they are.

    Args:
        name: The backbone.
        size: Height and width of its input, pixels.
        batch: Images of a step; fewer are timed at once where they would take longer than the budget.
        precision: On which device, in what format.
        budget: Seconds that it may take, roughly.
        average: Of several passes. The mean has in it what other work takes from this; the median shows what the
            machine can do.
    """
    deadline = time.perf_counter() + budget
    torch.manual_seed(0)
    backbone = build_backbone(name, size)
    first = first_contiguous(name, size, precision)
    prefix = SharedPrefix.of(FrozenPrefix(*backbone.modules).train(), first, precision.dtype).to(precision.device)
    suffix = Suffix(*backbone.modules).to(precision.device)
    arrange_in_memory(suffix, first)

    def seconds(units: nn.Sequential, images: int, learn: bool) -> list[float]:
        x = torch.rand(images, 3, size, size, device=precision.device)
        return _seconds_of_units(units, x.contiguous(memory_format=torch.channels_last), precision, learn)

    # one pass over few images warms up, and says how many the budget allows
    few = min(batch, 4)
    seconds(prefix, few, learn=False)
    seconds(suffix, max(2, few), learn=True)
    an_image = sum(seconds(prefix, few, learn=False)) / few
    left = deadline - time.perf_counter()
    affordable = int(left / (_PASSES * (1 + _FORWARD_AND_BACK) * max(an_image, 1e-9)))
    count = max(2, min(batch, affordable))

    frozen, trained = list[list[float]](), list[list[float]]()
    started = time.perf_counter()
    while not frozen or (
        time.perf_counter() < deadline and (len(frozen) < _PASSES or time.perf_counter() < started + _LONG_ENOUGH)
    ):
        frozen.append(seconds(prefix, count, learn=False))
        trained.append(seconds(suffix, count, learn=True))
    optimizer = torch.optim.AdamW(suffix.parameters(), fused=True)
    steps = [_timed(optimizer.step, precision) for _ in range(_PASSES)]  # the first makes its state

    def an_image_of(passes: Sequence[Sequence[float]]) -> tuple[float, ...]:
        return tuple(average(of_unit) / count for of_unit in zip(*passes, strict=True))

    return UnitSeconds(an_image_of(frozen), an_image_of(trained), min(steps))


def _seconds_of_units(units: nn.Sequential, x: Tensor, precision: Precision, learn: bool) -> list[float]:
    """Seconds of each unit on a batch, forward, and backward where they `learn`."""
    seconds = []
    units.zero_grad(set_to_none=True)
    for unit in units:
        x = x.clone()  # a unit may begin with an operation in place, which no leaf of a graph allows
        wait_for(precision.device)
        start = time.perf_counter()
        with precision.autocast(), torch.set_grad_enabled(learn):
            y: Tensor = unit(x)
        if y.requires_grad:
            y.backward(torch.ones_like(y))
        wait_for(precision.device)
        seconds.append(time.perf_counter() - start)

        x = y.detach().requires_grad_(learn)
    return seconds


def _timed(run: Callable[[], object], precision: Precision) -> float:
    wait_for(precision.device)
    start = time.perf_counter()
    run()
    wait_for(precision.device)
    return time.perf_counter() - start


def time_input(preprocess: Preprocess, size: int, batch: int, precision: Precision) -> float:
    """Seconds an image to make a network's input of decoded pixels, augmented as a batch of training images is."""
    pixels = torch.zeros(min(batch, 32), size, size, 3, dtype=torch.uint8, device=precision.device)
    draws = preprocess.draws(len(pixels), seed=0, view=0)
    if draws is not None:
        draws = draws.to(precision.device)
    return min(_timed(lambda: preprocess(pixels, draws), precision) for _ in range(_PASSES)) / len(pixels)


def time_decoding(paths: Sequence[Path], transform: Transform, budget: float) -> float:
    """Seconds of a thread to decode and resize an image, of some spread over `paths`; 0 where none can be read."""
    seconds = []
    for path in paths[:: max(1, len(paths) // _DECODED)]:
        start = time.perf_counter()
        with contextlib.suppress(ValueError, OSError):  # which is said when the images are prepared
            transform(decode(path))
            seconds.append(time.perf_counter() - start)
        if sum(seconds) > budget:
            break
    return statistics.mean(seconds) if seconds else 0.0


@dataclass(frozen=True)
class Overhead:
    """Seconds that go by in a trial beside what its network computes."""

    start: float
    """From its first statement to its end, without steps."""
    step: float
    """Of each batch, of training or validation: what Lightning does, and a linear head on stored features."""


def time_overhead(accelerator: str) -> Overhead:
    """Train two trials of the smallest network on drawn images, one longer than the other.

    Args:
        accelerator: As in `trainer.accelerator`.
    """
    batches, epochs = 20, (1, 4)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for split, count in (("train", 64), ("val", 16)):
            for i in range(count):
                file = root / "images" / split / str(i % 2) / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8, 3), 3 * i, np.uint8)).save(file)
        torch.save(build_backbone("cnn5").model.state_dict(), root / "cnn5.pth")

        fixed = ["model=cnn5", override("model.weights", str(root / "cnn5.pth")), "model.freeze_depth=all"]
        fixed += [override("data.root", str(root / "images")), "data.size=8", "data.batch_size=4"]
        fixed += [override("cache.dir", str(root / "cache")), "cache.mode=on", f"trainer.accelerator={accelerator}"]
        fixed += ["logger=none", "seed=0"]

        def seconds(count: int) -> float:
            words = [*fixed, f"trainer.epochs={count}", override("out", str(root / f"{count}"))]
            return train(compose_config(words), words).total_seconds

        seconds(1)  # which fills the stores, and pays for what is done once a process
        short, long = (seconds(count) for count in epochs)

    step = max(0.0, (long - short) / ((epochs[1] - epochs[0]) * batches))
    return Overhead(max(0.0, short - batches * step), step)
