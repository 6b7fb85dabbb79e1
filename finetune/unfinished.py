"""Where an unfinished trial goes on from: all that training had changed at the end of one batch, in `last.ckpt`.

A trial that goes on repeats that one batch, so that Lightning's loops come to its end, and then puts everything back as
it was there. So its record is that of a trial that was never stopped: to the bit, in 32-bit on a CPU.

The file is a checksum, a line of JSON, and tensors as safetensors: nothing in it is ever unpickled.
"""

import contextlib
import json
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import safetensors.torch
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from safetensors import SafetensorError
from torch import Tensor

from finetune import signals
from finetune.durable import write_durably
from finetune.errors import Interrupted
from finetune.faults import reach
from finetune.heartbeat import Heartbeat
from finetune.module import FineTune, under
from finetune.result import LAST

_SHARE = 50
"""Saving takes at most one part in so many of a trial's time."""
_SPEED = 2e8
"""Bytes a second that a disk is taken to write before the first save has shown it."""


@dataclass(frozen=True)
class Unfinished:
    """The state of a trial at the end of a batch."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    @property
    def epoch(self) -> int:
        """The one under way, from 0."""
        return int(self.values["epoch"])

    @property
    def batches(self) -> int:
        """How many of the epoch are done; at least 1."""
        return int(self.values["batches"])

    @property
    def seconds(self) -> float:
        """Spent on training so far, by all attempts."""
        return float(self.values["seconds"])

    def save(self, folder: Path, trial: Mapping[str, str]) -> None:
        """Write `last.ckpt` into `folder`, whole or not at all; `trial` names whose it is."""
        about = json.dumps({"trial": trial, **self.values}).encode()
        body = b"\n".join([about, safetensors.torch.save(self.tensors)])
        write_durably(folder / LAST, b"%08x\n" % zlib.crc32(body) + body)

    @classmethod
    def load(cls, folder: Path, trial: Mapping[str, str]) -> "Unfinished | None":
        """Read `last.ckpt` of `folder`; None, with a warning, where it is damaged or of a trial other than `trial`."""
        try:
            checksum, body = (folder / LAST).read_bytes().split(b"\n", 1)
            if checksum != b"%08x" % zlib.crc32(body):  # as text: a number can be written in more ways than one
                raise ValueError("its checksum differs")
            about, tensors = body.split(b"\n", 1)
            values = json.loads(about)
            if values["trial"] != dict(trial):
                raise ValueError("it belongs to another trial, or its data, weights or torch have changed")
            return cls(safetensors.torch.load(tensors), values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            print(f"warning: {folder / LAST} cannot be used ({error}); the trial starts over", file=sys.stderr)
            return None


class Keeper:
    """Keeps `last.ckpt` and the heartbeat up to date, goes on from the former, and ends a trial for a signal.

    A save is due `every` seconds after the last one, and later where saving is slow; it happens at the end of a batch.
    """

    def __init__(
        self, out: Path, heartbeat: Heartbeat, trial: Mapping[str, str], every: float, given: Unfinished | None = None
    ):
        """`out` is the trial's folder; `trial` names it; `given` is where it goes on from."""
        self.heartbeat = heartbeat
        self._out, self._trial, self._every = out, trial, every
        self._given = given
        self._before = 0.0 if given is None else given.seconds
        self._started = self._due = 0.0
        self._random: dict[str, Tensor] = {}

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begin with the epoch to go on with: in the hook before the first one."""
        signals.listen_again()
        self._started = time.monotonic()
        # weights, the best ones, and two moments of an optimizer
        size = 4 * sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
        self._due = self._started + self._pause(size / _SPEED)
        if self._given is not None:
            progress, done = trainer.fit_loop.epoch_progress, self._given.epoch
            for counts in (progress.current, progress.total):
                vars(counts).update(ready=done, started=done, processed=done, completed=done)
            _log_again(trainer, self._given.values["history"])

    def after_batch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save if it is time, or a signal asks for it: in the hook after a training batch.

        Raises:
            Interrupted: after a signal.
        """
        if self._given is not None:
            _put_back(self._given, trainer, module)
            self._given = None
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._random = _random_states()  # validation draws from them
        if signals.asked() is not None:
            self._stop(trainer, module, _random_states())
        if time.monotonic() >= self._due:
            self._save(trainer, module, _random_states())

    def while_validating(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Beat; after a signal, save as of the last training batch.

        Raises:
            Interrupted: after a signal.
        """
        self.heartbeat.beat()
        if signals.asked() is not None:
            self._stop(trainer, module, self._random)

    def while_testing(self) -> None:
        """Beat.

        Raises:
            Interrupted: after a signal.
        """
        self.heartbeat.beat()
        code = signals.asked()
        if code is not None:
            raise Interrupted(code)

    def _stop(self, trainer: pl.Trainer, module: pl.LightningModule, random: dict[str, Tensor]) -> None:
        with contextlib.suppress(OSError):  # the one before is there
            self._save(trainer, module, random)
        raise Interrupted(signals.asked() or 143)

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, random: dict[str, Tensor]) -> None:
        reach("checkpoint", self._out / LAST)
        started = time.monotonic()
        seconds = self._before + started - self._started
        _state_of(trainer, module, random, seconds).save(self._out, self._trial)
        now = time.monotonic()
        self._due = now + self._pause(now - started)

    def _pause(self, saving: float) -> float:
        return max(self._every, _SHARE * saving) if self._every else 0.0


def _state_of(trainer: pl.Trainer, module: pl.LightningModule, random: dict[str, Tensor], seconds: float) -> Unfinished:
    assert isinstance(module, FineTune)
    loop = trainer.fit_loop.epoch_loop
    optimizer = trainer.optimizers[0].state_dict()
    slots = {f"{i}.{name}": value for i, entry in optimizer["state"].items() for name, value in entry.items()}
    tensors, values = module.training_state()
    tensors |= {f"random.{name}": state for name, state in random.items()}
    tensors |= {
        f"optimizer.{name}": value.cpu().contiguous() for name, value in slots.items() if isinstance(value, Tensor)
    }
    values |= {
        "epoch": trainer.current_epoch,
        "batches": loop.batch_progress.current.ready,
        "steps": trainer.global_step,
        "groups": optimizer["param_groups"],
        "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "stopping": [[s.wait_count, float(s.best_score)] for s in _stopping(trainer)],
        "seconds": seconds,
    }
    return Unfinished(tensors, values)


def _put_back(state: Unfinished, trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Make everything as it was when `state` was saved, in the hook of the same batch."""
    assert isinstance(module, FineTune)
    module.load_training_state(state.tensors, state.values)
    optimizer, slots = trainer.optimizers[0], defaultdict[int, dict[str, Tensor]](dict)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in under("optimizer", state.tensors).items():
        i, _, slot = name.partition(".")
        own = parameters[int(i)].detach()
        if value.shape == own.shape:  # a fused optimizer takes the memory's order to be the parameter's
            value = torch.empty_like(own).copy_(value)
        slots[int(i)][slot] = value
    optimizer.load_state_dict({"state": dict(slots), "param_groups": state.values["groups"]})
    trainer.lr_scheduler_configs[0].scheduler.load_state_dict(state.values["schedule"])
    for stopping, (count, best) in zip(_stopping(trainer), state.values["stopping"], strict=True):
        stopping.wait_count, stopping.best_score = count, torch.tensor(best)
    loop, done, steps = trainer.fit_loop.epoch_loop, state.batches, int(state.values["steps"])
    last = done >= trainer.num_training_batches
    batches = loop.batch_progress
    vars(batches.current).update(ready=done, started=done, processed=done, completed=done - 1)  # counted after the hook
    batches.is_last_batch = last
    loop.automatic_optimization.optim_progress.optimizer.step.total.completed = steps
    loop._batches_that_stepped = steps - 1
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    fetcher.fetched, fetcher.done = done, last
    torch.set_rng_state(state.tensors["random.cpu"])
    if "random.cuda" in state.tensors:
        torch.cuda.set_rng_state(state.tensors["random.cuda"])


def _random_states() -> dict[str, Tensor]:
    """Of torch's generators; nothing else draws while a trial trains."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _stopping(trainer: pl.Trainer) -> list[EarlyStopping]:
    return [callback for callback in trainer.early_stopping_callbacks if isinstance(callback, EarlyStopping)]


def _log_again(trainer: pl.Trainer, history: list[dict[str, float]]) -> None:
    """The epochs that are done, for a file of metrics, which Lightning begins anew, and for another W&B run."""
    new = [x for x in trainer.loggers if isinstance(x, CSVLogger) or (isinstance(x, WandbLogger) and not _resumed(x))]
    best = 0.0
    for epoch in history:
        best = max(best, epoch["val/acc"])
        step = int(epoch["epoch"] + 1) * int(trainer.num_training_batches) - 1
        for logger in new:
            logger.log_metrics({**epoch, "val/acc_best": best}, step)


def _resumed(logger: WandbLogger) -> bool:
    return bool(logger.experiment.resumed)  # a run that was handed out again has them
