"""A sweep as W&B has it: its file, and the records of its trials. Imports no torch."""

import re
import tempfile
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import Refused, message_of
from finetune.records.layout import SWEEP, folder_name
from finetune.records.ranking import Objective
from finetune.report.wandb_runs import client_errors, fetch, fetch_records, runs_of
from finetune.report.wandb_summary import summary_id
from finetune.sweep.folder import claim
from finetune.sweep.search import size
from finetune.sweep.spec import SweepSpec, read_sweep


def open_sweep(sweep: str) -> Any:
    """The sweep ENTITY/PROJECT/ID, as W&B's client has it.

    Raises:
        Refused: there is none, or it cannot be read.
    """
    import wandb

    if len(sweep.split("/")) != 3:
        raise Refused(f"{sweep} is not a sweep; give ENTITY/PROJECT/ID, as `wandb sweep` printed it")
    try:
        return wandb.Api().sweep(sweep)
    except client_errors() as error:
        raise Refused(f"{sweep} cannot be read from W&B: {message_of(error)}") from error


def local_name(config: dict[str, Any], sweep: str) -> str:
    """What the folder under `runs/` is called that has records of a sweep of W&B's: its name and id."""
    name = folder_name(re.sub(r"[^\w.+-]", "_", str(config.get("name") or "sweep")))
    return f"{name}-{sweep.rpartition('/')[2]}"


def spec_of(config: dict[str, Any], sweep: str) -> SweepSpec:
    """A sweep's file as W&B keeps it, read as `finetune sweep` reads one.

    W&B keeps parameters in alphabetical order, which is that of a grid and of the draws of a random search.

    Raises:
        Refused: it cannot be honoured.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{sweep.rpartition('/')[2]}.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        try:
            return read_sweep(file)
        except Refused as refusal:
            raise Refused(str(refusal).replace(str(file), sweep)) from refusal


def fetch_sweep(entity: str, project: str, name: str, folder: Path) -> int:
    """Write into `folder` the records of all ended trials of a sweep, or of a group, and which sweep it is.

    Returns:
        How many runs ended without a record.
    """
    import wandb

    without = fetch_records(runs_of(entity, project, name), folder)
    if not (folder / SWEEP).is_file():  # whoever decided of the trials has said how they are judged
        try:
            fetch(wandb.Api().run(f"{entity}/{project}/{summary_id(name)}"), [SWEEP], folder)
        except client_errors():  # nobody has
            _claim(f"{entity}/{project}/{name}", folder)
    return without


def _claim(sweep: str, folder: Path) -> None:
    """Write into `folder` what a sweep of W&B's optimises; nothing of a group, or of what we could not run."""
    try:
        spec = spec_of(open_sweep(sweep).config, sweep)
    except Refused:
        return
    claim(spec, folder, seed=0, data=(), trials=size(spec), objective=Objective(spec.metric, spec.goal))
