"""How long a sweep will take here, measured before its first trial. Imports no torch."""

import contextlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean
from typing import Any

from finetune.compose import compose_config
from finetune.config import digest_of, freeze_depth_number
from finetune.errors import counted
from finetune.records.ranking import BACKBONE
from finetune.records.result import Result
from finetune.report.verdict import duration
from finetune.storage.faults import disarm
from finetune.sweep.children import CONTEXT, end_with_parent, log_to, ready_server
from finetune.sweep.launch import Slot
from finetune.sweep.search import DEPTH, Params, corners, decides_store, planned_trials, size
from finetune.sweep.spec import SweepSpec
from finetune.visible_gpus import show_gpu

_PATIENCE = 90.0
"""Seconds to wait for a calibration, which takes 20 at the most where nothing else is running."""
OF_GRID = (0.6, 1.7)
"""What exploring by a race and repeats cost of the plain grid, in the sweeps of benchmarks/results/replay.json."""


@dataclass(frozen=True)
class Kind:
    """Trials of a sweep that cost the same."""

    params: Params
    """Of one of them."""
    trials: int
    epochs: int
    start: float
    """Seconds of one that are no epoch."""
    epoch: float
    """Seconds of an epoch."""

    @property
    def seconds(self) -> float:
        """Of one trial that runs to its end."""
        return self.start + self.epochs * self.epoch


@dataclass(frozen=True)
class Estimate:
    """What the trials of a sweep will take."""

    kinds: Mapping[str, Kind]
    """By `kind_of`."""
    prepare: float
    """Seconds before the first trial."""
    slots: int
    """Trials at a time."""
    cores: int
    """Of the processor that they use; 0 on GPUs."""
    machine: str
    """What it was measured on."""

    @property
    def trials(self) -> float:
        """Seconds of all trials, the file's and no repeats, each to its end."""
        return sum(kind.trials * kind.seconds for kind in self.kinds.values()) / self.slots

    def of_those_that_ran(self, trials: Iterable[tuple[Params, Result]]) -> float:
        """Seconds of trials that ran as many epochs as their records say."""
        seconds = 0.0
        for params, result in trials:
            kind = self.kinds.get(kind_of(params))
            if kind is not None and result.history:
                seconds += kind.start + len(result.history) * kind.epoch
        return seconds / self.slots

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self.prepare + self.trials

    def lines(self, races: bool) -> list[str]:
        """What a person is told of it, the first line by itself the most important.

        Args:
            races: Whether the sweep stops trials and repeats others, as it does by default.
        """
        computing = f"{self.trials * (self.cores or self.slots) / 3600:.2g} {'core' if self.cores else 'GPU'}-hours"
        whole = f"{duration(self.total)} for all {counted(self._count, 'trial')} to their end, {self.slots} at a time"
        low, high = (duration(self.prepare + share * self.trials) for share in OF_GRID)
        default = f"; about {low} to {high} with the race and the repeats" if races else ""
        before = f"{duration(self.prepare)} before the first trial"
        return [f"time: {whole}{default}", f"  {before}, then {computing} on {self.machine}", *self._of_depths]

    @property
    def _count(self) -> int:
        return sum(kind.trials for kind in self.kinds.values())

    @property
    def _of_depths(self) -> list[str]:
        """A line for each freeze depth, of each network, where several are swept."""
        depths = defaultdict[tuple[str, Any], list[Kind]](list)
        for kind in self.kinds.values():
            if DEPTH in kind.params:
                depths[str(kind.params.get(BACKBONE, "")), kind.params[DEPTH]].append(kind)

        lines = []
        for network, depth in sorted(depths, key=lambda where: (where[0], freeze_depth_number(where[1]))):
            kinds = depths[network, depth]
            trials = sum(kind.trials for kind in kinds)
            seconds = sum(kind.trials * kind.seconds for kind in kinds)
            each = f"{counted(trials, 'trial')} of {duration(seconds / trials)}"
            name = f"{network} k={depth}".strip()
            lines.append(f"  {name}: {each}, {duration(seconds / self.slots)} of that time")
        return lines


def estimate_sweep(
    spec: SweepSpec, slots: Sequence[Slot], seed: int = 0, is_left: Callable[[Params], bool] = lambda params: True
) -> Estimate | None:
    """Measure what the trials of a sweep will take; None where none is left, or where that cannot be found out.

    What is wrong with the sweep is not said here: it shows when the sweep is prepared.

    Args:
        spec: The sweep.
        slots: Where its trials run; as many processes measure at once, each with the threads of a trial.
        seed: Of the search.
        is_left: Which of its trials are still to run.
    """
    if spec.method == "bayes":
        ends = corners(spec)
        planned = ends * max(1, size(spec) // len(ends))
    else:
        planned = list(planned_trials(spec, seed))

    counts = Counter(kind_of(params) for params in planned if is_left(params))
    examples = {kind_of(params): params for params in planned}
    if not counts:
        return None

    asked = [(spec.overrides(examples[name]), count) for name, count in counts.items()]
    first = slots[0]
    measured = _measured(asked, [slot for slot in slots if slot.gpu == first.gpu])
    if not measured:
        return None

    epochs = [compose_config(overrides).trainer.epochs for overrides, _ in asked]
    kinds = {
        name: Kind(
            examples[name],
            count,
            epochs[i],
            mean(calibration.starts[i] for calibration in measured),
            mean(calibration.epochs[i] for calibration in measured),
        )
        for i, (name, count) in enumerate(counts.items())
    }
    cores = sum(slot.threads for slot in slots) if first.gpu is None else 0
    prepare = mean(calibration.prepare for calibration in measured)
    return Estimate(kinds, prepare, len(slots), cores, measured[0].machine)


def kind_of(params: Params) -> str:
    """Equal for trials that cost the same, whatever their learning rate, head or seed."""
    return digest_of({key: value for key, value in params.items() if _decides_cost(key)})


def _decides_cost(key: str) -> bool:
    if key in ("seed", "data.split_seed", "data.fold"):
        return False
    return decides_store(key) or key == "data.batch_size"


def _measured(asked: Sequence[tuple[list[str], int]], slots: Sequence[Slot]) -> list[Any]:
    """What a child of each slot measured, all at once: `Calibration`s; nothing where one of them failed."""
    ready_server()
    children, receivers = [], []
    for slot in slots:
        receiver, sender = CONTEXT.Pipe(duplex=False)
        child = CONTEXT.Process(target=_measure, args=(sender, asked, slot), daemon=True)
        child.start()
        sender.close()
        children.append(child)
        receivers.append(receiver)

    deadline = time.monotonic() + _PATIENCE
    measured = list[Any]()
    try:
        for receiver in receivers:
            with contextlib.suppress(EOFError):
                if receiver.poll(max(0.0, deadline - time.monotonic())):
                    measured.append(receiver.recv())
    finally:
        for child, receiver in zip(children, receivers, strict=True):
            receiver.close()
            child.kill()  # nothing it still does would be of use
            child.join()
    return measured if len(measured) == len(slots) else []


def _measure(sender: Connection, asked: Sequence[tuple[list[str], int]], slot: Slot) -> None:
    end_with_parent()
    disarm()
    log_to(Path(os.devnull))
    show_gpu(slot.gpu or "")

    import torch

    from finetune import train

    torch.set_num_threads(slot.threads)
    with contextlib.suppress(BrokenPipeError):
        sender.send(train.calibrate(asked))
