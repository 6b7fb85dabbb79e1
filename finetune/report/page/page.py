"""The report as one self-contained HTML page. Imports no torch."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import plotly.offline

from finetune.records.layout import RECORD, REPORT, TRIALS
from finetune.records.predictions import Predictions
from finetune.records.repeat import repeat_command
from finetune.records.result import Result
from finetune.report.caveats import doubts
from finetune.report.figures.base import Picture
from finetune.report.figures.main import pictures
from finetune.report.page.predictions import winner_section
from finetune.report.table import Table, accuracy_text, label, tabulate
from finetune.report.verdict import Conclusions, Depth, conclude
from finetune.storage.durable import write_durably

SHOWN = 1000
"""Trials in the page's table and plots at the most, the best ones."""


def write_report(folder: Path, records: Sequence[Result], others: Sequence[Path] = ()) -> Path:
    """Write `report.html` into `folder`: no script, font or image is fetched when it is opened. Returns its path.

    Args:
        folder: Of the sweep.
        records: Of it, and of the sweeps in `others`.
        others: Further folders that trials lie in.
    """
    path = folder / REPORT
    write_durably(path, page([folder, *others], records).encode(errors="replace"))
    return path


def page(folders: Sequence[Path], records: Sequence[Result], live: str = "") -> str:
    """The page's text.

    Args:
        folders: Where the trials lie; the page is named after the first.
        records: Of the trials.
        live: What a server's `/state` says as long as nothing is new; empty for a page that nobody refreshes.
    """
    ranked = sorted(records, key=lambda r: (r.status != "complete", -(r.val_acc_best or 0), r.key))
    table, shown = tabulate(records), ranked[:SHOWN]
    keys = table.swept
    conclusions = conclude(records, table)
    kept = predictions_of(folders, records, table)
    drawn = pictures([*shown, *(r for r in ranked[SHOWN:] if r.status == "failed")], table, ended_at(folders, records))
    extra = winner_section(*kept, table) if kept else ("", list[Picture]())
    trials = {r.key: {"name": _name(r, keys), "command": repeat_command(r.config)} for r in shown if r.config}
    figures = {p.name: json.loads(p.figure.to_json()) for p in (*drawn, *extra[1])}
    names = ", ".join(folder.resolve().name for folder in folders)
    return Template(_file("page.html")).substitute(
        title=html.escape(f"Validation accuracy against freeze depth: {names}"),
        connect="'self'" if live else "'none'",
        live=html.escape(live),
        css=_file("page.css"),
        js=_file("page.js"),
        plotly=plotly.offline.get_plotlyjs(),
        counts=", ".join(f"{count} {status}" for status, count in table.counts.items()),
        verdict=_verdict(conclusions),
        doubts=_doubts(doubts(records, table, kept[1] if kept else None)),
        rows="\n".join(_depth(depth, table) for depth in conclusions.depths),
        pictures="\n".join(map(picture_html, drawn)),
        winner=extra[0],
        shown=f"The {SHOWN} best of {len(records)} are shown." if len(records) > SHOWN else "",
        trials="\n".join(_trial(r, keys, first=i == 0) for i, r in enumerate(shown)),
        data=json.dumps({"figures": figures, "trials": trials}).replace("<", "\\u003c"),
    )


def ended_at(folders: Sequence[Path], records: Sequence[Result]) -> dict[str, float]:
    """When each trial's record was written, by its key, in seconds since 1970."""
    found = {}
    for key in (record.key for record in records):
        for folder in folders:
            file = folder / TRIALS / key / RECORD
            if file.is_file():
                found[key] = file.stat().st_mtime
                break
    return found


def predictions_of(
    folders: Sequence[Path], records: Sequence[Result], table: Table
) -> tuple[Result, Predictions] | None:
    """The best trial that still has its predictions, those of the winning configuration first."""
    won = table.winner.keys if table.winner else ()
    complete = [r for r in records if r.status == "complete"]
    for record in sorted(complete, key=lambda r: (r.key not in won, -(r.val_acc_best or 0))):
        for folder in folders:
            found = Predictions.load(folder / TRIALS / record.key)
            if found is not None and found.probabilities.shape[1] == len(record.classes):
                return record, found
    return None


def picture_html(picture: Picture) -> str:
    """A heading, a place for the plot and how to read it."""
    return (
        f'<figure class="picture" style="margin:0"><h3>{html.escape(picture.title)}</h3>'
        f'<div class="plot" id="plot-{picture.name}" role="img" aria-label="{html.escape(picture.title)}"></div>'
        f'<figcaption class="quiet">{html.escape(picture.note)}</figcaption></figure>'
    )


def _verdict(conclusions: Conclusions) -> str:
    first, *rest = conclusions.sentences
    return f'<p class="lead">{html.escape(first)}</p>' + "".join(f"<p>{html.escape(words)}</p>" for words in rest)


def _doubts(found: Sequence[str]) -> str:
    if not found:
        return ""
    items = "".join(f"<li>{html.escape(words)}</li>" for words in found)
    head = '<section id="doubts" aria-labelledby="doubts-title"><h2 id="doubts-title">Doubts</h2>'
    return f"{head}<ul>{items}</ul></section>"


def _depth(depth: Depth, table: Table) -> str:
    group, behind = depth.group, depth.behind
    trials = sum(len(g.accuracies) for g in table.groups if g.freeze_depth == group.freeze_depth)
    noise = {"best": "the best", "few": "too few seeds", "open": "no", "worse": "yes"}[depth.standing]
    p = "" if depth.p is None else " (p<0.001)" if depth.p < 0.001 else f" (p={depth.p:.2g})"
    cells = [group.freeze_depth, trials, accuracy_text(group), f"{group.seconds:.1f}", label(group.params, table.swept)]
    cells += ["" if behind is None else f"{behind.mean:.3f} [{behind.low:.3f}..{behind.high:.3f}]", noise + p]
    mark = ' class="winner"' if depth.standing == "best" else ""
    return f"<tr{mark}>{_cells(cells, text=(4, 6))}</tr>"


def _trial(record: Result, keys: Sequence[str], first: bool) -> str:
    accuracy = "" if record.val_acc_best is None else f"{record.val_acc_best:.4f}"
    status = record.status if record.status == "complete" else f"{record.status}: {record.reason[:80]}"
    seconds = f"{record.seconds.get('total', 0):.1f}"
    depth = "" if record.freeze_depth is None else record.freeze_depth
    cells = [accuracy, depth, record.seed, status, seconds, label(record.params, keys)]
    key = html.escape(record.key)
    return (
        f'<tr data-key="{key}" tabindex="{0 if first else -1}" aria-selected="false">{_cells(cells, text=(3, 5))}</tr>'
    )


def _cells(cells: Sequence[Any], text: Sequence[int]) -> str:
    return "".join(
        f"<td{' class=text' if i in text else ''}>{html.escape(str(cell))}</td>" for i, cell in enumerate(cells)
    )


def _name(record: Result, keys: Sequence[str]) -> str:
    accuracy = record.status if record.val_acc_best is None else f"val/acc {record.val_acc_best:.4f}"
    return f"k={record.freeze_depth} {label(record.params, keys)} seed={record.seed}: {accuracy}"


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
