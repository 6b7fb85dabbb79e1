"""Running sweeps with W&B: agents, uploads, dashboards."""

import re
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from finetune.commands.report import print_conclusions
from finetune.console import console
from finetune.errors import Interrupted, Refused, counted, message_of


def agent(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="ENTITY/PROJECT/ID, as `wandb sweep` printed it.")],
    gpus: Annotated[str, typer.Option(help="`all`, or numbers such as 0,2.")] = "all",
    workers: Annotated[int | None, typer.Option(min=1, help="Agents; default one a GPU or core.")] = None,
    trials_per_gpu: Annotated[int, typer.Option(min=1, help="Agents that share a GPU.")] = 1,
    count: Annotated[int | None, typer.Option(min=1, help="Trials of each agent at the most.")] = None,
) -> int:
    """Run W&B agents, one a GPU.

    As `wandb agent`, but a trial starts in a second instead of a cold process.
    """
    from finetune.records.read import read_records
    from finetune.sweep.agent import run_agents

    folder = run_agents(sweep, gpus, workers, trials_per_gpu, count)
    if not folder.is_dir():
        console.print("the sweep had no trial left")
        return 0

    print_conclusions([folder], read_records(folder))
    console.print(f"records of the trials run here: {folder}")
    return 0


def scheduler(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="ENTITY/PROJECT/ID, as `wandb sweep` printed it.")],
    agents: Annotated[int, typer.Option(min=1, help="How many agents run: so many trials at a time.")] = 4,
    margin: Annotated[float, typer.Option(min=0.0, max=100.0, help="Points of accuracy that are worth having.")] = 2.0,
    no_repeats: Annotated[
        bool, typer.Option("--no-repeats", help="The file's trials as they are, and no others.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option(help="Run failed trials again.")] = False,
    stuck_after: Annotated[
        str, typer.Option(metavar="TIME", help="A run that is silent for so long is given up and started again.")
    ] = "15m",
    poll: Annotated[str, typer.Option(metavar="TIME", help="From one look at the runs to the next.")] = "10s",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    experimental: Annotated[bool, typer.Option(help="Needed, as long as W&B calls this experimental.")] = False,
) -> int:
    """Decide about the trials that W&B's agents run.

    As `finetune sweep` does, with its race, its repeats and its verdict, on any number of machines that run `wandb
    agent` or `finetune agent`. The sweep file needs `scheduler: {engine: wandb}`. Started again, it goes on from what
    W&B knows.
    """
    from finetune.commands.display import watching
    from finetune.commands.sweep import conclude, seconds, this_command
    from finetune.sweep.scheduler import TESTED_WITH, run_scheduler
    from finetune.sweep.state import Options

    if not experimental:
        raise Refused(
            f"finetune scheduler uses a queue that W&B calls experimental, tried with wandb {TESTED_WITH} and never "
            f"against W&B's own server; add --experimental to use it: {this_command()} --experimental"
        )
    options = Options(
        margin=None if no_repeats else margin / 100,
        retry_failed=retry_failed,
        stuck_after=seconds("--stuck-after", stuck_after),
    )
    try:
        with watching() as (watch, _):
            ended = run_scheduler(sweep, options, agents, seed, seconds("--poll", poll), watch)
    except (KeyboardInterrupt, Interrupted):
        console.print("\nstopped; the agents finish what they have. To go on: " + this_command())
        raise
    code = conclude(ended)
    if ended.best is not None:
        console.print(f"the models are on the machines that trained them, the best one on {ended.best.host}")
    return code


def sync(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep that ran here.")],
    project: Annotated[str, typer.Option(help="PROJECT, or ENTITY/PROJECT.")] = "finetune",
) -> int:
    """Upload a sweep to W&B.

    Its trials become runs in a group of the sweep's name; none is uploaded twice. Another run says what it found.
    """
    from rich.progress import Progress

    from finetune.report.wandb import sync_records
    from finetune.report.wandb_summary import write_summary

    entity, _, name = project.rpartition("/")
    with Progress(console=console, transient=True) as display:
        bar = display.add_task("uploading")

        def show(done: int, total: int) -> None:
            display.update(bar, completed=done, total=total)

        uploaded = sync_records(folder, name, entity or None, show)

    last = f", the last as {uploaded[-1]}" if uploaded else ""
    console.print(f"uploaded {counted(len(uploaded), 'trial')}{last}")
    console.print(f"what it found: {write_summary(folder, entity or None, name, folder.name)}")
    return 0


def dashboard(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="ENTITY/PROJECT, or ENTITY/PROJECT/SWEEP.")],
    watch: Annotated[bool, typer.Option(help="Keep the summaries up to date until no sweep runs any more.")] = False,
) -> int:
    """Show in W&B what sweeps found.

    A summary run a sweep (the curve with its intervals, the verdict, tables, the report page), and a workspace view.
    What is there already is brought up to date. SWEEP is a sweep's id, or the group of an uploaded one.
    """
    from finetune.report.wandb import rename_old_column, write_dashboard

    entity, _, name = project.partition("/")
    name, _, sweep = name.partition("/")
    if not entity or not name or "/" in sweep:
        raise Refused(f"{project} is not a project; give ENTITY/PROJECT, or ENTITY/PROJECT/SWEEP")

    view = write_dashboard(entity, name)
    console.print(view or "no workspace view, which needs another package of W&B's: pip install wandb-workspaces")
    renamed = rename_old_column(entity, name)
    if renamed:
        console.print(f"{counted(renamed, 'run')} of an earlier version got the column freeze_depth")
    _summarise(entity, name, sweep, watch)
    return 0


_REFRESH = 30.0
"""Seconds from one look at running sweeps to the next."""


def _summarise(entity: str, project: str, sweep: str, watch: bool) -> None:
    """Write the summary runs of a project's sweeps, or of one; again as their trials end, while any is running."""
    from finetune.report.wandb_runs import client_errors

    ended: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        goes_on = _summarise_now(entity, project, sweep, Path(scratch), ended)
        while watch and goes_on:
            time.sleep(_REFRESH)
            try:
                goes_on = _summarise_now(entity, project, sweep, Path(scratch), ended)
            except client_errors() as error:
                console.print(f"W&B does not answer ({message_of(error)}); asking again")


def _summarise_now(entity: str, project: str, sweep: str, scratch: Path, ended: dict[str, int]) -> bool:
    """Bring the summary runs up to date.

    Args:
        entity: W&B's.
        project: W&B's.
        sweep: Its id, or a group; empty for all of the project.
        scratch: Where records are kept from one look to the next.
        ended: How many trials of each sweep its summary tells of; updated.

    Returns:
        Whether any of these sweeps goes on.
    """
    from finetune.records.layout import RECORD, TRIALS
    from finetune.report.wandb_runs import is_going_on, sweeps_in
    from finetune.report.wandb_summary import write_summary
    from finetune.sweep.wandb_sweep import fetch_sweep

    found = {name: running for name, running in sweeps_in(entity, project).items() if sweep in ("", name)}
    if sweep and not found:
        raise Refused(f"{entity}/{project} has no runs of a sweep or group {sweep}; give one that it has")

    for name in found:
        folder = scratch / re.sub(r"[^\w.-]", "-", name)
        without = fetch_sweep(entity, project, name, folder)
        records = len(list((folder / TRIALS).glob(f"*/{RECORD}")))
        if records == ended.get(name, 0):
            continue

        said = f" ({counted(without, 'run')} without a record left out)" if without else ""
        console.print(f"{name}: {counted(records, 'trial')}{said}, {write_summary(folder, entity, project, name)}")
        ended[name] = records
    return any(running or is_going_on(entity, project, name) for name, running in found.items())
