"""The number format of a sweep's trials, where `trainer.precision` leaves it open. Imports no torch."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from finetune.compose import compose_config
from finetune.errors import Refused
from finetune.storage.system import processor_has_bf16
from finetune.sweep.children import end_with_parent, log_to
from finetune.sweep.estimate import kind_of
from finetune.sweep.prepare import Answer, in_child
from finetune.sweep.search import corners, planned_trials
from finetune.sweep.spec import SweepSpec
from finetune.visible_gpus import show_gpu

PRECISION = "trainer.precision"


def with_measured_precision(spec: SweepSpec, seed: int, threads: int) -> SweepSpec:
    """A new sweep with the faster number format among its fixed settings, where that is bf16 and nobody chose another.

    So the format is part of what the sweep and its trials are, wherever they are continued. Where bf16 is not faster,
    or the processor lacks it, the sweep stays as it is.

    Args:
        spec: The sweep, whose trials will run on the processor of this machine.
        seed: Of its search.
        threads: Of a trial.

    Raises:
        Refused: what the trials that were asked about are refused for.
    """
    if PRECISION in spec.parameters or not processor_has_bf16():
        return spec

    planned = corners(spec) if spec.method == "bayes" else list(planned_trials(spec, seed))
    counts = Counter(kind_of(params) for params in planned)
    examples = {kind_of(params): spec.overrides(params) for params in planned}
    if any(compose_config(overrides).trainer.precision != "auto" for overrides in examples.values()):
        return spec

    asked = [(examples[name], count) for name, count in counts.items()]
    faster = in_child(_measure, asked, threads)
    return replace(spec, fixed=(*spec.fixed, f"{PRECISION}={faster}")) if faster == "bf16" else spec


def _measure(sender: Connection, asked: Sequence[tuple[list[str], int]], threads: int) -> None:
    end_with_parent()
    log_to(Path(os.devnull))
    show_gpu("")

    import torch

    from finetune import train

    torch.set_num_threads(threads)
    try:
        sender.send(Answer(train.faster_on_cpu(asked)))
    except Refused as error:
        sender.send(Answer(error))
