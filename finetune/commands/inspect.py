"""What to look at before training: the images, and what each freeze depth freezes."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.console import console, plain_table
from finetune.errors import Refused, counted

if TYPE_CHECKING:
    from finetune.config import Config
    from finetune.data.check import Inspection


def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder of class folders, a CSV file, or shapes10.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="As for training: data.on_bad=skip …")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with pictures of each class.")
    ] = None,
) -> int:
    """Look at images before training.

    Counts classes, reads every image whole, and names unreadable files, copies across the split, imbalance and odd
    formats. Ends with 2 when training would be refused, else with 0.
    """
    from finetune.compose import compose_config, override
    from finetune.data.check import BALANCED_METRIC
    from finetune.data.table import is_table
    from finetune.storage.durable import refuse_unwritable

    key = "data.csv" if is_table(Path(data).expanduser()) else "data.root"
    settings = [override(key, data), *(overrides or ())]
    config = compose_config(settings)
    if html is not None:
        refuse_unwritable(html, "--html")
    inspection = _inspect(config)
    _print_images(data, inspection)

    for path, why in inspection.unreadable.items():
        console.print(f"unreadable: {path} ({why})")
    from finetune.network.catalog import with_input  # with torch, whose seconds nobody should wait before the table

    caveats = inspection.caveats(with_input(config).data.size)
    for sentence in caveats:
        console.print(f"caveat: {sentence}")

    refusals = [
        f"training would be refused: {why}" for why in inspection.refusals(config.data.on_bad, config.data.on_leak)
    ]
    for sentence in refusals:
        console.print(sentence)
    if html is not None:
        _write_page(html, data, inspection, [*refusals, *caveats])
    if refusals:
        return 2

    if inspection.unbalanced and not any(word.startswith("trainer.metric=") for word in settings):
        settings.append(BALANCED_METRIC)
    console.print(f"ready to train: finetune sweep explore.yaml {shlex.join(settings)}")
    return 0


def _write_page(file: Path, data: str, inspection: "Inspection", sentences: Sequence[str]) -> None:
    """Write the page with pictures of each class, and say where it is."""
    from finetune.data.check_page import check_page
    from finetune.storage.durable import write_durably

    write_durably(file, check_page(data, inspection, sentences).encode(errors="replace"))
    console.print(f"page: {file}")


def _inspect(config: "Config") -> "Inspection":
    """Read the images that a trial with this config would train on."""
    from rich.progress import Progress

    from finetune.data.check import inspect_images
    from finetune.data.source import find_samples

    cache = Path(config.cache.dir).expanduser()
    samples = find_samples(config.data, cache)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as display:
        bar = display.add_task("reading images")
        return inspect_images(samples, cache, lambda done, total: display.update(bar, completed=done, total=total))


def _print_images(data: str, inspection: "Inspection") -> None:
    """Print how many images each class has in each split, and what kinds of images they are."""
    from finetune.data.check import range_and_median

    counts, classes = inspection.counts, inspection.data.classes
    table = plain_table(f"{data}: {len(classes)} classes")
    table.add_column("class")
    for split in counts:
        table.add_column(split, justify="right")
    for label, name in enumerate(classes):
        table.add_row(name, *(str(counts[split][label]) for split in counts))
    table.add_row("all", *(str(sum(counts[split])) for split in counts), style="bold")
    console.print(table)

    readable = list(inspection.readable.values())
    console.print(f"width in pixels:  {range_and_median([image.width for image in readable])}")
    console.print(f"height in pixels: {range_and_median([image.height for image in readable])}")
    console.print("kinds of pixels:  " + ", ".join(f"{count} {mode}" for mode, count in inspection.modes.most_common()))


def depths(
    backbone: Annotated[
        str, typer.Argument(metavar="BACKBONE", help="resnet50, convnext_tiny, timm/vit_small_patch14_dinov2, …")
    ],
    unit: Annotated[str, typer.Option(help="What k counts: block, stage, layer, tensor or share.")] = "block",
    size: Annotated[int | None, typer.Option(min=32, help="Height and width of the images, pixels.")] = None,
) -> int:
    """Print what each freeze depth freezes.

    A row for each k of a backbone, with parameters, FLOPs, shapes, and the same depth in the other units.
    """
    from finetune.config import FREEZE_UNITS
    from finetune.errors import nearest

    if unit not in FREEZE_UNITS:
        raise Refused(f"unit {unit!r} is not known; {nearest(unit, FREEZE_UNITS)}")

    from finetune.network.backbone import backbone_shapes
    from finetune.network.catalog import default_size
    from finetune.network.depths import depth_table

    size = size or default_size(backbone)

    # a share of the blocks is no column: the network has as many of them as it has rows
    others = [other for other in FREEZE_UNITS if other not in (unit, "share")]
    table = plain_table(f"{backbone} at {size} × {size}: k counts {unit}s; the last columns give k in the other units")
    for name in ("k", "last frozen", "parameters", "of all", "FLOPs", "cut shape", *(f"{other}s" for other in others)):
        table.add_column(name, justify="left" if name == "last frozen" else "right", no_wrap=name != "last frozen")
    for row in depth_table(backbone_shapes(backbone, size), unit, size):
        table.add_row(
            str(row.k),
            row.name,
            f"{row.parameters:,}",
            f"{row.parameter_share:.1%}",
            f"{row.flop_share:.1%}",
            "×".join(map(str, row.shape)),
            *(row.same[other] for other in others),
        )
    console.print(table)
    if unit != "share":
        deepest = table.row_count - 1
        console.print(
            f"windows: model.train_units=[a,b] trains what lies between rows a and b, and the head, for "
            f"0 <= a < b <= {deepest}; the stages are {_stages(backbone, unit, size)}"
        )
    return 0


def _stages(backbone: str, unit: str, size: int) -> str:
    """The windows of the stages, in units: `[0,1] [1,4] [4,8]`."""
    import itertools

    from finetune.network.backbone import backbone_shapes
    from finetune.network.depths import boundaries

    shapes = backbone_shapes(backbone, size)
    edges, stages = boundaries(shapes, unit), boundaries(shapes, "stage")
    ks = [edges.index(tensors) for tensors in stages if tensors in edges]
    return " ".join(f"[{a},{b}]" for a, b in itertools.pairwise(ks))


_MOST_ROWS = 60
"""Networks that `backbones` looks at; each takes a moment."""


def backbones(
    pattern: Annotated[
        str,
        typer.Argument(metavar="[PATTERN]", help="A part of the name, or with * and ?: convnext, 'timm/vit_small*'."),
    ] = "",
) -> int:
    """List the networks there are.

    Their names; for up to 60 that fit PATTERN parameters, FLOPs, units to freeze, input size, and whether weights lie
    on this machine.
    """
    from finetune.network.catalog import known_names

    names = known_names(pattern)
    if not names:
        raise Refused(f"no network's name contains {pattern!r}; `finetune backbones` lists them all")
    if len(names) > _MOST_ROWS:
        console.print("\n".join(names), highlight=False)
        console.print(f"{len(names)} networks; with a PATTERN that fits up to {_MOST_ROWS} of them, what each is like")
        return 0

    table = plain_table(f"{counted(len(names), 'network')}, without classifier")
    for column in ("name", "parameters", "GFLOPs", "blocks", "size", "weights here"):
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=True)
    for name in names:
        table.add_row(name, *_described(name))
    console.print(table)
    return 0


def _described(name: str) -> tuple[str, ...]:
    """The cells of a network, or why it cannot be used."""
    from finetune.network.backbone import backbone_shapes
    from finetune.network.catalog import default_size, has_weights_here
    from finetune.network.depths import forward_flops

    try:
        size = default_size(name)
        backbone = backbone_shapes(name, size)
    except Refused as refusal:
        return (str(refusal),)
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    flops = forward_flops(backbone, size) / 1e9
    return (
        f"{parameters:,}",
        f"{flops:.2f}",
        str(len(backbone.units)),
        str(size),
        "yes" if has_weights_here(name) else "",
    )
