"""Several optimizer steps within one of Lightning's, where a step takes less than what Lightning does around it."""

import math
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import nn

from finetune.data.batches import PixelData
from finetune.network.network import Network

_MOST = 32
"""With so many, what Lightning does is a tenth of a step that takes a fifth of a millisecond."""
_SECONDS = 0.1
"""That they may take together: signals, the heartbeat and saves wait for them."""
_SLOWEST = 5e9
"""Floating-point operations a second that one core does at the least."""
_SECONDS_ON_GPU = 1.0
_SLOWEST_GPU = 4e12
"""The same of a GPU, which most are far above: there more is trained at once where it is done sooner than Lightning."""


@dataclass(frozen=True)
class Steps:
    """What a training batch is made of: parts, each of which is one optimizer step."""

    images: int
    """Of a step; the last one of an epoch may have fewer."""
    of_epoch: int
    """How many there are."""
    at_once: int
    """Of a training batch; the last one of an epoch may have fewer."""

    def in_batch(self, images: int) -> int:
        """How many a batch of so many images makes."""
        return -(-images // self.images)


def steps_of(network: Network, batches: PixelData, device: torch.device) -> Steps | None:
    """Those of a head that trains alone, on stored features, and on an NVIDIA or AMD GPU of all that is short.

    None elsewhere, where a batch is a step.
    """
    if "train" not in batches.stored:
        return None

    at_once = steps_at_once(network.head, batches.batch_size)
    if list(network.suffix.children()):
        positions = math.prod(batches.stored["train"][0].shape[1:-1])
        at_once = _steps_on_gpu(network, positions, batches.batch_size) if device.type == "cuda" else 1
        if at_once == 1:
            return None
    return Steps(batches.batch_size, batches.steps_of_epoch, at_once)


def _steps_on_gpu(network: Network, positions: int, batch_size: int) -> int:
    """How many steps of layers behind a cut to take at once; no layer has more `positions` than the cut."""
    weights = sum(p.numel() for part in (network.suffix, network.head) for p in part.parameters())
    operations = 6 * batch_size * weights * positions
    return max(1, min(_MOST, int(_SECONDS_ON_GPU * _SLOWEST_GPU / operations)))


def steps_at_once(head: nn.Module, batch_size: int) -> int:
    """How many steps of a head that trains alone, on stored features, to take at once.

    It follows from the settings alone, not from a clock, so that a trial goes on anywhere as it began.

    >>> steps_at_once(nn.Linear(2048, 10), batch_size=32), steps_at_once(nn.Linear(2048, 8192), batch_size=32)
    (32, 1)
    """
    weights = sum(parameter.numel() for parameter in head.parameters())
    operations = 6 * batch_size * weights  # a product and a sum for each weight: forward, and twice backward
    return max(1, min(_MOST, int(_SECONDS * _SLOWEST / operations)))


def count_steps(trainer: pl.Trainer, more: int) -> None:
    """Let Lightning count steps that it did not take itself, in the hook after a batch; loggers go by these counts."""
    loop = trainer.fit_loop.epoch_loop
    loop.automatic_optimization.optim_progress.optimizer.step.total.completed += more
    loop.on_load_checkpoint({name: count + more for name, count in loop.on_save_checkpoint().items()})
