"""Trials as processes of this machine, forked from a server that has imported torch and Lightning already.

Imports no torch itself; the functions that do run in the children.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

from finetune.compose import override
from finetune.config import TRIALS_PER_GPU
from finetune.errors import Refused
from finetune.records.layout import LOG
from finetune.records.metric import Incumbent
from finetune.sweep.children import CONTEXT, end_with_parent, log_to, ready_server

_GRACE = 8.0
"""Seconds that a trial asked to end may take before it is killed."""
_LAST = 60.0
"""Seconds that a killed one may take to be gone."""
_WAIT = 0.25
"""Seconds from one look at the children to the next, at the most."""


class Job(Protocol):
    """A trial that was started somewhere."""

    @property
    def exitcode(self) -> int | None:
        """None while it runs; negative for the signal that killed it."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


class Launcher(Protocol):
    """Where trials run."""

    @property
    def capacity(self) -> int:
        """Trials at a time."""

    @property
    def longest_wait(self) -> float:
        """Seconds after which `wait` returns in any case."""

    def start(self, trials: Sequence[tuple[Sequence[str], Path]], incumbent: Incumbent | None = None) -> Sequence[Job]:
        """Run `python -m finetune.train OVERRIDES out=FOLDER` for each; its output goes to `log.txt` in the folder.

        There are never more of them under way than `capacity`. A trial that is not better than
        the incumbent keeps no checkpoint.
        """

    def wait(self, jobs: Sequence[Job]) -> None:
        """Return when one of `jobs` may have ended, or after a moment."""

    def worker(self, job: Job) -> str:
        """The place that a job runs in, or ran in; empty where places are not ours to choose."""

    def set_aside(self, worker: str) -> None:
        """Start nothing in that place any more."""


def stop_jobs(launcher: Launcher, jobs: Sequence[Job]) -> None:
    """End jobs and wait until they have: asked first, killed after a grace; a cluster that is silent is left."""
    left = list(jobs)
    try:
        for job in jobs:
            job.terminate()
        deadline = time.monotonic() + _GRACE
        while (left := [job for job in jobs if job.exitcode is None]) and time.monotonic() < deadline:
            launcher.wait(left)
    finally:  # a second Ctrl-C is not to wait
        for job in left:
            job.kill()
    deadline = time.monotonic() + _LAST
    while any(job.exitcode is None for job in left) and time.monotonic() < deadline:
        launcher.wait(left)


@dataclass(frozen=True)
class Slot:
    """Room for one trial at a time."""

    gpu: str | None
    """What `CUDA_VISIBLE_DEVICES` is to say, or None for a share of the CPU."""
    threads: int
    """CPU threads for it."""
    sharing: int = 1
    """Slots of this GPU."""

    def name(self, place: int) -> str:
        """For people."""
        return f"worker {place}" + ("" if self.gpu is None else f" on GPU {self.gpu}")


class LocalLauncher:
    """Children of this process, each in a slot of its own; they end when this process does, however that happens."""

    def __init__(self, slots: Sequence[Slot], environment: Mapping[str, str] | None = None, shared: str = ""):
        """`environment` is added to every child's; `shared` is what `check_and_prepare` found."""
        self._slots = {slot.name(i): slot for i, slot in enumerate(slots)}
        self._shared, self._environment = shared, dict(environment or {})
        self._taken: dict[str, ForkServerProcess] = {}

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
    ) -> list[ForkServerProcess]:
        """Fork a child for each trial, in the first free slot."""
        return [self._fork(overrides, folder, incumbent) for overrides, folder in trials]

    def _fork(self, overrides: Sequence[str], folder: Path, incumbent: Incumbent | None) -> ForkServerProcess:
        ended = {n: self._taken[n].exitcode if n in self._taken else 0 for n in self._slots}
        free = min((n for n in self._slots if ended[n] is not None), key=lambda n: ended[n] != 0)  # the last went well
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [*overrides, override("out", str(folder))]
        given = (arguments, folder / LOG, self._slots[free], self._environment, self._shared, incumbent)
        ready_server()
        child = CONTEXT.Process(target=_run_trial, name=free, args=given, daemon=True)
        child.start()
        self._taken[free] = child
        return child

    def worker(self, job: Job) -> str:
        """The name of the slot."""
        return job.name if isinstance(job, ForkServerProcess) else ""

    def set_aside(self, worker: str) -> None:
        """Take a slot away."""
        self._slots.pop(worker, None)

    def wait(self, jobs: Sequence[Job]) -> None:
        """Return as soon as one of the children ends."""
        wait([job.sentinel for job in jobs if isinstance(job, ForkServerProcess)], timeout=_WAIT)


def local_slots(gpus: Sequence[str], workers: int | None = None, per_gpu: int = 1) -> list[Slot]:
    """Room for trials here: `per_gpu` a GPU; without GPUs one a core and four at the most; `workers` overrules both."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = workers or len(gpus) * per_gpu or min(cores, 4)
    threads = max(1, cores // count)
    places = [gpus[i % len(gpus)] if gpus else None for i in range(count)]
    return [Slot(gpu, threads, places.count(gpu)) for gpu in places]


def chosen_gpus(found: Sequence[str], asked: str) -> list[str]:
    """The GPUs to use: `all`, or numbers such as `0,2`.

    Raises:
        Refused: one was asked for that is not there.
    """
    if asked == "all":
        return list(found)
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in found:
            here = f"there are {', '.join(found)}" if found else "torch finds none here"
            raise Refused(f"--gpus {asked}: there is no GPU {name!r}; {here}")
    return names


def _run_trial(
    arguments: list[str], log: Path, slot: Slot, environment: dict[str, str], shared: str, incumbent: Incumbent | None
) -> None:
    end_with_parent()
    log_to(log)
    os.environ.update(environment)
    if slot.gpu is not None:
        os.environ |= {"CUDA_VISIBLE_DEVICES": slot.gpu, TRIALS_PER_GPU: str(slot.sharing)}

    import torch

    from finetune import train

    torch.set_num_threads(slot.threads)
    sys.exit(train.run_trial(arguments, shared, incumbent))
