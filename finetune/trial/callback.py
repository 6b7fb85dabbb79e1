"""What a trial does beside Lightning's loop: a sign of progress, saves, stops, a line an epoch."""

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
from finetune.records.correct import effective_images
from finetune.records.layout import HEARTBEAT, LAST, PROGRESS, STOP
from finetune.records.metric import PLAIN, with_best
from finetune.records.result import VAL_IMAGES
from finetune.storage.durable import write_durably
from finetune.storage.faults import reach
from finetune.trial import signals
from finetune.trial.module import FineTune
from finetune.trial.resume import Unfinished, random_states, restore, start_in_epoch, state_of
from finetune.trial.steps import count_steps

_HEARTBEAT_SECONDS = 1.0
"""From one write of the heartbeat to the next, at the least."""
_SAVING_SHARE = 1 / 50
"""Share of a trial's time that saving its state may take."""
_DISK_SPEED = 2e8
"""Bytes a second that a disk is taken to write before the first save has shown it."""


class Heartbeat:
    """`heartbeat` in a trial's folder: how many batches, and steps of preparation, are behind it.

    It is no durable file, and no clock is in it: a watcher compares it with what it saw before. Nothing is written
    where the folder is not there.
    """

    def __init__(self, folder: Path):
        """`folder` is the trial's."""
        self._file = folder / HEARTBEAT
        self._count = 0
        self._next_write = 0.0

    def count(self) -> None:
        """Count one more; the file is written at most once a second."""
        self._count += 1
        now = time.monotonic()
        if now < self._next_write:
            return

        self._next_write = now + _HEARTBEAT_SECONDS
        with contextlib.suppress(OSError):  # a full disk ends no trial here
            self._file.write_text(f"{self._count}\n")

    def end(self) -> None:
        """Remove the file."""
        self._file.unlink(missing_ok=True)


class TrialCallback(Callback):
    """Everything of ours in Lightning's loop, in one callback, for Lightning takes a few microseconds a step for each.

    It prints a line an epoch and writes the epochs so far into `progress.json`, for whoever watches the sweep. It keeps
    the heartbeat and `last.ckpt` up to date, and goes on from the latter. It ends the trial when the watcher leaves a
    file named `stop`, or when a signal asks for it, at the end of a batch.
    """

    def __init__(
        self,
        out: Path,
        heartbeat: Heartbeat,
        identity: Mapping[str, str],
        save_every: float,
        unfinished: Unfinished | None = None,
    ):
        """
        Args:
            out: The trial's folder.
            heartbeat: In it.
            identity: What an attempt must have in common with this trial to go on with it.
            save_every: Seconds from one save to the next, more where saving is slow; 0 saves after each batch.
            unfinished: The state to go on from.
        """
        self._out, self._heartbeat, self._identity = out, heartbeat, identity
        self._save_every = save_every
        self._unfinished = unfinished
        self._earlier_seconds = 0.0 if unfinished is None else unfinished.seconds
        self._started = self._next_save = 0.0
        self._random_before_validation: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the epoch to go on with."""
        signals.listen_again()
        self._started = time.monotonic()
        # weights, the best ones, and two moments of an optimizer
        size = 4 * sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
        self._next_save = self._started + self._pause(size / _DISK_SPEED)

        if self._unfinished is not None:
            start_in_epoch(trainer, self._unfinished.epoch)
            assert isinstance(pl_module, FineTune)
            _log_again(trainer, pl_module, self._unfinished.values["history"])

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """End here if the sweep says so.

        Raises:
            Pruned: with the sweep's reason.
        """
        reach("step", self._out)
        self._heartbeat.count()
        stop = self._out / STOP
        if stop.exists():
            raise Pruned(stop.read_text(encoding="utf-8"))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Save the trial's state if it is time, or a signal asks for it.

        Raises:
            Interrupted: after a signal.
        """
        assert isinstance(pl_module, FineTune)
        if self._unfinished is not None:
            restore(self._unfinished, trainer, pl_module)
            self._unfinished = None
        elif pl_module.steps is not None:
            count_steps(trainer, pl_module.steps.in_batch(len(batch[1])) - 1)

        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._random_before_validation = random_states()  # validation draws from them
        if signals.requested() is not None:
            self._save_and_stop(trainer, pl_module, random_states())
        if time.monotonic() >= self._next_save:
            self._save(trainer, pl_module, random_states())

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """After a signal, save as of the last training batch and end.

        Raises:
            Interrupted: after a signal.
        """
        assert isinstance(pl_module, FineTune)
        self._heartbeat.count()
        if signals.requested() is not None:
            self._save_and_stop(trainer, pl_module, self._random_before_validation)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, just before the module takes note of the epoch."""
        self.on_validation_batch_start(trainer, pl_module)

    def on_test_batch_start(self, *_: Any) -> None:
        """End here if a signal asked for it.

        Raises:
            Interrupted: after a signal.
        """
        self._heartbeat.count()
        code = signals.requested()
        if code is not None:
            raise Interrupted(code)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print and note the epoch that ended; the module has recorded it already."""
        assert isinstance(pl_module, FineTune)
        epoch = pl_module.history[-1]
        done, total = int(epoch["epoch"]) + 1, trainer.max_epochs
        names = dict.fromkeys(("train/loss", "train/acc", "val/loss", "val/acc", pl_module.metric))
        figures = (f"{name} {epoch[name]:.3f}" for name in names)
        assert pl_module.best is not None
        best = pl_module.best[pl_module.metric]
        print(f"epoch {done}/{total}  {'  '.join(figures)}  best {best:.3f}", flush=True)

        assert trainer.val_dataloaders is not None
        labels = trainer.val_dataloaders.dataset.labels
        images = len(labels) if pl_module.metric in PLAIN else effective_images(labels)
        progress = {"epochs": total, "history": pl_module.history, "images": images}
        write_durably(self._out / PROGRESS, json.dumps(progress).encode())
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.summary[VAL_IMAGES] = images  # what a scheduler needs besides the metrics

    def _save_and_stop(self, trainer: pl.Trainer, module: FineTune, random: dict[str, Tensor]) -> None:
        with contextlib.suppress(OSError):  # the save before this one is there
            self._save(trainer, module, random)
        raise Interrupted(signals.requested() or 143)

    def _save(self, trainer: pl.Trainer, module: FineTune, random: dict[str, Tensor]) -> None:
        reach("checkpoint", self._out / LAST)
        started = time.monotonic()
        seconds = self._earlier_seconds + started - self._started
        state_of(trainer, module, random, seconds).save(self._out, self._identity)

        now = time.monotonic()
        self._next_save = now + self._pause(now - started)

    def _pause(self, saving: float) -> float:
        """Seconds until the next save, where one takes `saving`."""
        return max(self._save_every, saving / _SAVING_SHARE) if self._save_every else 0.0


def _log_again(trainer: pl.Trainer, module: FineTune, history: list[dict[str, float]]) -> None:
    """Log the epochs that are done, to a file of metrics, which Lightning begins anew, and to another W&B run."""
    loggers = [
        logger
        for logger in trainer.loggers
        if isinstance(logger, CSVLogger) or (isinstance(logger, WandbLogger) and not _has_history(logger))
    ]
    steps = module.steps.of_epoch if module.steps else int(trainer.num_training_batches)
    for epoch in with_best(history, module.metric):
        step = int(epoch["epoch"] + 1) * steps - 1
        for logger in loggers:
            logger.log_metrics(dict(epoch), step)


def _has_history(logger: WandbLogger) -> bool:
    return bool(logger.experiment.resumed)  # a run that was handed out again
