"""Trials as processes of this machine, forked from a server that has imported torch and Lightning already.

Where nothing can be forked, the trials of each worker share a process. Imports no torch itself; the functions that do
run in the children.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.compose import override
from finetune.config import TRIALS_PER_GPU
from finetune.errors import Refused
from finetune.records.layout import LOG
from finetune.records.metric import Incumbent
from finetune.storage.system import usable_cores
from finetune.sweep.children import CONTEXT, FORKS, end_with_parent, log_to, start_child
from finetune.sweep.jobs import Job, stop_jobs
from finetune.sweep.worker import SharedTrial, Worker
from finetune.visible_gpus import show_gpu

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess as _Process
else:
    _Process = CONTEXT.Process

_WAIT = 0.25
"""Seconds from one look at the children to the next, at the most."""


class TrialProcess(_Process):
    """A trial as a child of this process, which runs nothing else."""

    waits = False
    """It runs from the start: there is no queue."""


@dataclass(frozen=True)
class Slot:
    """Room for one trial at a time."""

    gpu: str | None
    """Its name, as `usable_gpus` has it, or None for a share of the CPU."""
    threads: int
    """CPU threads for it."""
    sharing: int = 1
    """Slots of this GPU."""

    def name(self, index: int) -> str:
        """What people read of it."""
        return f"worker {index}" + ("" if self.gpu is None else f" on GPU {self.gpu}")


class LocalLauncher:
    """Children of this process, each in a slot of its own; they end when this process does, however that happens."""

    def __init__(self, slots: Sequence[Slot], environment: Mapping[str, str] | None = None, shared: str = ""):
        """`environment` is added to every child's; `shared` is what `check_and_prepare` found out."""
        self._slots = {slot.name(i): slot for i, slot in enumerate(slots)}
        self._environment, self._shared = dict(environment or {}), shared
        self._children: dict[str, TrialProcess | SharedTrial] = {}
        """The last trial of each slot."""
        self._workers: dict[str, Worker] = {}
        """The process of each slot whose trials share one."""

    @property
    def capacity(self) -> int:
        """Slots that were not set aside."""
        return len(self._slots)

    @property
    def longest_wait(self) -> float:
        """A quarter of a second."""
        return _WAIT

    def start(
        self, trials: Sequence[tuple[Sequence[str], Path]], incumbent: Incumbent | None = None
    ) -> list[TrialProcess | SharedTrial]:
        """Start each trial in the first free slot."""
        return [self._start(overrides, folder, incumbent) for overrides, folder in trials]

    def _start(self, overrides: Sequence[str], folder: Path, incumbent: Incumbent | None) -> TrialProcess | SharedTrial:
        name = self._free_slot()
        slot = self._slots[name]
        arguments = [*overrides, override("out", str(folder))]
        folder.mkdir(parents=True, exist_ok=True)

        trial = arguments, folder / LOG, slot, self._environment, self._shared, incumbent
        self._children[name] = self._fork(name, *trial) if FORKS else self._share(name, *trial)
        return self._children[name]

    def _fork(self, name: str, *trial: Any) -> TrialProcess:
        child = TrialProcess(target=_run_alone, name=name, args=trial, daemon=True)
        start_child(child)
        return child

    def _share(self, name: str, *trial: Any) -> SharedTrial:
        last = self._children.get(name)
        if last is None or last.exitcode != 0:
            self._workers[name] = Worker(name)
        return self._workers[name].run(_run_trial, *trial)

    def _free_slot(self) -> str:
        """A slot without a running trial: the first whose last trial went well, else the first."""
        exitcodes = {name: self._children[name].exitcode if name in self._children else 0 for name in self._slots}
        free = [name for name, code in exitcodes.items() if code is not None]
        return min(free, key=lambda name: exitcodes[name] != 0)

    def worker(self, job: Job) -> str:
        """The name of the slot."""
        return job.name if isinstance(job, TrialProcess | SharedTrial) else ""

    def set_aside(self, worker: str) -> None:
        """Take a slot away."""
        self._slots.pop(worker, None)

    def end(self, jobs: Sequence[Job]) -> None:
        """Nobody would watch them."""
        stop_jobs(self, jobs)

    def wait(self, jobs: Sequence[Job]) -> None:
        """Return as soon as one of the children ends."""
        wait([job.sentinel for job in jobs if isinstance(job, TrialProcess | SharedTrial)], timeout=_WAIT)


def local_slots(gpus: Sequence[str], workers: int | None = None, per_gpu: int = 1) -> list[Slot]:
    """Room for trials here: `per_gpu` a GPU; without GPUs one a core and four at the most; `workers` overrules both."""
    cores = usable_cores()
    count = workers or len(gpus) * per_gpu or min(cores, 4)
    threads = max(1, cores // count)
    gpu_of_slot = [gpus[i % len(gpus)] if gpus else None for i in range(count)]
    return [Slot(gpu, threads, gpu_of_slot.count(gpu)) for gpu in gpu_of_slot]


def per_gpu_of(text: str) -> int | None:
    """How many trials share a GPU as `--trials-per-gpu` says it; None for `auto`.

    Raises:
        Refused: it says something else.
    """
    if text == "auto":
        return None
    if not (text.isdecimal() and int(text) > 0):
        raise Refused(f"--trials-per-gpu {text}: give auto, or a number from 1")
    return int(text)


def chosen_gpus(present: Sequence[str], choice: str) -> list[str]:
    """The GPUs of a choice: `all`, or numbers such as `0,2`.

    Raises:
        Refused: one was chosen that is not there.
    """
    if choice == "all":
        return list(present)

    names = [name.strip() for name in choice.split(",")]
    for name in names:
        if name not in present:
            here = f"there are {', '.join(present)}" if present else "torch finds none here that it can use"
            raise Refused(f"--gpus {choice}: there is no GPU {name!r}; {here}")
    return names


def _run_alone(*trial: Any) -> None:
    end_with_parent()
    sys.exit(_run_trial(*trial))


def _run_trial(
    arguments: list[str], log: Path, slot: Slot, environment: dict[str, str], shared: str, incumbent: Incumbent | None
) -> int:
    log_to(log)
    os.environ.update(environment)
    show_gpu(slot.gpu or "")
    if slot.gpu is not None:
        os.environ[TRIALS_PER_GPU] = str(slot.sharing)

    import torch

    from finetune import train

    torch.set_num_threads(slot.threads)
    return train.run_trial(arguments, shared, incumbent)
