"""What to do with images before training."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from finetune.console import plain_table
from finetune.progress import console


def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder of class folders, a CSV file, or shapes10.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="As for training: data.on_bad=skip …")
    ] = None,
) -> int:
    """Look at images before training.

    Counts classes, reads every image whole, and names unreadable files, copies across the split, imbalance and odd
    formats. Ends with 2 when training would be refused, else with 0.
    """
    from rich.progress import Progress

    from finetune.compose import compose_config, override
    from finetune.data.check import look_at, middle
    from finetune.data.samples import load_samples
    from finetune.data.shapes import EMBEDDED, embedded_folder

    key = "data.csv" if data.endswith(".csv") else "data.root"
    config = compose_config([override(key, data), *(overrides or ())])
    given = config.data
    root = str(embedded_folder(Path(config.cache.dir).expanduser())) if given.root == EMBEDDED else given.root
    found = load_samples(root, given.csv, given.val_fraction, given.split_seed, given.use_val_as)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as display:
        bar = display.add_task("reading images")
        checkup = look_at(found, lambda done, total: display.update(bar, completed=done, total=total))
    counts = checkup.counts
    table = plain_table(f"{data}: {len(found.classes)} classes")
    table.add_column("class")
    for split in counts:
        table.add_column(split, justify="right")
    for label, name in enumerate(found.classes):
        table.add_row(name, *(str(counts[split][label]) for split in counts))
    table.add_row("all", *(str(sum(counts[split])) for split in counts), style="bold")
    console.print(table)
    good = [look for look in checkup.looks.values() if not look.why]
    console.print(f"width in pixels:  {middle([look.width for look in good])}")
    console.print(f"height in pixels: {middle([look.height for look in good])}")
    console.print("kinds of pixels:  " + ", ".join(f"{count} {mode}" for mode, count in checkup.modes.most_common()))
    for path, why in checkup.unreadable.items():
        console.print(f"unreadable: {path} ({why})")
    for doubt in checkup.doubts(given.size):
        console.print(f"doubt: {doubt}")
    refusals = checkup.refusals(given.on_bad, given.on_leak)
    for reason in refusals:
        console.print(f"training would be refused: {reason}")
    if not refusals:
        words = [override(key, data), *(overrides or ())]
        console.print(f"ready to train: finetune sweep explore.yaml {shlex.join(words)}")
    return 2 if refusals else 0
