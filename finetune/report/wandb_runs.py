"""The records of a sweep's trials as W&B has them: a run keeps that of its trial as a file. Imports no torch."""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.records.layout import RECORD_FILES, SYNCED, TRIALS
from finetune.records.result import Result
from finetune.storage.durable import write_durably

ENDED = ("finished", "failed", "crashed", "killed")
"""States of a run that is not to go on. A preempted one is none: W&B hands it out again."""
_PAGE = 200
"""Runs a request."""


def client_errors() -> tuple[type[Exception], ...]:
    """What W&B's client raises where a server refuses, or does not answer; that of its core has no public name."""
    import wandb

    try:
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    except ImportError:  # of earlier releases
        return (wandb.errors.Error, OSError, ValueError)
    return (wandb.errors.Error, WandbApiFailedError, OSError, ValueError)


def runs_of(entity: str, project: str, sweep: str, names: Sequence[str] = ()) -> list[Any]:
    """The runs of a sweep, oldest first, as the client has them.

    Args:
        entity: W&B's.
        project: W&B's.
        sweep: Its id; or a group, as those are that ran elsewhere and were uploaded.
        names: The ids of the runs that are asked for; all without.

    Raises:
        client_errors: there is no such project, or W&B does not answer.
    """
    import wandb

    wanted: dict[str, Any] = {"$or": [{"sweep": sweep}, {"group": sweep}]}
    if names:
        wanted = {"$and": [wanted, {"name": {"$in": list(names)}}]}
    runs = wandb.Api().runs(f"{entity}/{project}", filters=wanted, order="+created_at", per_page=_PAGE, lazy=False)
    return list(runs)


def sweeps_in(entity: str, project: str) -> dict[str, int]:
    """The sweeps of a project, and the groups of runs that are in none, with how many runs each has under way.

    Raises:
        client_errors: there is no such project, or W&B does not answer.
    """
    import wandb

    running: dict[str, int] = {}
    for run in wandb.Api().runs(f"{entity}/{project}", order="+created_at", per_page=_PAGE):
        name = run.sweep_name or run.group
        if name:
            running[name] = running.get(name, 0) + (run.state not in ENDED)
    return running


def is_going_on(entity: str, project: str, sweep: str) -> bool:
    """Whether a sweep has not ended, though none of its runs may be under way just now; no group is one.

    Raises:
        client_errors: W&B does not answer.
    """
    import wandb

    try:
        state = wandb.Api().sweep(f"{entity}/{project}/{sweep}").state
    except ValueError:  # there is no sweep of that id (any more)
        return False
    return str(state).upper() in ("PENDING", "RUNNING")


def record_of(run: Any) -> Result | None:
    """The record that a run keeps; None where it keeps none that can be read."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            fetch(run, RECORD_FILES, Path(scratch))
            return Result.load(Path(scratch))
        except (FileNotFoundError, ValueError):
            return None


def fetch(run: Any, names: Sequence[str], folder: Path) -> None:
    """Write into `folder` those of the files `names` that a run keeps."""
    for file in run.files(names=list(names)):
        if file.size:  # a server may name a file that was never sent
            with contextlib.closing(file.download(root=str(folder), replace=True)):
                pass


def keep_record(record: Result, run: Any, folder: Path, key: str = "") -> Result:
    """Write the record of a run's trial into the folder of a sweep, with where it is in W&B; returns it.

    Args:
        record: The run's.
        run: As the client has it.
        folder: The sweep's.
        key: The trial's key there, where that differs from the one on the machine that ran it, as `${…}` may.
    """
    record = replace(record, key=key or record.key)
    trial = folder / TRIALS / record.key
    write_durably(trial / SYNCED, "/".join(run.path).encode())
    record.save(trial)
    return record


def fetch_records(runs: Sequence[Any], folder: Path) -> int:
    """Write the records of all runs that ended into the folder of a sweep, but for those that are there.

    Returns:
        How many ended without one: they crashed, or are of an earlier version.
    """
    here = {file.read_text(encoding="utf-8") for file in folder.glob(f"{TRIALS}/*/{SYNCED}")}
    without = 0
    for run in runs:
        if "/".join(run.path) in here:
            continue
        record = record_of(run) if run.state in ENDED else None
        if record is not None and record.status != "interrupted":
            keep_record(record, run, folder)
        without += run.state in ENDED and record is None
    return without
