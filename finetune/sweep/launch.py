"""Trials as processes of this machine, forked from a server that has imported torch and Lightning already.

Imports no torch itself; the functions that do run in the children.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

from finetune.compose import override
from finetune.errors import Refused
from finetune.metric import Beat

LOG = "log.txt"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["finetune.train"])
_GRACE = 5.0
"""Seconds that a trial asked to end may take before it is killed."""
_LAST = 60.0
"""Seconds that a killed one may take to be gone."""


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

    capacity: int
    """Trials at a time."""

    def start(self, trials: Sequence[tuple[Sequence[str], Path]], beat: Beat | None = None) -> Sequence[Job]:
        """Run `python -m finetune.train OVERRIDES out=FOLDER` for each; its output goes to `log.txt` in the folder.

        There are never more of them under way than `capacity`. A trial that does not `beat` keeps no checkpoint.
        """

    def wait(self, jobs: Sequence[Job]) -> None:
        """Return when one of `jobs` may have ended, or after a moment."""


def stop_jobs(launcher: Launcher, jobs: Sequence[Job]) -> None:
    """End jobs and wait until they have: asked first, killed after a grace; a cluster that is silent is left."""
    for job in jobs:
        job.terminate()
    deadline = time.monotonic() + _GRACE
    while (left := [job for job in jobs if job.exitcode is None]) and time.monotonic() < deadline:
        launcher.wait(left)
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


class LocalLauncher:
    """Children of this process, each in a slot of its own; they end when this process does, however that happens."""

    def __init__(self, slots: Sequence[Slot], environment: Mapping[str, str] | None = None, shared: str = ""):
        """`environment` is added to every child's; `shared` is what `check_and_prepare` found."""
        self.capacity, self._shared = len(slots), shared
        self._slots = slots
        self._environment = dict(environment or {})
        self._taken: dict[int, ForkServerProcess] = {}

    def start(self, trials: Sequence[tuple[Sequence[str], Path]], beat: Beat | None = None) -> list[ForkServerProcess]:
        """Fork a child for each trial, in the first free slot."""
        return [self._fork(overrides, folder, beat) for overrides, folder in trials]

    def _fork(self, overrides: Sequence[str], folder: Path, beat: Beat | None) -> ForkServerProcess:
        free = [i for i in range(self.capacity) if i not in self._taken or self._taken[i].exitcode is not None]
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [*overrides, override("out", str(folder))]
        given = (arguments, folder / LOG, self._slots[free[0]], self._environment, self._shared, beat)
        child = CONTEXT.Process(target=_run_trial, args=given, daemon=True)
        child.start()
        self._taken[free[0]] = child
        return child

    def wait(self, jobs: Sequence[Job]) -> None:
        """Return as soon as one of the children ends, or after a quarter of a second."""
        wait([job.sentinel for job in jobs if isinstance(job, ForkServerProcess)], timeout=0.25)


def local_slots(gpus: Sequence[str], workers: int | None = None, per_gpu: int = 1) -> list[Slot]:
    """Room for trials here: `per_gpu` a GPU; without GPUs one a core and four at the most; `workers` overrules both."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = workers or len(gpus) * per_gpu or min(cores, 4)
    threads = max(1, cores // count)
    return [Slot(gpus[i % len(gpus)] if gpus else None, threads) for i in range(count)]


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


def check_and_prepare(
    configs: Sequence[tuple[Sequence[str], int]],
    stores: bool = True,
    show: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[list[str], str]:
    """Check every config, and compute what their trials share, in a child.

    Args:
        configs: Overrides, and how many trials there are like them.
        stores: Whether the trials will run on this machine, so that activations can be stored for them.
        show: Called with what is being done, how much of it is, and the total.

    Returns:
        The names of the GPUs it can use, and what it found out, for the trials.

    Raises:
        Refused: what the first config that cannot run is refused for.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=_prepare, args=([(list(c), n) for c, n in configs], stores, sender), daemon=True)
    child.start()
    sender.close()
    try:
        while isinstance(message := receiver.recv(), tuple):
            show(*message)
    except EOFError:
        child.join()
        raise RuntimeError(f"the process that prepares the data died with exit code {child.exitcode}") from None
    finally:
        receiver.close()
        if child.is_alive() and sys.exc_info()[0] is not None:
            child.terminate()
    child.join()
    if message["refusal"] is not None:
        raise Refused(message["refusal"])
    count = message["gpus"]
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[:count] if visible else [str(i) for i in range(count)], message["shared"]


def _run_trial(
    arguments: list[str], log: Path, slot: Slot, environment: dict[str, str], shared: str, beat: Beat | None
) -> None:
    end_with_parent()
    log_to(log)
    os.environ.update(environment)
    if slot.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.gpu

    import torch

    from finetune import train

    torch.set_num_threads(slot.threads)
    sys.exit(train.run_trial(arguments, shared, beat))


def log_to(file: Path) -> None:
    """Send what this process prints to `file`."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _prepare(configs: list[tuple[list[str], int]], stores: bool, sender: Connection) -> None:
    end_with_parent()

    import torch

    from finetune import train

    shown, refusal, shared = 0.0, None, ""

    def show(what: str, done: int, total: int) -> None:
        nonlocal shown
        if done == total or time.monotonic() > shown + 0.1:
            shown = time.monotonic()
            sender.send((what, done, total))

    with contextlib.suppress(BrokenPipeError):
        try:
            shared = train.prepare(configs, stores, show)
        except Refused as error:
            refusal = str(error)
        sender.send({"refusal": refusal, "shared": shared, "gpus": torch.cuda.device_count()})


def end_with_parent() -> None:
    """End this child process when its parent ends, however that happens."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()
