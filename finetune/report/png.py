"""The main picture as a PNG, for a slide or a README: no browser is needed. Imports no torch."""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.records.metric import sign_of
from finetune.records.ranking import network_of
from finetune.records.result import Result
from finetune.report.depths import common_depths, margin, unit_names
from finetune.report.figures.base import BLUE, LINES, ORANGE, TICKS
from finetune.report.figures.depth import beside, places, span
from finetune.report.figures.verdict import MARKS, by_standing
from finetune.report.standing import STANDINGS, Depth, compare_depths
from finetune.report.table import Table, ranked, winner_sentence
from finetune.storage.durable import write_durably

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (10, 6.25)
_DPI = 160
"""With the inches, 1600 × 1000 pixels."""
_DASHES = ("-", "--", ":", "-.")
"""Of the curves of several networks, as in `figures.base`."""
_NAMED = 12
"""Depths that have room for the names of their units, at the most."""


def write_png(path: Path, records: Sequence[Result], table: Table, title: str) -> None:
    """Write validation accuracy against freeze depth as a picture of 1600 × 1000 pixels.

    >>> from finetune.records.read import read_records
    >>> from finetune.report.table import tabulate
    >>> records = read_records(Path("runs/local"))
    >>> write_png(Path("curve.png"), records, tabulate(records), "Photographs of birds")
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(depth_picture(records, table, title))  # needs no screen, whatever this machine is set to
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # what the font lacks shows as a box
        canvas.print_png(buffer)
    write_durably(path, buffer.getvalue())


def depth_picture(records: Sequence[Result], table: Table, title: str) -> "Figure":
    """Trials as points; the best of each depth as a line, with 95 % intervals; the units' names under the axis.

    Without a complete trial the picture says so.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
    axes = figure.add_subplot()
    axes.set_title(title[:90], loc="left", pad=12, parse_math=False)  # a folder's name may hold a $

    complete = ranked(records)
    if complete:
        _plot(axes, records, complete, table)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    else:
        axes.set_axis_off()
        axes.text(0, 0.9, winner_sentence(table))
    return figure


def _plot(axes: "Axes", records: Sequence[Result], complete: Sequence[Result], table: Table) -> None:
    depths, interval = _depths(records, table)
    left = beside([depth.group.freeze_depth for depth in depths])
    aside = places(table, left)
    _plot_trials(axes, complete, table, left)
    for i, network in enumerate(table.networks or ("",)):
        own = [depth for depth in depths if table.at(depth.group)[0] == network]
        axes.errorbar(
            [depth.group.freeze_depth + aside[network] for depth in own],
            [table.mean_of(depth.group) for depth in own],
            yerr=[math.nan if depth.half_width is None else depth.half_width for depth in own],
            color=LINES[i % len(LINES)] if network else ORANGE,
            linestyle=_DASHES[i % len(_DASHES)],
            linewidth=2.5,
            elinewidth=2,
            capsize=5,
            label=f"{f'{network}: ' if network else ''}best configuration of each depth{interval}",
        )
    for standing, members in by_standing(depths).items():
        mark = MARKS[standing]
        axes.plot(
            [depth.group.freeze_depth + aside[table.at(depth.group)[0]] for depth in members],
            [table.mean_of(depth.group) for depth in members],
            linestyle="none",
            marker=mark.letter,
            markersize=mark.points,
            color=mark.color,
            markerfacecolor=mark.color if mark.filled else "white",
            markeredgewidth=0 if mark.filled else 2.5,
            zorder=5,
            label=STANDINGS[standing],
        )

    axes.set_ylim(*span(depths, complete, table))
    if sign_of(table.objective.metric) > 0:
        axes.yaxis.set_major_formatter(lambda accuracy, position: f"{accuracy:.0%}")
    axes.set_ylabel(f"best {table.objective.words}")
    axes.set_xlabel(f"freeze depth k ({unit_names(complete)})")
    _name_depths(axes, sorted({depth.group.freeze_depth for depth in depths}), complete)

    axes.grid(axis="y", color="#e0e0e0")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _depths(records: Sequence[Result], table: Table) -> tuple[list[Depth], str]:
    """The best of each depth, and what the legend says of the intervals; of one depth alone, the best."""
    assert table.winner is not None  # there is a complete trial
    standings = compare_depths(records, table, table.winner)
    depths = [depth for depth in standings.depths if depth.group in table.best_per_depth]
    if all(depth.half_width is None for depth in depths):
        return depths, ""

    by_image = standings.judged and standings.by_image
    return depths, f",\n95 % interval {'for new seeds and new images' if by_image else 'over seeds'}"


def _plot_trials(axes: "Axes", complete: Sequence[Result], table: Table, left: float) -> None:
    objective, explored_by = table.objective, table.objective.explored_by
    aside = places(table, left)
    colors = {name: LINES[i % len(LINES)] for i, name in enumerate(table.networks)}
    explored = [record for record in complete if explored_by in (None, record.seed)]
    repeats = [record for record in complete if explored_by not in (None, record.seed)]
    axes.scatter(
        [(record.freeze_depth or 0) + aside[table.at(record)[0]] - left for record in explored],
        [objective.shown(record) for record in explored],
        s=30,
        facecolors="none",
        edgecolors=[colors.get(network_of(record), BLUE) for record in explored],
        linewidths=1.5,
        label="trial that explored" if repeats else "trial",
    )
    if repeats:
        axes.scatter(
            [(record.freeze_depth or 0) + aside[table.at(record)[0]] - left for record in repeats],
            [objective.shown(record) for record in repeats],
            s=20,
            color=[colors.get(network_of(record), BLUE) for record in repeats],
            label="repeat with a new seed",
        )


def _name_depths(axes: "Axes", depths: Sequence[float], complete: Sequence[Result]) -> None:
    """Put the depths under the axis, each with the name of the last unit that it freezes where there is room."""
    room = margin(complete)
    axes.set_xlim(min(depths) - room, max(depths) + room)
    if len(depths) > TICKS:
        return

    known = common_depths(complete)
    places = [None if known is None else known.place(depth) for depth in depths]
    if known is None or None in places or len(depths) > _NAMED:
        axes.set_xticks(depths)
        return

    rows = [(depth, place) for depth, place in zip(depths, places, strict=True) if place is not None]
    labels = [f"{depth}\n{known.names[place].strip('()')}" for depth, place in rows]
    axes.set_xticks(depths, labels)
