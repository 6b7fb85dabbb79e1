"""Before the first trial: every config checked, and what the trials share computed, in a child. Imports no torch."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from finetune.errors import Refused
from finetune.storage.parallel import Progress, no_progress
from finetune.sweep.attempts import RETRIES
from finetune.sweep.children import CONTEXT, end_with_parent, ready_server


@dataclass(frozen=True)
class Prepared:
    """What was found out."""

    gpus: tuple[str, ...]
    """Names of those that can be used."""
    shared: str
    """For the trials."""
    datasets: tuple[str, ...]
    """Digests of the images and their labels: `DATASET_SPLIT`, each as a trial's record has them."""
    weights: tuple[str, ...]
    """Digests of the pretrained weights, as a trial's record has them."""
    stores: tuple[Path, ...]
    """Folders of the stores that trials will read."""


def check_and_prepare(
    configs: Sequence[tuple[Sequence[str], int]],
    stores: bool = True,
    show: Progress = no_progress,
    gpu: str | None = None,
) -> Prepared:
    """Check every config, and compute what their trials share, in a child; one that dies is started again.

    Args:
        configs: Overrides, and how many trials there are like them.
        stores: Whether the trials will run on this machine, so that activations can be stored for them.
        show: Told of the progress.
        gpu: The one to work on, as `CUDA_VISIBLE_DEVICES` names it; by default the first.

    Raises:
        Refused: what the first config that cannot run is refused for.
    """
    for _ in range(RETRIES + 1):
        exitcode, outcome = _in_child(configs, stores, show, gpu)
        if isinstance(outcome, Prepared):
            return outcome
        if isinstance(outcome, str):
            raise Refused(outcome)
    raise RuntimeError(f"the process that prepares the data died {RETRIES + 1} times, with exit code {exitcode}")


def _in_child(
    configs: Sequence[tuple[Sequence[str], int]], stores: bool, show: Progress, gpu: str | None
) -> tuple[int | None, Prepared | str | None]:
    """The child's exit code; and what it found out, or why it refuses, or nothing where it died."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    arguments = [(list(c), n) for c, n in configs], stores, sender, gpu
    ready_server()
    child = CONTEXT.Process(target=_prepare, args=arguments, daemon=True)
    child.start()
    sender.close()
    outcome: Prepared | str | None = None
    try:
        while isinstance(message := receiver.recv(), tuple):
            show(*message)
        outcome = message
    except EOFError:
        pass
    finally:
        receiver.close()
        if child.is_alive() and sys.exc_info()[0] is not None:
            child.terminate()
    child.join()
    return child.exitcode, outcome


def _prepare(configs: list[tuple[list[str], int]], stores: bool, sender: Connection, gpu: str | None) -> None:
    end_with_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu

    import torch

    from finetune import train

    shown = 0.0

    def show(what: str, done: int, total: int) -> None:
        nonlocal shown
        if done == total or time.monotonic() > shown + 0.1:
            shown = time.monotonic()
            sender.send((what, done, total))

    outcome: Prepared | str
    with contextlib.suppress(BrokenPipeError):
        try:
            shared = train.prepare(configs, stores, show)
            gpus = _gpu_names(os.environ.get("CUDA_VISIBLE_DEVICES", ""), torch.cuda.device_count())
            folders = tuple(map(Path, shared.folders))
            outcome = Prepared(gpus, shared.to_text(), shared.datasets, shared.weight_digests, folders)
        except Refused as error:
            outcome = str(error)
        sender.send(outcome)


def _gpu_names(visible: str, count: int) -> tuple[str, ...]:
    """What `CUDA_VISIBLE_DEVICES` calls the `count` GPUs that a process sees; of several MIG instances it sees one."""
    names = [name.strip() for name in visible.split(",") if name.strip()] or [str(i) for i in range(count)]
    return tuple(names if count and names[0].startswith("MIG-") else names[:count])
