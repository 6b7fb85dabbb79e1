"""What to do with images before training."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.console import console, plain_table
from finetune.errors import Refused

if TYPE_CHECKING:
    pass


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
    from finetune.data.check import inspect_images, range_and_median
    from finetune.data.samples import load_samples
    from finetune.data.shapes import EMBEDDED, embedded_folder

    key = "data.csv" if data.endswith(".csv") else "data.root"
    config = compose_config([override(key, data), *(overrides or ())])
    given = config.data
    root = str(embedded_folder(Path(config.cache.dir).expanduser())) if given.root == EMBEDDED else given.root
    found = load_samples(root, given.csv, given.val_fraction, given.split_seed, given.use_val_as)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as display:
        bar = display.add_task("reading images")
        inspection = inspect_images(found, lambda done, total: display.update(bar, completed=done, total=total))
    counts = inspection.counts
    table = plain_table(f"{data}: {len(found.classes)} classes")
    table.add_column("class")
    for split in counts:
        table.add_column(split, justify="right")
    for label, name in enumerate(found.classes):
        table.add_row(name, *(str(counts[split][label]) for split in counts))
    table.add_row("all", *(str(sum(counts[split])) for split in counts), style="bold")
    console.print(table)
    good = list(inspection.readable.values())
    console.print(f"width in pixels:  {range_and_median([image.width for image in good])}")
    console.print(f"height in pixels: {range_and_median([image.height for image in good])}")
    console.print("kinds of pixels:  " + ", ".join(f"{count} {mode}" for mode, count in inspection.modes.most_common()))
    for path, why in inspection.unreadable.items():
        console.print(f"unreadable: {path} ({why})")
    for doubt in inspection.caveats(given.size):
        console.print(f"doubt: {doubt}")
    refusals = inspection.refusals(given.on_bad, given.on_leak)
    for reason in refusals:
        console.print(f"training would be refused: {reason}")
    if not refusals:
        words = [override(key, data), *(overrides or ())]
        console.print(f"ready to train: finetune sweep explore.yaml {shlex.join(words)}")
    return 2 if refusals else 0


def depths(
    backbone: Annotated[str, typer.Argument(metavar="BACKBONE", help="resnet50, narrow_resnet50, cnn5, …")],
    unit: Annotated[str, typer.Option(help="What k counts: block, stage, layer or tensor.")] = "block",
    size: Annotated[int, typer.Option(min=32, help="Height and width of the images, pixels.")] = 224,
) -> int:
    """Print what each freeze depth freezes.

    A row for each k of a backbone, with parameters, FLOPs, shapes, and the same depth in the other units.
    """
    from finetune.config import BACKBONES, FREEZE_UNITS
    from finetune.errors import nearest

    for name, given, known in (("backbone", backbone, BACKBONES), ("unit", unit, FREEZE_UNITS)):
        if given not in known:
            raise Refused(f"{name} {given!r} is not known; {nearest(given, known)}")

    from finetune.network.backbone import build_backbone
    from finetune.network.freeze import depth_table

    table = plain_table(f"{backbone} at {size} × {size}: k counts {unit}s; the last columns give k in the other units")
    others = [other for other in FREEZE_UNITS if other != unit]
    columns = ["k", "last frozen", "parameters", "of all", "FLOPs", "cut shape", *(f"{other}s" for other in others)]
    for name in columns:
        table.add_column(name, justify="left" if name == "last frozen" else "right", no_wrap=name != "last frozen")
    for row in depth_table(build_backbone(backbone), unit, size):
        shape = "×".join(map(str, row.shape))
        shares = (f"{row.parameter_share:.1%}", f"{row.flop_share:.1%}")
        table.add_row(
            str(row.k), row.name, f"{row.parameters:,}", *shares, shape, *(row.same[other] for other in others)
        )
    console.print(table)
    return 0
