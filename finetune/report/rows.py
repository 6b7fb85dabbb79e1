"""Every trial as a row, for spreadsheets and data frames. Imports no torch."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.records.result import Result
from finetune.storage.durable import write_durably


def row_of(record: Result) -> dict[str, Any]:
    """A trial's columns: what it is, what it came to, what it cost, and its settings by their dotted keys.

    Figures of epochs (`val/loss`, `lr` …) are those of its last one.

    >>> from finetune.records.read import read_records
    >>> rows = [row_of(record) for record in read_records(Path("runs/local"))]
    >>> {row["status"] for row in rows} == {"complete", "failed"}, "val/acc_best" in rows[0], "optim.lr" in rows[0]
    (True, True, True)
    """
    figures = {"val/acc_best": record.val_acc_best, "best_epoch": record.best_epoch, **record.figures()}
    last = {name: value for name, value in record.last.items() if name not in figures}
    own = {"trial": record.key, "status": record.status, "reason": record.reason, "seed": record.seed}
    return {**own, **figures, **last, **{key: value for key, value in record.params.items() if key not in own}}


def write_csv(file: Path, records: Sequence[Result]) -> None:
    """Write a line a trial; columns that a trial does not have are empty, lists are as a sweep file has them."""
    rows = [row_of(record) for record in records]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(columns)
    for row in rows:
        table.writerow([_cell(row.get(column)) for column in columns])
    write_durably(file, text.getvalue().encode())


def write_json(file: Path, records: Sequence[Result]) -> None:
    """Write a list of rows, each with its figures of every epoch under `history`."""
    rows = [{**row_of(record), "history": record.history} for record in records]
    write_durably(file, json.dumps(rows, indent=1).encode())


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
