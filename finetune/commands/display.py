"""The live view of a sweep on the terminal: its trials, and the work that comes before them."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from finetune.console import console, plain_stage, stage_bars
from finetune.errors import counted
from finetune.storage.parallel import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from finetune.records.result import Result
    from finetune.sweep.repeats import Contender, Repeats
    from finetune.sweep.spec import SweepSpec
    from finetune.sweep.state import Running, Sweep

Watch = Callable[["Sweep", "Result | None"], None]
"""Called with the state of a sweep, and the trial that has just ended, if one has."""


@contextlib.contextmanager
def watching() -> Iterator[tuple[Watch, Progress]]:
    """A live view on a terminal, a line a trial elsewhere: one callback for trials, one for what comes before them."""
    if not console.is_terminal:
        yield _printer(), plain_stage
        return

    with _bars() as display:
        yield _live_view(display), stage_bars(display)


def _printer() -> Watch:
    """Prints each trial that ended, and what is repeated once that is decided."""
    printed: Repeats[Contender] | None = None

    def show(sweep: "Sweep", ended: "Result | None") -> None:
        nonlocal printed
        if ended is not None:
            console.print(_trial_line(sweep, ended))
        if sweep.repeats is not None and sweep.repeats is not printed and not sweep.repeats.done:
            console.print(_repeats_line(sweep, sweep.repeats))
        printed = sweep.repeats

    return show


def _repeats_line(sweep: "Sweep", repeats: "Repeats[Contender]") -> str:
    """`k=0, k=17 not better; open: k=8, k=11 against k=14; now 9 repeats with new seeds, about 2 min`.

    What is `worse` so far is told as `not better`, for that is what the verdict may say of it after the next repeats.
    """
    from finetune.report.standing import STANDINGS, name_of, standing_of
    from finetune.report.table import contender_of, tabulate
    from finetune.report.verdict import duration

    def names(contenders: "Iterable[Contender]") -> str:
        return ", ".join(map(name_of, contenders))

    settled: dict[str, list[Contender]] = {}
    for name, row in repeats.comparisons.items():
        if name not in repeats.open:
            standing = standing_of(row)
            settled.setdefault("behind" if standing == "worse" else standing, []).append(name)
    parts = [f"{names(of_it)} {STANDINGS[standing]}" for standing, of_it in settled.items()]

    missing = sweep.total - len(sweep.finished)
    whole = [result for result in sweep.results if result.status == "complete"]
    table = tabulate(whole)
    seconds = [r.total_seconds for r in whole if contender_of(table, r) in repeats.wanted]
    seconds = seconds or [r.total_seconds for r in whole]
    left = missing * sum(seconds) / max(1, len(seconds)) / sweep.capacity
    open_ones = (
        f"open: {names(repeats.open)} against {name_of(repeats.leader)}"
        if repeats.open
        else f"{name_of(repeats.leader)} alone is in reach"
    )
    return "; ".join([*parts, f"{open_ones}; now {counted(missing, 'repeat')} with new seeds, about {duration(left)}"])


def _trial_line(sweep: "Sweep", result: "Result") -> str:
    """`[3/36] freeze_depth=4 lr=0.01  val/acc 0.716  (best 0.752 at k=11)  8 s`."""
    from finetune.records.ranking import BACKBONE, depth_name, network_of
    from finetune.report.table import label
    from finetune.sweep.state import result_value

    spec, best = sweep.spec, sweep.best
    value = result_value(spec, result)
    name = spec.metric.removesuffix("_best")
    outcome = f"{result.status}: {result.reason}" if value is None else f"{name} {value:.3f}"
    if best is not None:
        network = network_of(best) if BACKBONE in spec.parameters else ""
        outcome += f"  (best {result_value(spec, best):.3f} at {depth_name((network, best.freeze_depth or 0))})"
    if result.seconds:
        outcome += f"  {result.total_seconds:.0f} s"
    return f"[{len(sweep.finished)}/{sweep.total}] {label(result.params, list(spec.parameters))}  {outcome}"


def _bars() -> "Bars":
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
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
    return Bars(*columns, console=console, expand=True)


def _live_view(display: "Bars") -> Watch:
    """A bar for the sweep and one for each running trial, which ends as a line."""
    whole = display.add_task("sweep", total=None)
    bars: dict[str, Any] = {}
    print_news = _printer()

    def show(sweep: "Sweep", ended: "Result | None") -> None:
        display.update(whole, total=sweep.total, completed=len(sweep.finished))

        running = {trial.folder.name: trial for trial in sweep.running}
        for name in bars.keys() - running.keys():
            display.remove_task(bars.pop(name))
        for name, trial in running.items():
            if name not in bars:
                bars[name] = display.add_task("", total=None)
            display.update(
                bars[name],
                description=_running_line(trial, sweep.spec),
                total=trial.epochs,
                completed=len(trial.history),
            )
        print_news(sweep, ended)

    return show


def _running_line(trial: "Running", spec: "SweepSpec") -> str:
    from finetune.records.metric import of_an_epoch
    from finetune.report.table import label

    curve = spec.curve(trial.history)
    best = f"  {of_an_epoch(spec.metric)} {spec.sign * max(curve):.3f}" if curve else ""
    return f"  {label(trial.params, list(trial.params))}{best}"
