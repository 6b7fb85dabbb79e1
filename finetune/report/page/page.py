"""The report as one self-contained HTML page. Imports no torch."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import plotly.offline

from finetune.records.layout import RECORD, REPORT, TRIALS
from finetune.records.plan import is_through
from finetune.records.predictions import Predictions
from finetune.records.ranking import network_of, read_objective
from finetune.records.repeat import repeat_command
from finetune.records.result import Result
from finetune.report.caveats import caveats
from finetune.report.figures.base import Picture
from finetune.report.figures.main import pictures
from finetune.report.page.predictions import winner_section
from finetune.report.seeds_only import p_text
from finetune.report.standing import STANDINGS, Depth
from finetune.report.table import Table, label, ranked, score_text, tabulate
from finetune.report.verdict import Conclusions, conclude
from finetune.storage.durable import write_durably

SHOWN = 1000
"""Trials in the page's table and plots at the most, the best ones."""


def write_report(folder: Path, records: Sequence[Result], others: Sequence[Path] = ()) -> Path:
    """Write `report.html` into `folder`: no script, font or image is fetched when it is opened. Returns its path.

    Args:
        folder: The sweep's.
        records: Of it, and of the sweeps in `others`.
        others: Further folders that trials lie in.

    >>> from finetune.records.read import read_records
    >>> write_report(Path("runs/local"), read_records(Path("runs/local")))
    PosixPath('runs/local/report.html')
    """
    path = folder / REPORT
    write_durably(path, page([folder, *others], records).encode(errors="replace"))
    return path


def page(folders: Sequence[Path], records: Sequence[Result], live: str = "") -> str:
    """The page's text.

    Args:
        folders: Where the trials lie; the page is named after the first.
        records: The trials'.
        live: What a server's `/state` says as long as nothing is new; empty for a page that nobody refreshes.
    """
    # 1. What is said
    table = tabulate(records, read_objective(folders))
    conclusions = conclude(records, table)
    kept = kept_predictions(folders, records, table)
    through = is_through(folders, records)
    sentences = caveats(records, table, kept[1] if kept else None, conclusions.judged, through)

    # 2. What is shown: a page has room for so many trials, but every failure is counted
    score_of = table.objective.score_of
    best_first = sorted(records, key=lambda r: (r.status != "complete", -score_of(r), -r.accuracy, r.key))
    shown, rest = best_first[:SHOWN], best_first[SHOWN:]
    main_pictures = pictures(records, shown, table, conclusions, ended_at(folders, records))
    winner, winner_pictures = winner_section(*kept, table) if kept else ("", [])

    # 3. The page
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
        caveats=_caveats(sentences),
        metric=html.escape(table.objective.name),
        rows="\n".join(_depth_row(depth, table) for depth in conclusions.depths),
        pictures="\n".join(map(picture_html, main_pictures)),
        winner=winner,
        shown=f"The {SHOWN} best of {len(records)} are shown." if rest else "",
        trials="\n".join(_trial_row(record, table, first=i == 0) for i, record in enumerate(shown)),
        network='<th class="text">network</th>' if table.networks else "",
        data=_data([*main_pictures, *winner_pictures], shown, table),
    )


def ended_at(folders: Sequence[Path], records: Sequence[Result]) -> dict[str, float]:
    """When each trial's record was written, by its key, in seconds since 1970."""
    times = {}
    for record in records:
        files = (folder / TRIALS / record.key / RECORD for folder in folders)
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            times[record.key] = file.stat().st_mtime
    return times


def kept_predictions(
    folders: Sequence[Path], records: Sequence[Result], table: Table
) -> tuple[Result, Predictions] | None:
    """The best trial that still has its predictions, those of the winning configuration first."""
    won = table.winner.keys if table.winner else ()
    for record in sorted(ranked(records), key=lambda r: (r.key not in won, -table.objective.score_of(r))):
        for folder in folders:
            predictions = Predictions.load(folder / TRIALS / record.key)
            if predictions is not None and predictions.probabilities.shape[1] == len(record.classes):
                return record, predictions
    return None


def picture_html(picture: Picture) -> str:
    """A heading, a place for the plot and how to read it."""
    title = html.escape(picture.title)
    return (
        f'<figure class="picture" style="margin:0"><h3>{title}</h3>'
        f'<div class="plot" id="plot-{picture.name}" role="img" aria-label="{title}"></div>'
        f'<figcaption class="quiet">{html.escape(picture.note)}</figcaption></figure>'
    )


def _data(drawn: Sequence[Picture], shown: Sequence[Result], table: Table) -> str:
    """What the page's script reads: the figures, and each trial's name and command for when it is picked."""
    figures = {picture.name: _rounded(json.loads(picture.figure.to_json())) for picture in drawn}
    trials = {
        record.key: {"name": _trial_name(record, table), "command": repeat_command(record.config)}
        for record in shown
        if record.config
    }
    text = json.dumps({"figures": figures, "trials": trials}, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # or a name such as </script> would end the script


def _rounded(value: Any) -> Any:
    """The same plain values with numbers of six digits, which is more than a screen shows and a third of the bytes."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def _verdict(conclusions: Conclusions) -> str:
    first, *rest = conclusions.sentences
    return f'<p class="lead">{html.escape(first)}</p>' + "".join(f"<p>{html.escape(text)}</p>" for text in rest)


def _caveats(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""

    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    head = '<section id="caveats" aria-labelledby="caveats-title"><h2 id="caveats-title">Caveats</h2>'
    return f"{head}<ul>{items}</ul></section>"


def _depth_row(depth: Depth, table: Table) -> str:
    group = depth.group
    network = [group.network] if table.networks else []
    cells = [
        *network,
        group.freeze_depth,
        table.trials_at(group),
        score_text(group, table.objective),
        f"{group.seconds:.1f}",
        tuple(label(group.params, [key]) for key in table.swept if key in group.params),
        _behind(depth),
        STANDINGS[depth.standing] + ("" if depth.p is None else f" ({p_text(depth.p)})"),
    ]
    mark = ' class="winner"' if depth.standing == "best" else ""
    text = (0, 5, 7) if network else (4, 6)
    return f"<tr{mark}>{_cells(cells, text)}</tr>"


def _behind(depth: Depth) -> str:
    """How far it is behind the best, with the 95 % interval of that alone."""
    if depth.comparison is not None:
        mean, width = depth.comparison.lead, depth.comparison.half_width
        return f"{mean:.3f} [{mean - width:.3f}..{mean + width:.3f}]"
    return "" if depth.behind is None else f"{depth.behind.mean:.3f} [{depth.behind.low:.3f}..{depth.behind.high:.3f}]"


def _trial_row(record: Result, table: Table, first: bool) -> str:
    network = [network_of(record)] if table.networks else []
    cells = [
        *network,
        "" if record.val_acc_best is None else f"{record.val_acc_best:.4f}",
        "" if record.freeze_depth is None else record.freeze_depth,
        record.seed,
        record.status if record.status == "complete" else f"{record.status}: {record.reason[:80]}",
        f"{record.total_seconds:.1f}",
        label(record.params, table.swept),
    ]
    text = (0, 4, 6) if network else (3, 5)
    key, focus = html.escape(record.key), 0 if first else -1  # Tab reaches the table once; arrow keys go on in it
    return f'<tr data-key="{key}" tabindex="{focus}" aria-selected="false">{_cells(cells, text)}</tr>'


def _cells(cells: Sequence[Any], text: Sequence[int]) -> str:
    """Table cells; those at the places `text` hold text, the others numbers."""
    return "".join(f"<td{' class=text' if i in text else ''}>{_content(cell)}</td>" for i, cell in enumerate(cells))


def _content(cell: Any) -> str:
    """What a cell shows; a tuple's parts keep to a line each, so that `lr=3e-05` is not broken at its hyphen."""
    if isinstance(cell, tuple):
        return " ".join(f"<span>{html.escape(part)}</span>" for part in cell)
    return html.escape(str(cell))


def _trial_name(record: Result, table: Table) -> str:
    accuracy = record.status if record.val_acc_best is None else f"val/acc {record.val_acc_best:.4f}"
    return f"{table.name(record)} {label(record.params, table.swept)} seed={record.seed}: {accuracy}"


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
