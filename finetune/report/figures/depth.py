"""The main picture: accuracy against freeze depth, or of a few configurations where one depth was tried."""

import math
from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from finetune.errors import counted
from finetune.records.metric import sign_of
from finetune.records.ranking import network_of
from finetune.records.result import Result
from finetune.report.depths import common_depths, margin, unit_names
from finetune.report.figures.base import (
    ORANGE,
    TICKS,
    TRIAL,
    empty_figure,
    hover,
    line_style,
    plain,
    row_layout,
    share_format,
    value_range,
    wrapped,
)
from finetune.report.figures.verdict import MARKS, by_standing
from finetune.report.standing import STANDINGS, Depth
from finetune.report.table import Table, label

REPEAT = {"color": TRIAL["color"], "opacity": 0.75, "size": 6}
"""A trial that repeated, filled; one that explored is a ring."""
RING = {"color": TRIAL["color"], "opacity": 0.85, "size": 8, "symbol": "circle-open", "line": {"width": 1.5}}


def depth_figure(
    table: Table, complete: Sequence[Result], depths: Sequence[Depth], explored_by: int | None = None
) -> go.Figure:
    """Validation accuracy against freeze depth: every trial a point, the best of each depth a line with intervals.

    Of several networks each has a line, and its trials the colour of that.

    Args:
        table: Of all records.
        complete: The trials to show.
        depths: The best configuration of each depth, and how it stands.
        explored_by: The seed that explored, where others repeated.
    """
    plot = empty_figure("freeze depth k", f"best {table.objective.words}")
    left = beside([depth.group.freeze_depth for depth in depths])
    aside = places(table, left)
    for i, network in enumerate(table.networks or ("",)):
        own = [record for record in complete if network in ("", network_of(record))]
        for name, trials, marker in _kinds(own, explored_by):
            shown = hover(trials, table, "%{fullData.name}")
            if not network:
                shown["text"] = [f"{table.name(r)} {text}" for r, text in zip(trials, shown["text"], strict=True)]
            plot.add_scatter(
                x=[(record.freeze_depth or 0) + aside[network] - left for record in trials],
                y=[table.objective.shown(record) for record in trials],
                mode="markers",
                name=name,
                legendgroup=name if network else None,
                showlegend=i == 0,
                marker=marker | ({"color": line_style(i)["color"]} if network else {}),
                **shown,
            )

    for i, network in enumerate(table.networks or ("",)):
        members = [depth for depth in depths if table.at(depth.group)[0] == network]
        plot.add_scatter(
            x=[depth.group.freeze_depth + aside[network] for depth in members],
            y=[table.mean_of(depth.group) for depth in members],
            mode="lines",
            name=plain(network) or "best configuration, mean of its seeds",
            line={"width": 2.5, **(line_style(i) if network else {"color": ORANGE})},
            error_y=_interval(members),
            hoverinfo="skip",
        )
    for standing, members in by_standing(depths).items():
        plot.add_scatter(
            x=[depth.group.freeze_depth + aside[table.at(depth.group)[0]] for depth in members],
            y=[table.mean_of(depth.group) for depth in members],
            mode="markers",
            name=STANDINGS[standing],
            marker=MARKS[standing].plotly,
            text=[_hover_text(depth, table) for depth in members],
            customdata=[plain(depth.name) for depth in members],
            hovertemplate=f"%{{customdata}}<br>mean {table.objective.name} %{{y:.4f}}%{{text}}<extra></extra>",
        )
    plot.update_layout(
        yaxis={"range": span(depths, complete, table), "tickformat": share_format(table.objective)}, height=540
    )
    _name_depths(plot, sorted({depth.group.freeze_depth for depth in depths}), complete)
    return plot


def configurations_figure(table: Table, complete: Sequence[Result], configurations: Sequence[Depth]) -> go.Figure:
    """The accuracy of each configuration with its interval, a row each and the best on top; its trials as points."""
    rows = {key: wrapped(one.name) for one in configurations for key in one.group.keys}
    shown = [record for record in complete if record.key in rows]

    plot = empty_figure(f"best {table.objective.words}", "")
    plot.add_scatter(
        x=[table.objective.shown(record) for record in shown],
        y=[rows[record.key] for record in shown],
        mode="markers",
        name="trial",
        marker=RING,
        **{
            **hover(shown, table, ""),
            "hovertemplate": f"{table.objective.name} %{{x:.4f}}<br>%{{text}}<extra></extra>",
        },
    )
    for standing, members in by_standing(configurations).items():
        mark = MARKS[standing]
        plot.add_scatter(
            x=[table.mean_of(one.group) for one in members],
            y=[wrapped(one.name) for one in members],
            mode="markers",
            name=STANDINGS[standing],
            marker=mark.plotly,
            error_x=_interval(members) | {"color": mark.color},
            text=[_hover_text(one, table) for one in members],
            hovertemplate=f"mean {table.objective.name} %{{x:.4f}}%{{text}}<extra></extra>",
        )

    plot.update_layout(
        xaxis={"range": span(configurations, shown, table), "tickformat": share_format(table.objective)},
        **row_layout([one.name for one in configurations]),
    )
    return plot


def beside(depths: Sequence[float]) -> float:
    """How far the trials lie to the left of their depth, where the mean has its interval and would hide them."""
    return 0.016 * (max(depths) - min(depths) + (1 if max(depths) > 1 else 0.1))


def places(table: Table, left: float) -> dict[str, float]:
    """How far each network's curve lies to the right of its depths, so that intervals lie beside each other.

    Args:
        table: Which has the networks; one alone stays where it is, under an empty name.
        left: What `beside` gives.
    """
    networks = table.networks or ("",)
    return {name: 1.6 * left * (i - (len(networks) - 1) / 2) for i, name in enumerate(networks)}


def span(depths: Sequence[Depth], complete: Sequence[Result], table: Table) -> list[float]:
    """The ends of the axis: all trials, and the intervals as far as these are no wider than 40 points.

    That of two or three seeds alone can be wider than everything else.
    """
    ends = [
        table.mean_of(depth.group) + side * depth.half_width
        for depth in depths
        if depth.half_width is not None and depth.half_width < 0.2
        for side in (-1, 1)
    ]
    most = 1.0 if sign_of(table.objective.metric) > 0 else math.inf
    shown = [table.objective.shown(record) for record in complete]
    return value_range([*shown, *(min(most, max(0.0, end)) for end in ends)], table.objective)


def _kinds(
    complete: Sequence[Result], explored_by: int | None
) -> Iterator[tuple[str, Sequence[Result], dict[str, object]]]:
    """The trials that explored and those that repeated, each with a name and a marker."""
    if explored_by is None:
        yield "trial", complete, TRIAL
        return
    yield "trial that explored", [record for record in complete if record.seed == explored_by], RING
    yield "repeat with a new seed", [record for record in complete if record.seed != explored_by], REPEAT


def _interval(depths: Sequence[Depth]) -> dict[str, object]:
    return {
        "array": [depth.half_width or 0 for depth in depths],
        "visible": any(depth.half_width is not None for depth in depths),
        "width": 5,
        "thickness": 2,
    }


def _hover_text(depth: Depth, table: Table) -> str:
    width = "" if depth.half_width is None else f" ± {depth.half_width:.4f}"
    settings = plain(label(depth.group.params, table.swept))
    return f"{width}<br>{settings}, {counted(len(depth.group.accuracies), 'seed')}: {STANDINGS[depth.standing]}"


def _name_depths(plot: go.Figure, depths: Sequence[float], complete: Sequence[Result]) -> None:
    """Write the units' names under the axis, and the shares that they freeze above the plot."""
    room = margin(complete)
    ends = [min(depths) - room, max(depths) + room]
    plot.update_xaxes(title=f"freeze depth k ({unit_names(complete)})", range=ends)
    if len(depths) > TICKS:
        return

    plot.update_xaxes(tickvals=list(depths))
    known = common_depths(complete)
    places = [None if known is None else known.place(depth) for depth in depths]
    if known is None or None in places:
        return

    rows = [(depth, place) for depth, place in zip(depths, places, strict=True) if place is not None]
    names = [f"<b>{depth}</b><br>{known.names[place].strip('()')}" for depth, place in rows]
    shares = [f"{known.parameters[place]:.0%}<br>{known.flops[place]:.0%}" for _, place in rows]
    plot.update_layout(
        xaxis_ticktext=names,
        xaxis2={
            "title": "parameters / FLOPs frozen",
            "overlaying": "x",
            "side": "top",
            "range": ends,
            "tickvals": list(depths),
            "ticktext": shares,
            "showgrid": False,
        },
        margin={"t": 90, "b": 90},
        legend={"y": -0.3, "yanchor": "top"},
    )
    # plotly draws the upper axis only if some trace is on it
    plot.add_scatter(x=list(depths), y=[None] * len(depths), xaxis="x2", showlegend=False, hoverinfo="skip")
