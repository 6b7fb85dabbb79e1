"""The main picture as a PNG, drawn with Pillow: no browser is needed. Imports no torch."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from finetune.records.result import Result
from finetune.report.depths import depths_of
from finetune.report.table import Table
from finetune.storage.durable import write_durably

_WIDTH, _HEIGHT = 1600, 1000
_LEFT, _RIGHT, _TOP, _BOTTOM = 150, 1560, 120, 830
_BLUE, _ORANGE, _INK, _QUIET, _LINE = "#3d8fd1", "#d55e00", "#1b1b1b", "#595959", "#e0e0e0"


def write_png(path: Path, records: Sequence[Result], table: Table, title: str) -> None:
    """Validation accuracy against freeze depth, 1600 × 1000: trials, best of each depth, 95 % intervals, units' names.

    Without a complete trial it says so.
    """
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    draw.text((_LEFT, 30), title[:90], fill=_INK, font=_font(34))
    complete = [r for r in records if r.status == "complete" and r.val_acc_best is not None]
    if complete:
        _plot(draw, complete, table)
    else:
        draw.text((_LEFT, 200), "No trial is complete yet.", fill=_INK, font=_font(30))
    buffer = io.BytesIO()
    image.quantize(64).save(buffer, "PNG", optimize=True)
    write_durably(path, buffer.getvalue())


def _plot(draw: ImageDraw.ImageDraw, complete: Sequence[Result], table: Table) -> None:
    best = table.best_per_depth
    depths = [group.freeze_depth for group in best]
    values = [r.val_acc_best or 0.0 for r in complete]
    room = max(0.02, 0.12 * (max(values) - min(values)))
    low, high = max(0.0, min(values) - room), min(1.0, max(values) + room)
    first, last = min(depths) - 0.5, max(depths) + 0.5

    def at(depth: float, accuracy: float) -> tuple[float, float]:
        x = _LEFT + (_RIGHT - _LEFT) * (depth - first) / (last - first)
        return x, _BOTTOM - (_BOTTOM - _TOP) * (min(max(accuracy, low), high) - low) / (high - low)

    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / step <= 8 or step == 0.2)
    for level in (i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)):
        y = at(first, level)[1]
        draw.line([(_LEFT, y), (_RIGHT, y)], fill=_LINE, width=2)
        draw.text((_LEFT - 15, y), f"{level:.0%}", fill=_QUIET, font=_font(24), anchor="rm")
    kinds = {(str(r.config.get("model.backbone")), r.freeze_unit) for r in complete}
    known = depths_of(*next(iter(kinds))) if len(kinds) == 1 else None
    for depth in depths if len(depths) <= 20 else depths[:: len(depths) // 10]:
        x = at(depth, low)[0]
        draw.text((x, _BOTTOM + 15), str(depth), fill=_INK, font=_font(26), anchor="mt")
        if known and depth < len(known.names) and len(depths) <= 12:
            name = known.names[depth].replace("(nothing)", "nothing")
            draw.text((x, _BOTTOM + 50), name, fill=_QUIET, font=_font(20), anchor="mt")
    units = ", ".join(sorted({f"{r.freeze_unit}s" for r in complete}))
    middle = (_LEFT + _RIGHT) / 2
    draw.text((middle, _BOTTOM + 90), f"freeze depth k ({units})", fill=_INK, font=_font(26), anchor="mt")
    legend = "points: trials    line: best configuration of each depth, 95 % interval over seeds"
    draw.text((middle, _BOTTOM + 130), legend, fill=_QUIET, font=_font(22), anchor="mt")
    for record in complete:
        x, y = at(record.freeze_depth or 0, record.val_acc_best or 0)
        draw.ellipse([x - 6, y - 6, x + 6, y + 6], outline=_BLUE, width=3)
    draw.line([at(group.freeze_depth, group.mean) for group in best], fill=_ORANGE, width=6, joint="curve")
    for group in best:
        x, y = at(group.freeze_depth, group.mean)
        if group.half_width is not None:
            ends = [at(group.freeze_depth, group.mean + sign * group.half_width) for sign in (-1, 1)]
            draw.line(ends, fill=_ORANGE, width=4)
            for _, end in ends:
                draw.line([(x - 12, end), (x + 12, end)], fill=_ORANGE, width=4)
        draw.polygon([(x - 12, y), (x, y - 12), (x + 12, y), (x, y + 12)], fill=_ORANGE)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
