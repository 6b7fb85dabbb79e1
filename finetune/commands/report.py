"""What a sweep shows: in the terminal, as a page, as a picture, beside another sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.console import console, plain_table
from finetune.errors import Refused

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from finetune.records.ranking import Objective
    from finetune.records.result import Result
    from finetune.report.standing import Depth
    from finetune.report.table import Table


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Folders of sweeps; the page goes into the first.")
    ],
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the main picture to this PNG file.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a line a trial to this CSV file.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a row a trial, with its epochs, to this JSON file.")
    ] = None,
    serve: Annotated[bool, typer.Option(help="Show the page on this machine, and refresh it as trials end.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Of --serve; 0 takes a free one.")] = 8081,
) -> int:
    """Say what a sweep found, and write its page.

    The verdict, how sure it is and its caveats, here and in report.html.
    """
    from finetune.records.layout import REPORT
    from finetune.records.ranking import read_objective
    from finetune.records.read import read_all
    from finetune.report.page.page import write_report
    from finetune.report.png import write_png
    from finetune.report.rows import write_csv, write_json
    from finetune.report.table import tabulate
    from finetune.storage.durable import refuse_unwritable

    if png is not None and png.suffix.lower() != ".png":
        raise Refused(f"--png {png} is not the name of a PNG file; let it end in .png")

    records = read_all(folders)
    for option, file in (("--png", png), ("--csv", csv), ("--json", json)):
        if file is not None:
            refuse_unwritable(file, option)
    if not serve:
        refuse_unwritable(folders[0] / REPORT, "the page", "--serve shows it without a file")
    print_conclusions(folders, records)
    if png is not None:
        names = ", ".join(folder.resolve().name for folder in folders)
        table = tabulate(records, read_objective(folders))
        write_png(png, records, table, f"Validation accuracy against freeze depth: {names}")
        console.print(f"picture: {png}")
    for write, file in ((write_csv, csv), (write_json, json)):
        if file is not None:
            write(file, records)
            console.print(f"trials: {file}")

    if serve:
        _serve(folders, port)
    else:
        console.print(f"page: {write_report(folders[0], records, folders[1:])}")
    return 0


def print_conclusions(folders: Sequence[Path], records: "Sequence[Result]") -> None:
    """Print the table of depths, the verdict and the caveats, as on the page."""
    from finetune.config import METRICS
    from finetune.records.intervals import estimate
    from finetune.records.plan import is_through
    from finetune.records.ranking import read_objective
    from finetune.report.bits import PER_IMAGE
    from finetune.report.caveats import caveats
    from finetune.report.page.page import kept_predictions
    from finetune.report.table import tabulate
    from finetune.report.verdict import conclude

    table = tabulate(records, read_objective(folders))
    conclusions = conclude(records, table)
    console.print(", ".join(f"{count} {status}" for status, count in table.counts.items()))
    if conclusions.depths:
        console.print(_depths_table(conclusions.depths, table))
    for sentence in conclusions.sentences:
        console.print(sentence)

    kept = kept_predictions(folders, records, table)
    if kept and conclusions.depths and table.objective.name in METRICS and table.objective.metric not in PER_IMAGE:
        value, low, high = estimate(table.objective.name, kept[1])
        console.print(
            f"The kept model has {table.objective.name} {value:.3f}, 95 % interval {low:.3f} to {high:.3f} for other "
            "images."
        )
    through = is_through(folders, records)
    sentences = caveats(records, table, kept[1] if kept else None, conclusions.judged, through)
    if sentences:
        console.print("Caveats:")
    for sentence in sentences:
        console.print(f"- {sentence}")


def _depths_table(depths: "Sequence[Depth]", table: "Table") -> "RichTable":
    from finetune.report.standing import STANDINGS
    from finetune.report.table import label, score_text

    rows = plain_table(f"{_in_words(table.objective)} per freeze depth")
    if table.networks:
        rows.add_column("network")
    for column in ("freeze depth", "trials", f"best {table.objective.name}", "s a trial"):
        rows.add_column(column, justify="right", no_wrap=True)
    rows.add_column("with")
    rows.add_column("verdict", no_wrap=True)

    for depth in depths:
        group = depth.group
        rows.add_row(
            *([group.network] if table.networks else []),
            str(group.freeze_depth),
            str(table.trials_at(group)),
            score_text(group, table.objective),
            f"{group.seconds:.1f}",
            label(group.params, table.swept),
            STANDINGS[depth.standing],
            style="bold" if depth.standing == "best" else None,
        )
    return rows


def _in_words(objective: "Objective") -> str:
    from finetune.records.ranking import ACCURACY

    return "validation accuracy" if objective == ACCURACY else objective.name


def _serve(folders: Sequence[Path], port: int) -> None:
    from finetune.report.serve import server

    with server(folders, port) as running:
        console.print(f"http://127.0.0.1:{running.server_address[1]}/ refreshes as trials end; Ctrl-C ends it")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            console.print("")


def compare(
    a: Annotated[Path, typer.Argument(metavar="DIR_A", help="Folder of a sweep.")],
    b: Annotated[Path, typer.Argument(metavar="DIR_B", help="Folder of another.")],
) -> int:
    """Set two sweeps side by side.

    Depth by depth, winner against winner, and which settings differ.
    """
    from finetune.records.ranking import read_objective
    from finetune.records.read import read_all
    from finetune.report.compare import compare as compare_depths
    from finetune.report.compare import conclusions, setting_lines
    from finetune.report.table import score_text

    ours, theirs = read_all([a]), read_all([b])
    objective = read_objective([a, b])
    rows = plain_table(f"best {_in_words(objective)} per freeze depth: A is {a}, B is {b}")
    gap = "B - A" if objective.goal == "maximize" else "A - B"  # above 0 where B is better
    for column in ("freeze depth", "A", "B", gap, "95 % interval", "p"):
        rows.add_column(column, justify="right", no_wrap=True)
    for row in compare_depths(ours, theirs, objective):
        rows.add_row(
            f"{row.network} {row.freeze_depth}".strip(),
            score_text(row.a, objective) if row.a else "–",
            score_text(row.b, objective) if row.b else "–",
            f"{row.b.score - row.a.score:+.3f}" if row.a and row.b else "",
            f"{row.ahead.low:+.3f}..{row.ahead.high:+.3f}" if row.ahead else "",
            "" if row.p is None else f"{row.p:.2g}",
        )
    console.print(rows)

    for sentence in conclusions((str(a), str(b)), ours, theirs, objective):
        console.print(sentence)
    lines = setting_lines(ours, theirs)
    if lines:
        console.print("Settings that differ throughout:")
    for line in lines:
        console.print(f"  {line}")
    return 0
