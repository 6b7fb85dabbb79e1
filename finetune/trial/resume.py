"""Where an unfinished trial goes on from: all that training had changed at the end of one batch, in `last.ckpt`.

A trial that goes on repeats that one batch, so that Lightning's loops come to its end, and then puts everything back as
it was there. So its record is that of a trial that was never stopped: to the bit, in 32-bit on a CPU.

The file is a checksum, a line of JSON, and tensors as safetensors: nothing in it is ever unpickled.
"""

import json
import sys
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
from safetensors import SafetensorError
from torch import Tensor

from finetune.records.layout import LAST
from finetune.storage.durable import write_durably
from finetune.trial.module import FineTune, tensors_named


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


def state_of(trainer: pl.Trainer, module: FineTune, random: dict[str, Tensor], seconds: float) -> Unfinished:
    """What training has changed by the end of a batch, to be called in the hook after it.

    Args:
        trainer: Lightning's.
        module: What it trains.
        random: `random_states` at the end of that batch.
        seconds: Spent on training so far, by all attempts.
    """
    tensors, values = module.training_state()
    tensors |= {f"random.{name}": state for name, state in random.items()}

    optimizer = trainer.optimizers[0].state_dict()
    for i, slots in optimizer["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{i}.{name}"] = value.cpu().contiguous()

    values |= {
        "epoch": trainer.current_epoch,
        "batches": trainer.fit_loop.epoch_loop.batch_progress.current.ready,
        "steps": trainer.global_step,
        "groups": optimizer["param_groups"],
        "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "scaling": trainer.precision_plugin.state_dict(),  # of losses in fp16; empty in other formats
        "stopping": [[stopping.wait_count, float(stopping.best_score)] for stopping in _early_stopping(trainer)],
        "seconds": seconds,
    }
    return Unfinished(tensors, values)


def restore(state: Unfinished, trainer: pl.Trainer, module: FineTune) -> None:
    """Make everything as it was when `state` was saved, in the hook after the same batch."""
    module.load_training_state(state.tensors, state.values)
    _restore_optimizer(trainer.optimizers[0], state)
    trainer.lr_scheduler_configs[0].scheduler.load_state_dict(state.values["schedule"])
    if scaling := state.values.get("scaling"):
        trainer.precision_plugin.load_state_dict(scaling)

    for stopping, (count, best) in zip(_early_stopping(trainer), state.values["stopping"], strict=True):
        stopping.wait_count, stopping.best_score = count, torch.tensor(best)

    _restore_position(trainer, state.batches, int(state.values["steps"]))
    torch.set_rng_state(state.tensors["random.cpu"])
    if "random.cuda" in state.tensors:
        torch.cuda.set_rng_state(state.tensors["random.cuda"])
    if "random.mps" in state.tensors:
        torch.mps.set_rng_state(state.tensors["random.mps"])


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: Unfinished) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots = defaultdict[int, dict[str, Tensor]](dict)
    for name, value in tensors_named("optimizer", state.tensors).items():
        i, _, slot = name.partition(".")
        own = parameters[int(i)].detach()
        if value.shape == own.shape:  # a fused optimizer takes the memory's order to be the parameter's
            value = torch.empty_like(own).copy_(value)
        slots[int(i)][slot] = value

    optimizer.load_state_dict({"state": dict(slots), "param_groups": state.values["groups"]})


def start_in_epoch(trainer: pl.Trainer, epoch: int) -> None:
    """Let Lightning's loop begin with `epoch`, in the hook before the first one."""
    counts = dict.fromkeys(("ready", "started", "processed", "completed"), epoch)
    progress = trainer.fit_loop.epoch_progress
    progress.current.load_state_dict(counts)
    progress.total.load_state_dict(counts)


def _restore_position(trainer: pl.Trainer, batches: int, steps: int) -> None:
    """Let Lightning's loop stand behind so many of the epoch's batches and steps in all, in the hook after a batch.

    Lightning can begin with a batch inside an epoch only from a checkpoint of its own, which is a pickle. What is set
    here is what its loops save and load themselves, but for two counts of the fetcher, which have no public name: the
    one private attribute that this project uses. tests/trial/test_resume.py says with which versions that was tried.
    """
    last = batches >= trainer.num_training_batches
    loop = trainer.fit_loop.epoch_loop

    # Lightning counts a batch as completed after the hook in which this is called
    loop.batch_progress.current.load_state_dict(
        {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
    )
    loop.batch_progress.is_last_batch = last
    loop.automatic_optimization.optim_progress.optimizer.step.total.load_state_dict({"completed": steps})
    loop.on_load_checkpoint({"_batches_that_stepped": steps - 1})

    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    fetcher.fetched, fetcher.done = batches, last


def random_states() -> dict[str, Tensor]:
    """The states of torch's generators; nothing else draws while a trial trains."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    elif torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _early_stopping(trainer: pl.Trainer) -> list[EarlyStopping]:
    return [callback for callback in trainer.early_stopping_callbacks if isinstance(callback, EarlyStopping)]
