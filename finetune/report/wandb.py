"""Records and charts in Weights & Biases: upload a local sweep, make a workspace view. Imports no torch."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.errors import Refused
from finetune.records.layout import RECORD_FILES, SYNCED, TRIALS, WANDB
from finetune.records.metric import followed_by, with_best
from finetune.records.read import read_records
from finetune.records.result import FREEZE_DEPTH, Result
from finetune.records.run_files import keep_files
from finetune.report.table import label
from finetune.storage.durable import write_durably

_VIEW = "finetune"
"""The view's name in its URL, by which it is found again."""
_OLD_DEPTH = "frozen/depth"
"""What the column `freeze_depth` was called in earlier versions."""
_NOT_IN_NAMES = ("data.root", "data.csv", "model.backbone", "model.weights", "trainer.accelerator")
"""Settings that are the same all over a sweep and too long for a run's name."""


def sync_records(
    folder: Path,
    project: str,
    entity: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Upload the finished trials of a sweep as W&B runs in a group of the sweep's name; none is uploaded twice.

    Args:
        folder: The sweep's; its records are what is uploaded, so it does not matter what the trials logged offline.
        project: W&B's.
        entity: W&B's; the account's own by default.
        progress: Called with trials done and their total.

    Returns:
        The paths, ENTITY/PROJECT/ID, of the runs that were uploaded now.
    """
    finished = [record for record in read_records(folder) if record.status != "interrupted"]
    waiting = [record for record in finished if not _is_uploaded(folder / TRIALS / record.key)]

    uploaded = []
    for done, record in enumerate(waiting):
        progress(done, len(waiting))
        path = _upload(record, folder, project, entity)
        write_durably(folder / TRIALS / record.key / SYNCED, path.encode())
        uploaded.append(path)

    progress(len(waiting), len(waiting))
    return uploaded


def _is_uploaded(trial: Path) -> bool:
    """Whether a trial is in W&B already: uploaded before, or logged there while it ran."""
    return (trial / SYNCED).exists() or any(trial.glob(f"{WANDB}/run-*"))


def _upload(record: Result, folder: Path, project: str, entity: str | None) -> str:
    """Make a run of a record, which keeps it as a file, as the run of an agent does; returns its path in W&B."""
    import wandb

    settings = [key for key in record.params if key not in _NOT_IN_NAMES]
    with tempfile.TemporaryDirectory() as scratch:
        run = wandb.init(
            project=project,
            entity=entity,
            group=folder.name,
            name=label(record.params, settings),
            config=record.config,
            dir=scratch,
            mode="online",
            reinit="finish_previous",
            settings={"silent": True},
        )

        for epoch in with_best(record.history, followed_by(record.config)):
            run.log(epoch)

        run.summary.update(record.figures())
        keep_files(run, folder / TRIALS / record.key, RECORD_FILES)
        run.finish(exit_code=0 if record.status in ("complete", "pruned") else 1)
        return "/".join((run.entity, run.project, run.id))


def write_dashboard(entity: str, project: str) -> str:
    """Create, or bring up to date, our view of a W&B project; returns its URL, empty without W&B's package for views.

    Raises:
        Refused: no such project, or no access to it.
    """
    import wandb

    try:
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        return ""

    server = wandb.Api().settings["base_url"].replace("api.", "")
    sections = _sections()
    try:
        view = workspaces.Workspace.from_url(f"{server}/{entity}/{project}?nw={_VIEW}")
        view.sections = sections
    except ValueError as error:
        if "not found in project" not in str(error):
            raise Refused(f"{entity}/{project} cannot be read from W&B: {error}") from error
        view = workspaces.Workspace(entity=entity, project=project, name="finetune", sections=sections)
        view._internal_name = f"nw-{_VIEW}-v"  # so that the next call finds it
    return str(view.save().url)


def rename_old_column(entity: str, project: str) -> int:
    """Give the finished runs that have their freeze depth under its earlier name the present one too.

    Returns:
        How many runs were changed; they keep the old column.
    """
    import wandb

    changed = 0
    has_old_column = {f"summary_metrics.{_OLD_DEPTH}": {"$ne": None}}
    for run in wandb.Api().runs(f"{entity}/{project}", filters=has_old_column, lazy=False):
        # A run that has not ended writes its own summary, whole, and would lose what is added here.
        ended = run.state in ("finished", "failed", "crashed", "killed")
        if ended and FREEZE_DEPTH not in run.summary:
            run.summary[FREEZE_DEPTH] = run.summary[_OLD_DEPTH]
            run.summary.update()
            changed += 1
    return changed


def _sections() -> list[Any]:
    import wandb_workspaces.workspaces as workspaces

    return [
        workspaces.Section(name="Freeze depth", is_open=True, panels=_depth_panels()),
        workspaces.Section(name="Learning curves", is_open=True, panels=_curve_panels()),
    ]


def _depth_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as panels

    depth = panels.SummaryMetric(FREEZE_DEPTH)
    accuracy = panels.SummaryMetric("val/acc_best")
    seconds = panels.SummaryMetric("seconds/total")
    rate = panels.Config("optim.lr")

    column = panels.ParallelCoordinatesPlotColumn
    columns = [column(depth), column(rate, log=True), column(panels.Config("model.head.hidden")), column(accuracy)]

    return [
        panels.ScatterPlot(title="Validation accuracy against freeze depth", x=depth, y=accuracy),
        panels.ScatterPlot(title="The same, coloured by learning rate", x=depth, y=accuracy, z=rate, log_z=True),
        panels.ScatterPlot(title="Validation accuracy against seconds", x=seconds, y=accuracy),
        panels.ParallelCoordinatesPlot(title="Depth, learning rate, head and accuracy", columns=columns),
        panels.ParameterImportancePlot(with_respect_to="val/acc_best"),
    ]


def _curve_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as panels

    metrics = {
        "Validation accuracy": "val/acc",
        "Validation loss": "val/loss",
        "Training accuracy": "train/acc",
        "Training loss": "train/loss",
    }
    return [panels.LinePlot(title=title, x="epoch", y=[metric]) for title, metric in metrics.items()]
