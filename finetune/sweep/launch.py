"""Trials as processes of this machine, forked from a server that has imported torch and Lightning already.

Imports no torch itself; the functions that do run in the children.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from finetune.errors import Refused
from finetune.sweep.spec import override

LOG = "log.txt"
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["finetune.train"])


@dataclass(frozen=True)
class Slot:
    """Room for one trial at a time."""

    gpu: int | None
    """Index of its GPU, or None for a share of the CPU."""
    threads: int
    """CPU threads for it."""


def start_trial(overrides: Sequence[str], folder: Path, slot: Slot) -> ForkServerProcess:
    """Run `python -m finetune.train OVERRIDES out=FOLDER` in a fresh child; its output goes to `log.txt` there.

    The child ends when this process does, however that happens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [*overrides, override("out", str(folder))]
    child = _CONTEXT.Process(target=_run_trial, args=(arguments, folder / LOG, slot), daemon=True)
    child.start()
    return child


def check_and_prepare(configs: Sequence[Sequence[str]]) -> int:
    """Check every config, and decode the images they need, in a child; returns the number of GPUs it saw.

    Raises:
        Refused: what the first config that cannot run is refused for.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    child = _CONTEXT.Process(target=_prepare, args=([list(c) for c in configs], sender), daemon=True)
    child.start()
    sender.close()
    try:
        refusal, gpus = receiver.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"the process that prepares the data died with exit code {child.exitcode}") from None
    finally:
        receiver.close()
    child.join()
    if refusal is not None:
        raise Refused(refusal)
    return int(gpus)


def slots(gpus: int, workers: int | None) -> list[Slot]:
    """One slot a GPU; without GPUs, `workers` slots (up to 4, one a core, by default) that share the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = workers or gpus or min(cores, 4)
    threads = max(1, cores // count)
    return [Slot(i % gpus if gpus else None, threads) for i in range(count)]


def _run_trial(arguments: list[str], log: Path, slot: Slot) -> None:
    _end_with_parent()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if slot.gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = (
            visible[slot.gpu] if slot.gpu < len(visible) and visible[0] else str(slot.gpu)
        )

    import torch

    from finetune import train

    torch.set_num_threads(slot.threads)
    sys.argv = ["finetune.train", "--debug", *arguments]
    sys.exit(train.main())


def _prepare(configs: list[list[str]], sender: Connection) -> None:
    _end_with_parent()

    import torch

    from finetune import train

    refusal: str | None = None
    try:
        train.prepare(configs)
    except Refused as error:
        refusal = str(error)
    with contextlib.suppress(BrokenPipeError):
        sender.send((refusal, torch.cuda.device_count()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()
