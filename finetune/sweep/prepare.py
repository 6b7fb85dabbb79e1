"""Before the first trial: every config checked, and what the trials share computed, in a child. Imports no torch."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from finetune.errors import Refused
from finetune.storage.parallel import Progress, no_progress
from finetune.sweep.attempts import RETRIES
from finetune.sweep.children import CONTEXT, end_with_parent, start_child
from finetune.visible_gpus import show_gpu, visible_gpus


@dataclass(frozen=True)
class Prepared:
    """What was found out."""

    shared: str
    """For the trials."""
    datasets: tuple[str, ...]
    """Digests of the images and their labels: `DATASET_SPLIT`, each as a trial's record has them."""
    weights: tuple[str, ...]
    """Digests of the pretrained weights, as a trial's record has them."""
    stores: tuple[Path, ...]
    """Folders of the stores that trials will read."""
    out_of_memory: bool = False
    """Some stores were not made, for want of memory on the GPU."""
    trials_per_gpu: int = 1
    """How many trials can share a GPU."""


def check_and_prepare(
    configs: Sequence[tuple[Sequence[str], int]],
    stores: bool = True,
    show: Progress = no_progress,
    gpus: Sequence[str] = (),
    precision: str = "",
) -> Prepared:
    """Check every config, and compute what their trials share, in a child; one that dies is started again.

    Args:
        configs: Overrides, and how many trials there are like them.
        stores: Whether the trials will run on this machine, so that activations can be stored for them.
        show: Told of the progress.
        gpus: Those to work on, as `usable_gpus` names them: the first that has enough memory; none works on the CPU.
        precision: What `trainer.precision=auto` comes to, where that was decided.

    Raises:
        Refused: what the first config that cannot run is refused for.
    """
    for gpu in gpus or ("",):
        prepared: Prepared = in_child(_prepare, [(list(c), n) for c, n in configs], stores, gpu, precision, show=show)
        if not prepared.out_of_memory:
            break
    return prepared


def usable_gpus() -> tuple[str, ...]:
    """The GPUs of this machine that can be used, as `CUDA_VISIBLE_DEVICES` names them; the others get a warning each.

    Found out in a child, for CUDA begins with it.
    """
    names_and_troubles: tuple[tuple[str, ...], tuple[str, ...]] = in_child(_try_gpus)
    names, troubles = names_and_troubles
    for trouble in troubles:
        print(f"warning: {trouble}", file=sys.stderr, flush=True)
    return names


class Answer:
    """What a child's work came to, as it is sent."""

    def __init__(self, value: Any):
        self.value = value


def in_child(work: Callable[..., None], *arguments: Any, show: Progress = no_progress) -> Any:
    """What `work` answers in a child, which sends an `Answer`, and may send what `show` is told before.

    Raises:
        Refused: the answer is why it refuses.
        RuntimeError: the child died, and died again.
    """
    for _ in range(RETRIES + 1):
        exitcode, answer = _ask_child(work, arguments, show)
        if answer is None:
            continue
        if isinstance(answer.value, Refused):
            raise answer.value
        return answer.value
    raise RuntimeError(f"the process that prepares the data died {RETRIES + 1} times, with exit code {exitcode}")


def _ask_child(work: Callable[..., None], arguments: Sequence[Any], show: Progress) -> tuple[int | None, Answer | None]:
    """A child's exit code, and its answer, or None where it died."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=work, args=(sender, *arguments), daemon=True)
    start_child(child)
    sender.close()
    answer: Answer | None = None
    try:
        while not isinstance(message := receiver.recv(), Answer):
            show(*message)
        answer = message
    except EOFError:
        pass
    finally:
        receiver.close()
        if child.is_alive() and sys.exc_info()[0] is not None:
            child.terminate()
    child.join()
    return child.exitcode, answer


def _prepare(sender: Connection, configs: list[tuple[list[str], int]], stores: bool, gpu: str, precision: str) -> None:
    end_with_parent()
    show_gpu(gpu)

    from finetune import train

    shown = 0.0

    def show(what: str, done: int, total: int) -> None:
        nonlocal shown
        if done == total or time.monotonic() > shown + 0.1:
            shown = time.monotonic()
            sender.send((what, done, total))

    outcome: Prepared | Refused
    with contextlib.suppress(BrokenPipeError):
        try:
            shared = train.prepare(configs, stores, show, precision)
            folders = tuple(map(Path, shared.folders))
            outcome = Prepared(
                shared.to_text(),
                shared.datasets,
                shared.weight_digests,
                folders,
                shared.gpu_out_of_memory,
                shared.trials_per_gpu,
            )
        except Refused as error:
            outcome = error
        sender.send(Answer(outcome))


def _try_gpus(sender: Connection) -> None:
    end_with_parent()

    from finetune.gpu import try_gpus

    troubles = try_gpus()
    names = gpu_names(visible_gpus(), troubles)
    usable = tuple(name for name, trouble in names.items() if not trouble)
    with contextlib.suppress(BrokenPipeError):
        sender.send(Answer((usable, tuple(filter(None, troubles.values())))))


def gpu_names(visible: str, troubles: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with each GPU, by what `CUDA_VISIBLE_DEVICES` calls it.

    Args:
        visible: What the variable says now.
        troubles: What is wrong with each that a process sees, by PyTorch's name; of several MIG instances it sees one.
    """
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if not names or "mps" in troubles:
        names = [name.removeprefix("cuda:") for name in troubles]
    if names and troubles and names[0].startswith("MIG-"):
        return dict.fromkeys(names, troubles["cuda:0"])
    return dict(zip(names, troubles.values(), strict=False))
