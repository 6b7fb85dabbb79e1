"""A run in W&B that says what a sweep found: the curve with its intervals, the verdict, the page. Imports no torch."""

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune.records.layout import RECORD, REPORT, SWEEP, TRIALS
from finetune.records.ranking import read_objective
from finetune.records.read import read_records
from finetune.records.result import Result
from finetune.records.run_files import keep_files
from finetune.report.figures.main import pictures
from finetune.report.page.page import ended_at, write_report
from finetune.report.standing import STANDINGS, Depth
from finetune.report.table import Group, Table, label, tabulate
from finetune.report.verdict import Conclusions, conclude

CURVE = "accuracy against freeze depth"
"""The panel's name."""
Rows = tuple[list[str | int], list[Iterable[Any]]]
"""The columns of a table, and its rows."""


def summary_id(sweep: str) -> str:
    """The id of the run that sums up a sweep, or a group of that name.

    >>> summary_id("ab12cd34"), summary_id("ants & bees")
    ('ab12cd34-summary', 'ants---bees-summary')
    """
    return re.sub(r"[^\w.-]", "-", sweep) + "-summary"


def write_summary(folder: Path, entity: str | None, project: str, sweep: str) -> str:
    """Write what a sweep found into its summary run, or bring that up to date; returns the run's address.

    It shows the table of depths, that of all configurations with their seeds averaged, the report's own main picture,
    and the verdict; it keeps the page, and which sweep this is, for whoever reads the records from W&B.

    Args:
        folder: The sweep's, or one that its records were fetched into.
        entity: W&B's; the account's own where it is None.
        project: W&B's.
        sweep: Its id, or the group of its runs.
    """
    import wandb

    any_record = any((folder / TRIALS).glob(f"*/{RECORD}"))
    records = read_records(folder) if any_record else []
    with tempfile.TemporaryDirectory() as scratch:
        run = wandb.init(
            project=project,
            entity=entity,
            id=summary_id(sweep),
            name=f"{sweep}: what it found",
            job_type="summary",
            resume="allow",
            dir=scratch,
            mode="online",
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, x_disable_stats=True, console="off"),
        )
        try:
            if records:
                _log(run, records, folder)
            keep_files(run, folder, (SWEEP, REPORT))
        finally:
            run.finish()
    return str(run.url)


def _log(run: Any, records: Sequence[Result], folder: Path) -> None:
    import wandb

    table = tabulate(records, read_objective([folder]))
    conclusions = conclude(records, table)
    write_report(folder, records)

    shown: dict[str, Any] = {
        name: wandb.Table(columns=columns, data=rows)
        for name, (columns, rows) in (
            ("depths", depth_rows(conclusions, table)),
            ("configurations", configuration_rows(table)),
        )
    }
    drawn = pictures(records, records, table, conclusions, ended_at([folder], records))
    if drawn:  # else no trial is complete yet
        shown[CURVE] = wandb.Plotly(drawn[0].figure)
    run.log(shown)

    run.summary["verdict"] = " ".join(conclusions.sentences)
    run.summary["trials"] = dict(table.counts)
    if table.winner is not None:
        run.summary["best/freeze_depth"] = table.winner.freeze_depth
        run.summary["best/mean"] = table.mean_of(table.winner)


def depth_rows(conclusions: Conclusions, table: Table) -> Rows:
    """The best configuration of each freeze depth, with its interval and how it stands."""
    columns: list[str | int] = ["depth", *_columns(table), "trials", "verdict"]
    rows: list[Iterable[Any]] = [
        [depth.name, *_cells(depth.group, table, depth), table.trials_at(depth.group), STANDINGS[depth.standing]]
        for depth in conclusions.depths
    ]
    return columns, rows


def configuration_rows(table: Table) -> Rows:
    """Every configuration, its seeds averaged: the best of each depth first."""
    return _columns(table), [_cells(group, table) for group in table.groups]


def _columns(table: Table) -> list[str | int]:
    return ["network", "freeze depth", "settings", table.objective.name, "low", "high", "seeds", "seconds a trial"]


def _cells(group: Group, table: Table, depth: Depth | None = None) -> list[Any]:
    """A configuration with its 95 % interval: by the error that judges its depth, else over its seeds."""
    mean, width = table.mean_of(group), group.half_width if depth is None else depth.half_width
    low, high = (None, None) if width is None else (mean - width, mean + width)
    settings = label(group.params, table.swept)
    return [group.network, group.freeze_depth, settings, mean, low, high, len(group.accuracies), group.seconds]
