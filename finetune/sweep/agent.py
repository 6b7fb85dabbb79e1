"""W&B agents on this machine, one for each trial at a time, whose trials are forked children. Imports no torch itself.

`wandb agent` starts a cold process for every trial; these agents speak to the same server through the same client.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from types import FrameType

import yaml

from finetune.compose import compose_config, override
from finetune.config import trial_key
from finetune.errors import Refused
from finetune.records.layout import LOG, STOP, TRIALS
from finetune.records.result import STOPPED_BY_WANDB
from finetune.storage.durable import write_durably
from finetune.sweep.children import CONTEXT, end_with_parent, start_child
from finetune.sweep.goal import refuse_wrong_goal
from finetune.sweep.jobs import stop_jobs
from finetune.sweep.launch import LocalLauncher, Slot, chosen_gpus, local_slots
from finetune.sweep.precision import format_of_agents
from finetune.sweep.prepare import check_and_prepare, usable_gpus
from finetune.sweep.spec import command_overrides
from finetune.sweep.wandb_sweep import local_name, open_sweep

_PATIENCE = 20.0
"""Seconds that a trial W&B stopped may take to end by itself; the server waits 30."""


def run_agents(
    sweep: str, gpus: str = "all", workers: int | None = None, trials_per_gpu: int = 1, count: int | None = None
) -> Path:
    """Run agents for a W&B sweep until it has no trial left.

    Args:
        sweep: `ENTITY/PROJECT/ID`.
        gpus: `all`, or numbers such as `0,2`.
        workers: Agents; by default one a GPU, else one a core and four at the most.
        trials_per_gpu: Agents that share a GPU.
        count: Trials of each agent at the most.

    Returns:
        The folder with the records of the trials that ran here, as `finetune sweep` leaves them.

    Raises:
        Refused: no such sweep, or its command does not run our trials.
    """
    config = open_sweep(sweep).config
    fixed = command_overrides(sweep, config.get("command", []))
    if not fixed and not config.get("command"):
        raise Refused(f"{sweep} has no command; make it with `wandb sweep` from a file like those in sweeps/")
    refuse_wrong_goal(sweep, config.get("metric") or {})
    folder = Path("runs") / local_name(config, sweep)
    slots = local_slots(chosen_gpus(usable_gpus(), gpus), workers, trials_per_gpu)
    agents = [
        CONTEXT.Process(name=f"agent {i}", target=_agent, args=(sweep, fixed, folder, slot, count))
        for i, slot in enumerate(slots)
    ]
    try:
        for agent in agents:
            start_child(agent)
        for agent in agents:
            agent.join()
    finally:
        for agent in agents:
            if agent.is_alive():
                agent.terminate()
        for agent in agents:
            agent.join()
    return folder


def _agent(sweep: str, fixed: tuple[str, ...], folder: Path, slot: Slot, count: int | None) -> None:
    end_with_parent()
    import wandb

    leaving = threading.Event()

    def leave(number: int, frame: FrameType | None) -> None:
        leaving.set()
        raise KeyboardInterrupt

    threading.excepthook = _leave_out_finalizer
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    entity, project, _ = sweep.split("/")
    os.environ.setdefault("WANDB_SILENT", "true")
    shared = ""

    def run() -> None:
        nonlocal shared
        words = _asked_for(fixed)
        if not shared:
            with contextlib.suppress(Refused, RuntimeError):  # the trial itself will say so
                precision = format_of_agents(words, sweep, slot)
                shared = check_and_prepare([(words, 1)], gpus=[slot.gpu or ""], precision=precision).shared
        _trial(words, len(fixed), folder, slot, leaving, shared)

    wandb.agent(sweep, run, entity=entity, project=project, count=count)


def _leave_out_finalizer(failure: threading.ExceptHookArgs) -> None:
    """Print what failed in a thread, but not that wandb's clean-up between two runs came too late for its service."""
    if failure.thread is None or failure.thread.name != "wandb-ServiceFinalizer":
        threading.__excepthook__(failure)


def _asked_for(fixed: tuple[str, ...]) -> list[str]:
    """The overrides of the trial that the server wants; a requeued run has an extra `_wandb`, which is none."""
    raw = yaml.safe_load(Path(os.environ["WANDB_SWEEP_PARAM_PATH"]).read_text(encoding="utf-8"))
    swept = {key: entry["value"] for key, entry in raw.items() if isinstance(entry, dict) and key != "_wandb"}
    return [*fixed, *(override(key, value) for key, value in swept.items())]


def _trial(words: list[str], fixed: int, folder: Path, slot: Slot, leaving: threading.Event, shared: str) -> None:
    """Run a trial in a child, which logs to the run that the server made; the first `fixed` words are every trial's."""
    key = trial_key(compose_config(words))
    place = folder / TRIALS / key
    environment = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    launcher = LocalLauncher([slot], environment, shared)
    (job,) = launcher.start([(words, place)])
    print(f"{multiprocessing.current_process().name}: {' '.join(words[fixed:])} → {place}", flush=True)
    try:
        while job.exitcode is None:
            launcher.wait([job])
    except BaseException:  # the client stops a run by raising in this thread
        if leaving.is_set():
            stop_jobs(launcher, [job])  # SIGTERM: the run is marked as preempted
        else:
            write_durably(place / STOP, STOPPED_BY_WANDB.encode())
            job.join(_PATIENCE)
            stop_jobs(launcher, [job])
        raise
    if job.exitcode:
        raise RuntimeError(f"the trial ended with exit code {job.exitcode}; {place / LOG} says why")
