"""What a trial does beside Lightning's loop: heartbeat, saves, stops, a line an epoch."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch import Tensor

from finetune.errors import Interrupted, Pruned
from finetune.records.layout import HEARTBEAT, LAST, PROGRESS, STOP
from finetune.storage.durable import write_durably
from finetune.storage.faults import reach
from finetune.trial import signals
from finetune.trial.module import FineTune
from finetune.trial.resume import Unfinished, _put_back, _random_states, _state_of

_SECONDS = 1.0
"""From one write to the next, at the least."""


class Heartbeat:
    """`heartbeat` in a trial's folder: how many batches, and steps of preparation, are behind it.

    It is no durable file, and no clock is in it: a watcher compares it with what it saw before. Nothing is written
    where the folder is not there.
    """

    def __init__(self, folder: Path):
        """`folder` is the trial's."""
        self._file, self._count, self._next = folder / HEARTBEAT, 0, 0.0

    def beat(self) -> None:
        """Count one more; the file is written at most once a second."""
        self._count += 1
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SECONDS
            with contextlib.suppress(OSError):  # a full disk ends no trial here
                self._file.write_text(f"{self._count}\n")

    def end(self) -> None:
        """Remove the file."""
        self._file.unlink(missing_ok=True)


_SHARE = 50
"""Saving takes at most one part in so many of a trial's time."""
_SPEED = 2e8
"""Bytes a second that a disk is taken to write before the first save has shown it."""


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


class EpochLines(Callback):
    """One printed line an epoch, and the epochs so far in `progress.json` for whoever watches the sweep.

    Ends the trial when the watcher leaves a file named `stop`, or a signal asks for it. It is the trial's only callback
    of ours, for Lightning takes a few microseconds a step for each.
    """

    def __init__(self, out: Path, keeper: Keeper):
        """`out` is the trial's folder."""
        self.out, self.keeper = out, keeper

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on from where an earlier attempt stopped."""
        self.keeper.begin(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """End here if the sweep says so.

        Raises:
            Pruned: with the sweep's reason.
        """
        reach("step", self.out)
        self.keeper.heartbeat.beat()
        stop = self.out / STOP
        if stop.exists():
            raise Pruned(stop.read_text())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save the trial's state when it is time to."""
        self.keeper.after_batch(trainer, pl_module)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save and end here if a signal asked for it."""
        self.keeper.while_validating(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, just before the module takes note of the epoch."""
        self.keeper.while_validating(trainer, pl_module)

    def on_test_batch_start(self, *_: Any) -> None:
        """End here if a signal asked for it."""
        self.keeper.while_testing()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print and note the epoch that ended; the module has recorded it already."""
        assert isinstance(pl_module, FineTune)
        epoch = pl_module.history[-1]
        done, total = int(epoch["epoch"]) + 1, trainer.max_epochs
        figures = (f"{name} {epoch[name]:.3f}" for name in ("train/loss", "train/acc", "val/loss", "val/acc"))
        print(f"epoch {done}/{total}  {'  '.join(figures)}  best {pl_module.best_acc:.3f}", flush=True)
        assert trainer.val_dataloaders is not None
        images = len(trainer.val_dataloaders.dataset)
        state = {"epochs": total, "history": pl_module.history, "images": images}
        write_durably(self.out / PROGRESS, json.dumps(state).encode())
