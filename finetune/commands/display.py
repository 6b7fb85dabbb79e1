"""A sweep under way on the terminal, and its table."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from finetune.console import console, plain_stage, plain_table, stage_bars
from finetune.storage.parallel import Progress

if TYPE_CHECKING:
    from finetune.records.result import Result
    from finetune.report.table import Table
    from finetune.sweep.state import Sweep


def print_table(table: "Table") -> None:
    """What a sweep found: a row per freeze depth, then the winner."""
    from finetune.report.table import accuracy_text, label, verdict

    shown = plain_table("validation accuracy per freeze depth")
    for name in ("freeze depth", "trials", "best val/acc", "s a trial"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("with")
    trials = Counter[int]()
    for group in table.groups:
        trials[group.freeze_depth] += len(group.accuracies)
    for group in table.best_per_depth:
        style = "bold" if group == table.winner else None
        how = label(group.params, table.swept)
        shown.add_row(
            str(group.freeze_depth),
            str(trials[group.freeze_depth]),
            accuracy_text(group),
            f"{group.seconds:.1f}",
            how,
            style=style,
        )
    console.print(shown)
    console.print(verdict(table))


@contextlib.contextmanager
def watching() -> Iterator[tuple[Callable[["Sweep", "Result | None"], None], Progress]]:
    """A live display on a terminal, a line a trial elsewhere: for the trials, and for what comes before them."""
    from finetune.report.table import label
    from finetune.sweep.state import result_value

    def line(sweep: "Sweep", result: "Result") -> str:
        done, spec, best = len(sweep.finished), sweep.spec, sweep.best
        keys, value = list(spec.parameters), result_value(spec, result)
        name = spec.metric.removesuffix("_best")
        found = f"{result.status}: {result.reason}" if value is None else f"{name} {value:.3f}"
        top = f"  (best {result_value(spec, best):.3f} at k={best.freeze_depth})" if best else ""
        seconds = f"  {result.seconds['total']:.0f} s" if result.seconds else ""
        return f"[{done}/{sweep.total}] {label(result.params, keys)}  {found}{top}{seconds}"

    if not console.is_terminal:

        def plain(sweep: "Sweep", ended: "Result | None") -> None:
            if ended is not None:
                console.print(line(sweep, ended))

        yield plain, plain_stage
        return

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.table import Column

    text = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # what gives way on a narrow terminal
    columns: list[Any] = [
        TextColumn("{task.description}", markup=False, table_column=text),
        BarColumn(bar_width=16),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
    ]
    with Bars(*columns, console=console, expand=True) as display:
        bars: dict[str, Any] = {"": display.add_task("sweep", total=None)}

        def live(sweep: "Sweep", ended: "Result | None") -> None:
            display.update(bars[""], total=sweep.total, completed=len(sweep.finished))
            running = {trial.folder.name: trial for trial in sweep.running}
            for name in bars.keys() - running.keys() - {""}:
                display.remove_task(bars.pop(name))
            for name, trial in running.items():
                if name not in bars:
                    bars[name] = display.add_task("", total=None)
                best = max((epoch["val/acc"] for epoch in trial.history), default=None)
                accuracy = "" if best is None else f"  val/acc {best:.3f}"
                text = f"  {label(trial.params, list(trial.params))}{accuracy}"
                display.update(bars[name], description=text, total=trial.epochs, completed=len(trial.history))
            if ended is not None:
                console.print(line(sweep, ended))

        yield live, stage_bars(display)
