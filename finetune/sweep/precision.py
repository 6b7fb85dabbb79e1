"""The number format of a sweep's trials, where `trainer.precision` leaves it open. Imports no torch."""

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from finetune.compose import compose_config
from finetune.errors import Refused
from finetune.report.wandb_runs import client_errors, runs_of
from finetune.storage.system import processor_has_bf16
from finetune.sweep.children import end_with_parent, log_to
from finetune.sweep.estimate import kind_of
from finetune.sweep.launch import Slot
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
    faster = in_child(_ask, threads, "faster_on_cpu", asked)
    return replace(spec, fixed=(*spec.fixed, f"{PRECISION}={faster}")) if faster == "bf16" else spec


def format_of_agents(overrides: Sequence[str], sweep: str, slot: Slot) -> str:
    """What `trainer.precision=auto` comes to for the trials of a sweep of W&B's on this machine, given one of them.

    It is what the first trial of the sweep has in W&B, wherever that ran on a CPU, else measured. Empty where nothing
    is open: a format was chosen, or the trials have a GPU.

    Raises:
        Refused: a config that cannot be used.
    """
    if slot.gpu is not None or compose_config(overrides).trainer.precision != "auto":
        return ""
    return _of_earlier_runs(sweep) or str(
        in_child(_ask, slot.threads, "format_for", list(overrides), sweep.rpartition("/")[2])
    )


def _of_earlier_runs(sweep: str) -> str:
    """The format of the first run that says one; a GPU's runs say `auto`."""
    entity, project, name = sweep.split("/")
    with contextlib.suppress(*client_errors()):
        formats = (run.config.get(PRECISION) for run in runs_of(entity, project, name))
        return next((str(found) for found in formats if found in ("32", "bf16")), "")
    return ""


def _ask(sender: Connection, threads: int, question: str, *about: Any) -> None:
    """Send what a function of `finetune.train` answers, that may use so many threads of the CPU."""
    end_with_parent()
    log_to(Path(os.devnull))
    show_gpu("")

    import torch

    from finetune import train

    torch.set_num_threads(threads)
    try:
        sender.send(Answer(getattr(train, question)(*about)))
    except Refused as error:
        sender.send(Answer(error))
