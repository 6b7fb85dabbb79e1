"""What the pictures of a report have in common. Colours are Okabe and Ito's, or cividis: safe for the colour-blind."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from finetune.records.metric import sign_of
from finetune.records.ranking import Objective
from finetune.records.result import Result
from finetune.report.table import Table, label

BLUE, ORANGE, GREY = "#3d8fd1", "#d55e00", "#8a8a8a"
GREEN, PURPLE = "#009e73", "#cc79a7"
LINES = (BLUE, "#e69f00", GREEN, PURPLE, ORANGE)
"""Of the curves of several networks."""
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
SCALE = "Cividis"
TICKS = 20
"""Values that an axis names one by one, at the most."""
TRIAL = {"color": BLUE, "opacity": 0.6, "size": 8}
"""The marker of a trial."""
_ROW = 26
"""Characters of a row's name in a line, about."""


@dataclass(frozen=True)
class Picture:
    """A figure with what to say of it."""

    name: str
    title: str
    note: str
    """One sentence on how to read it."""
    figure: go.Figure


def share_format(objective: Objective) -> str:
    """D3's format of an axis of what the sweep optimises: per cent, but for losses."""
    return ".0%" if sign_of(objective.metric) > 0 else ""


def line_style(i: int) -> dict[str, object]:
    """Colour and dash of the i-th of several curves: no two of twenty are alike, nor told apart by colour alone."""
    return {"color": LINES[i % len(LINES)], "dash": DASHES[i % len(DASHES)]}


def empty_figure(x: str, y: str) -> go.Figure:
    """Axes titled `x` and `y`, accuracies as per cent, on the page's own background."""
    plot = go.Figure()
    plot.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={"title": x, "automargin": True},
        yaxis={"title": y, "tickformat": ".0%", "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 60, "r": 20, "t": 40, "b": 55},
        height=420,
        hovermode="closest",
    )
    return plot


def value_range(values: Sequence[float], objective: Objective) -> list[float]:
    """The ends of an axis of what the sweep optimises, with room around these values."""
    room = max(0.02, 0.15 * (max(values) - min(values)))
    most = 1.02 if sign_of(objective.metric) > 0 else math.inf
    return [max(0.0, min(values) - room), min(most, max(values) + room)]


def bars(values: Mapping[str, float], title: str, color: str, form: str) -> go.Figure:
    """A horizontal bar a value, the first on top; `form` is d3's format of the values."""
    plot = empty_figure(title, "")
    plot.add_bar(
        x=list(values.values()),
        y=[plain(name) for name in values],
        orientation="h",
        marker={"color": color},
        texttemplate=f"%{{x:{form}}}",
        hovertemplate=f"%{{y}}: %{{x:{form}}}<extra></extra>",
    )
    plot.update_layout(
        yaxis={"autorange": "reversed", "automargin": True, "tickformat": "", "type": "category"},
        xaxis_tickformat="" if form == "d" else form,
        height=110 + 45 * len(values),
    )
    return plot


def row_layout(names: Sequence[str]) -> dict[str, Any]:
    """The layout of a figure with a row for each name, the first on top."""
    rows = [wrapped(name) for name in names]
    axis = {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": rows,
        "autorange": "reversed",
        "tickformat": "",
    }
    return {"yaxis": axis, "height": 150 + 40 * len(rows)}


def hover(records: Sequence[Result], table: Table, first: str) -> dict[str, Any]:
    """What a scatter of trials shows of one under the pointer, beginning with `first`, and its key for a click."""
    return {
        "customdata": [record.key for record in records],
        "text": [
            f"{f'{plain(table.name(r))} ' if table.networks else ''}{plain(label(r.params, table.swept))} seed={r.seed}"
            for r in records
        ],
        "hovertemplate": f"{first}<br>{table.objective.name} %{{y:.4f}}<br>%{{text}}<extra></extra>",
    }


def wrapped(text: str) -> str:
    """`plain` text of a row's name, in several lines where it is long: a phone is 400 pixels wide.

    >>> wrapped("head.hidden=[] lr=0.001 weight_decay=0.01")
    'head.hidden=[] lr=0.001<br>weight_decay=0.01'
    """
    return "<br>".join(textwrap.wrap(plain(text), _ROW, break_on_hyphens=False)) or " "


def plain(text: str) -> str:
    """`text` without what plotly would read as a tag."""
    return text.replace("<", "‹").replace(">", "›")
