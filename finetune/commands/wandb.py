"""Running sweeps with W&B: agents, uploads, dashboards."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.commands.report import print_conclusions
from finetune.console import console
from finetune.errors import Refused, counted


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


def sync(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep that ran here.")],
    project: Annotated[str, typer.Option(help="PROJECT, or ENTITY/PROJECT.")] = "finetune",
) -> int:
    """Upload a sweep to W&B.

    Its trials become runs in a group of the sweep's name; none is uploaded twice.
    """
    from rich.progress import Progress

    from finetune.report.wandb import sync_records

    entity, _, name = project.rpartition("/")
    with Progress(console=console, transient=True) as display:
        bar = display.add_task("uploading")

        def show(done: int, total: int) -> None:
            display.update(bar, completed=done, total=total)

        uploaded = sync_records(folder, name, entity or None, show)

    last = f", the last as {uploaded[-1]}" if uploaded else ""
    console.print(f"uploaded {counted(len(uploaded), 'trial')}{last}")
    return 0


def dashboard(project: Annotated[str, typer.Argument(metavar="PROJECT", help="ENTITY/PROJECT.")]) -> int:
    """Make a W&B workspace view.

    Accuracy against freeze depth, learning curves and more; an existing one is brought up to date.
    """
    from finetune.report.wandb import rename_old_column, write_dashboard

    entity, _, name = project.partition("/")
    if not entity or not name or "/" in name:
        raise Refused(f"{project} is not a project; give ENTITY/PROJECT")

    console.print(write_dashboard(entity, name))
    renamed = rename_old_column(entity, name)
    if renamed:
        console.print(f"{counted(renamed, 'run')} of an earlier version got the column freeze_depth")
    return 0
