"""The pictures of the verdict: the best's lead over each of the others, and where the trials went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from finetune.errors import counted
from finetune.records.ranking import NetworkDepth, Objective, depth_name
from finetune.records.result import Result
from finetune.report.bits import PER_IMAGE
from finetune.report.figures.base import BLUE, GREEN, GREY, ORANGE, PURPLE, empty_figure, plain, row_layout, wrapped
from finetune.report.standing import STANDINGS, Depth
from finetune.report.table import Table


@dataclass(frozen=True)
class Mark:
    """How a standing is drawn: a shape of its own; filled where it is decided, hollow where not."""

    color: str
    shape: str
    """Plotly's name."""
    size: float
    """In pixels, there."""
    letter: str
    """Matplotlib's name."""
    points: float
    """The size there."""
    filled: bool = True

    @property
    def plotly(self) -> dict[str, object]:
        """A scatter's `marker`."""
        symbol = self.shape if self.filled else f"{self.shape}-open"
        return {"color": self.color, "symbol": symbol, "size": self.size, "line": {"width": 0 if self.filled else 2.5}}


MARKS = {
    "best": Mark(ORANGE, "star", 18, "*", 19),
    "within": Mark(GREEN, "diamond", 12, "D", 9),
    "behind": Mark(GREY, "triangle-left", 13, "<", 10),
    "worse": Mark(GREY, "triangle-down", 14, "v", 11),
    "images": Mark(PURPLE, "square", 11, "s", 9, filled=False),
    "open": Mark(PURPLE, "circle", 12, "o", 10, filled=False),
    "few": Mark(GREY, "hexagon", 11, "h", 10, filled=False),
}
"""Of each of `STANDINGS`, in the order of a legend."""


def by_standing(depths: Sequence[Depth]) -> dict[str, list[Depth]]:
    """The depths of each standing that some have, in the order of `MARKS`."""
    members = {standing: [depth for depth in depths if depth.standing == standing] for standing in MARKS}
    return {standing: those for standing, those in members.items() if those}


def lead_figure(depths: Sequence[Depth], objective: Objective) -> go.Figure:
    """The best's lead over each of the others: a row each, with the interval of that lead and the bound that decides.

    The margin is a band to the left of zero: what lies no further left than it may be better by no more.

    Args:
        depths: All that were compared, judged by seeds and images.
        objective: Accuracies are drawn in points, another metric as it is.
    """
    best = next(depth for depth in depths if depth.standing == "best")
    others = [depth for depth in depths if depth.comparison is not None]
    scale, unit = (100, "points") if objective.metric in PER_IMAGE else (1, objective.metric)

    leader = best.name if len(best.name) < 8 else "the best"  # settings would be wider than a phone
    plot = empty_figure(f"lead of {plain(leader)} in {unit}", "")
    plot.add_vrect(
        x0=-scale * objective.margin,
        x1=0,
        fillcolor=GREEN,
        opacity=0.18,
        line_width=0,
        layer="below",
    )
    # its entry in the legend
    plot.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        name="margin",
        marker={"color": GREEN, "opacity": 0.3, "symbol": "square", "size": 14},
        legendrank=1001,  # after the standings
    )
    plot.add_vline(x=0, line={"color": GREY, "width": 2})
    _add_bounds(plot, others, scale)
    for standing, members in by_standing(others).items():
        _add_leads(plot, standing, members, scale)

    plot.update_layout(
        xaxis_zeroline=False,
        legend_traceorder="normal",
        xaxis_title_standoff=8,
        **row_layout([one.name for one in others]),
    )
    return plot


def _add_leads(plot: go.Figure, standing: str, members: Sequence[Depth], scale: float) -> None:
    mark = MARKS[standing]
    rows = [(depth, depth.comparison) for depth in members if depth.comparison is not None]
    plot.add_scatter(
        x=[scale * row.lead for _, row in rows],
        y=[wrapped(depth.name) for depth, _ in rows],
        mode="markers",
        name=STANDINGS[standing],
        marker=mark.plotly,
        error_x={
            "array": [scale * row.half_width for _, row in rows],
            # half seen through, so that the mark stands out; plotly 6.0 takes no alpha in hexadecimal
            "color": f"rgba({', '.join(map(str, bytes.fromhex(mark.color.removeprefix('#'))))}, 0.5)",
            "thickness": 6,
            "width": 0,
        },
        text=[
            f"{counted(len(depth.group.seeds), 'seed')}: {STANDINGS[standing]}<br>lead {scale * row.lead:.3g} "
            f"[{scale * (row.lead - row.half_width):.3g}..{scale * (row.lead + row.half_width):.3g}]"
            for depth, row in rows
        ],
        hovertemplate="%{y}, %{text}<extra></extra>",
    )


def _add_bounds(plot: go.Figure, others: Sequence[Depth], scale: float) -> None:
    """Add the bound that decides each row: the least lead of one that is worse; of another, minus the most to lose."""
    rows = [(depth, depth.comparison) for depth in others if depth.comparison is not None]
    bounds = [scale * (row.low if depth.standing == "worse" else min(0.0, -row.loss)) for depth, row in rows]
    plot.add_scatter(
        x=bounds,
        y=[wrapped(depth.name) for depth, _ in rows],
        mode="markers",
        name="bound that decides",
        legendrank=1001,
        marker={"color": GREY, "symbol": "line-ns-open", "size": 18, "line": {"width": 3}},
        error_x={
            "symmetric": False,
            "array": [max(0.0, scale * row.lead - bound) for (_, row), bound in zip(rows, bounds, strict=True)],
            "arrayminus": [0] * len(rows),
            "color": GREY,
            "thickness": 1.5,
            "width": 0,
        },
        hovertemplate="%{y}: a lead of at least %{x:.3g}, for all together<extra></extra>",
    )


def _pattern(color: str, shape: str) -> dict[str, object]:
    return {
        "color": color,
        "pattern": {"shape": shape, "bgcolor": color, "fgcolor": "#fff", "fgopacity": 0.4, "size": 7},
    }


SPENT = {
    "explored whole": {"color": BLUE},
    "stopped or not started": _pattern(GREY, "/"),
    "repeats with new seeds": _pattern(ORANGE, "."),
    "failed or interrupted": _pattern(PURPLE, "x"),
}
"""What trials were for, and how their bars look."""
_ROOM = 0.04
"""Share of the longest bar that has room for a number, on a phone too."""


def spent(records: Sequence[Result], table: Table) -> dict[str, dict[NetworkDepth, list[float]]]:
    """The seconds of each trial by what it was for, one of `SPENT`, and by freeze depth; without one it is left out.

    Args:
        records: All of a sweep's.
        table: Made from them.
    """
    seconds: dict[str, dict[NetworkDepth, list[float]]] = {purpose: {} for purpose in SPENT}
    for record in records:
        if record.freeze_depth is not None:
            purpose = _purpose(record, table.objective.explored_by)
            seconds[purpose].setdefault(table.at(record), []).append(record.total_seconds)
    return seconds


def _purpose(record: Result, explored_by: int | None) -> str:
    if record.status in ("failed", "interrupted"):
        return "failed or interrupted"
    if explored_by is not None and record.seed != explored_by:
        return "repeats with new seeds"
    return "explored whole" if record.status == "complete" else "stopped or not started"


def spent_figure(seconds: Mapping[str, Mapping[NetworkDepth, Sequence[float]]]) -> go.Figure:
    """A bar a freeze depth of a network: how long its trials took, by what for; the numbers in it count them."""
    depths = sorted({depth for of_depth in seconds.values() for depth in of_depth})
    longest = max(sum(sum(of_depth.get(depth, ())) for of_depth in seconds.values()) for depth in depths)
    unit, divisor = ("seconds", 1) if longest < 300 else ("minutes", 60) if longest < 18000 else ("hours", 3600)

    plot = empty_figure(f"{unit} of trial time", "")
    for purpose, of_depth in seconds.items():
        if not of_depth:
            continue
        counts = [len(of_depth.get(depth, ())) for depth in depths]
        plot.add_bar(
            x=[sum(of_depth.get(depth, ())) / divisor for depth in depths],
            y=[wrapped(depth_name(depth)) for depth in depths],
            orientation="h",
            name=purpose,
            marker=SPENT[purpose],
            text=[
                str(n) if of_depth.get(k) and sum(of_depth[k]) > _ROOM * longest else ""
                for n, k in zip(counts, depths, strict=True)
            ],
            customdata=[counted(count, "trial") for count in counts],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            constraintext="none",
            insidetextfont={"color": "#000"},
            hovertemplate=f"%{{y}} {purpose}: %{{customdata}}, %{{x:.3g}} {unit}<extra></extra>",
        )
    plot.update_layout(
        barmode="stack",
        bargap=0.3,
        legend_traceorder="normal",
        xaxis_title_standoff=8,
        yaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [wrapped(depth_name(depth)) for depth in depths],
            "autorange": "reversed",
            "tickformat": "",
        },
        height=150 + 40 * len(depths),
    )
    return plot
