"""Running sweeps here: start, look, plan."""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.commands.display import watching
from finetune.commands.report import print_conclusions
from finetune.console import console
from finetune.errors import Interrupted, Refused, counted

if TYPE_CHECKING:
    from finetune.records.result import Result
    from finetune.sweep.estimate import Estimate
    from finetune.sweep.state import Forecast, Sweep


_WHICH, _WHERE = "Which trials", "Where and how they run"
"""Headings of `finetune sweep --help`, under which what most people never set stands."""


def sweep(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A W&B sweep file, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of every trial.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep; default runs/NAME.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time at the most: 90s, 30m, 2h.")] = None,
    margin: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Points of accuracy that are worth having: how sure to become.")
    ] = 2.0,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials at the most, instead of run_cap.", rich_help_panel=_WHICH)
    ] = None,
    no_repeats: Annotated[
        bool,
        typer.Option(
            "--no-repeats",
            help="Run the file's trials as they are, and no others: no verdict on noise.",
            rich_help_panel=_WHICH,
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time; default one a GPU or core.", rich_help_panel=_WHERE)
    ] = None,
    gpus: Annotated[str, typer.Option(help="`all`, or numbers such as 0,2.", rich_help_panel=_WHERE)] = "all",
    trials_per_gpu: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            help="Trials that share a GPU; auto: several where all train heads alone.",
            rich_help_panel=_WHERE,
        ),
    ] = "auto",
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a sweep, or of runs, whose finished trials count here too.", rich_help_panel=_WHICH
        ),
    ] = None,
    launcher: Annotated[
        str, typer.Option(help="local, slurm, or a copy of conf/launcher/slurm.yaml.", rich_help_panel=_WHERE)
    ] = "local",
    retry_failed: Annotated[bool, typer.Option(help="Run failed trials again.", rich_help_panel=_WHICH)] = False,
    stuck_after: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Without progress for so long, a trial is started again.", rich_help_panel=_WHERE
        ),
    ] = "15m",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.", rich_help_panel=_WHICH)] = 0,
) -> int:
    """Run a sweep, or continue one.

    The trials run on every GPU or core of this machine, or on a cluster. The same command continues a sweep that was
    stopped, and repeats no finished trial.
    """
    from finetune.sweep.launch import per_gpu_of
    from finetune.sweep.run import run_sweep
    from finetune.sweep.spec import find_sweep, read_sweep
    from finetune.sweep.state import Options

    spec = read_sweep(find_sweep(file), tuple(overrides or ()), trials)
    folder = out or _folder_of(spec.name)
    limit = None if budget is None else seconds("--budget", budget)
    patience = seconds("--stuck-after", stuck_after)
    options = Options(
        workers=workers,
        gpus=gpus,
        trials_per_gpu=per_gpu_of(trials_per_gpu),
        budget=limit,
        reuse=tuple(reuse or ()),
        launcher=launcher,
        margin=None if no_repeats else margin / 100,
        retry_failed=retry_failed,
        stuck_after=patience,
    )
    try:
        with watching() as (watch, show):
            ended = run_sweep(spec, folder, options, seed, watch, show, _announce)
    except (KeyboardInterrupt, Interrupted):
        console.print("\nstopped; to continue, run the same command again: " + this_command())
        raise
    return conclude(ended)


def _announce(estimate: "Estimate", races: bool) -> None:
    """Say what a sweep will take, in a line."""
    console.print(estimate.lines(races)[0])


def conclude(ended: "Sweep") -> int:
    """Say how a sweep ended, what it found and what comes next; returns the exit code."""
    from finetune.records.read import read_records
    from finetune.report.page.page import write_report

    for note in ended.notes:
        console.print(f"warning: {note}")
    if ended.taken:
        console.print(f"{ended.taken} of {counted(ended.total, 'trial')} taken from --reuse instead of run")
    if ended.ended:
        console.print(f"ended early: {ended.ended}")
    if not ended.finished:
        console.print("no trial finished; the same command continues: " + this_command())
        return 4

    records = read_records(ended.folder)
    print_conclusions([ended.folder], records)
    console.print(f"plot and table: {write_report(ended.folder, records)}")
    if ended.best is None:
        reason = ended.results[0].reason
        console.print(f"no trial succeeded; the first reason: {reason} (mended? --retry-failed runs them again)")
        return 4

    if ended.forecast is not None and ended.forecast.estimated > 0:
        _print_error(ended.forecast)
    _print_next_steps(ended, ended.best)
    failed = sum(result.status == "failed" for result in ended.results)
    if ended.out_of_time:
        left = max(0, ended.total - len(ended.finished))
        console.print(f"{counted(left, 'trial')} not run yet; to go on, run the same command again: {this_command()}")
    if failed:
        console.print(
            f"{failed} failed: finetune status {ended.folder} says why; once mended, --retry-failed runs them again"
        )
        return 3
    return 0


def _print_error(forecast: "Forecast") -> None:
    """Say how far off the estimate was, for the epochs that were run; how many those would be nobody could know."""
    from finetune.report.verdict import duration

    off = forecast.took / forecast.estimated - 1
    console.print(
        f"time: the trials took {duration(forecast.took)}; what ran was estimated at {duration(forecast.estimated)} "
        f"({off:+.0%})"
    )


def _print_next_steps(ended: "Sweep", best: "Result") -> None:
    from finetune.data.shapes import EMBEDDED
    from finetune.records.layout import TRIALS

    spec = ended.spec
    if best.val_acc_best is None:  # a refit, whose kind is not compared
        console.print(f"a model of it: finetune export {ended.folder / TRIALS / best.key} OUT")
        return
    console.print(f"the winner, its command and its model: finetune best {ended.folder}")
    if any(key in (f"data={EMBEDDED}", "experiment=embedded") for key in spec.fixed):
        console.print("the same on your own images: make sweep-local DATA=FOLDER")
        console.print("      or from anywhere:      finetune sweep explore.yaml data.root=FOLDER")


def status(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep.")]) -> int:
    """Say how far a sweep is.

    Trials by status, those under way, why some failed, the best so far.
    """
    from finetune.records.layout import RECORD, TRIALS
    from finetune.records.plan import planned
    from finetune.records.ranking import read_objective
    from finetune.records.read import read_records
    from finetune.report.table import label, tabulate, winner_sentence
    from finetune.sweep.folder import is_running
    from finetune.sweep.records import trials_under_way

    # A sweep that has just begun has a plan and no record yet; a folder with neither is refused.
    plan = planned(folder)
    begun = any((folder / TRIALS).glob(f"*/{RECORD}"))
    records = read_records(folder) if begun or not plan else []
    objective = read_objective([folder])
    table = tabulate(records, objective)
    total, keys = plan or (0, ["model.freeze_depth", *table.swept])
    total = max(total, len(records))  # a later call may have asked for fewer

    finished = sum(count for name, count in table.counts.items() if name != "interrupted")
    by_status = ", ".join(f"{count} {name}" for name, count in table.counts.items())
    console.print(f"{finished} of {total} finished" + (f": {by_status}" if by_status else ""))

    running = is_running(folder)
    for trial in trials_under_way(folder) if running else []:
        console.print(f"under way: {_how_far(trial, keys, objective.name)}")
    failed = [record for record in records if record.status == "failed"]
    for record in failed:
        console.print(f"failed {record.key} ({label(record.params, keys)}): {record.reason}")
    if failed:
        console.print("once that is mended, the same command with --retry-failed runs them again")

    if records:
        console.print(winner_sentence(table))
    if not running and finished < total:
        console.print("nobody runs it now; the command that began it goes on")
    return 0


def _how_far(trial: Path, keys: Sequence[str], metric: str) -> str:
    """The swept settings of a trial under way, its epochs so far, and the last one's metric."""
    from finetune.report.table import label
    from finetune.sweep.records import overrides_of, progress_of

    overrides, progress = overrides_of(trial), progress_of(trial)
    settings = label(overrides, keys)
    if not progress:
        return f"{settings}  in its first epoch"

    history = progress["history"]
    value = history[-1].get(metric)
    last = "" if value is None else f", {metric} {value:.3f}"
    return f"{settings}  epoch {len(history)}/{progress['epochs']}{last}"


def _folder_of(name: str) -> Path:
    """Where the sweep of that name lives: where it began, if that was under a name that not every system has."""
    from finetune.records.layout import SWEEP, folder_name

    plain = Path("runs") / name
    return plain if (plain / SWEEP).is_file() else Path("runs") / folder_name(name)


def seconds(option: str, text: str) -> float:
    """`90s`, `30m`, `2h` or plain seconds as a number of seconds."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    unit = text[-1:] if text[-1:] in units else ""
    try:
        number = float(text.removesuffix(unit)) * units.get(unit, 1)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise Refused(f"{option} {text} is not a time; give a number with a unit, such as 90s, 30m or 2h")
    return number


def this_command() -> str:
    """What was typed, for a person who is to type it again."""
    name = Path(sys.argv[0]).name
    words = ["python", "-m", "finetune"] if name == "__main__.py" else [name]
    return shlex.join([*words, *sys.argv[1:]])
