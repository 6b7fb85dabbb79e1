"""The pictures of a report: accuracy against depth and cost, over epochs and time, and failures."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from finetune.records.ranking import ACCURACY
from finetune.records.result import Result
from finetune.report.depths import common_depths, unit_names
from finetune.report.figures.base import (
    BLUE,
    GREY,
    ORANGE,
    SCALE,
    TICKS,
    Picture,
    accuracy_range,
    bars,
    empty_figure,
    hover,
    plain,
)
from finetune.report.figures.settings import importance_figure, parallel_figure, rates_figure
from finetune.report.table import Group, Table, label, ranked

_CURVES = 60
"""Learning curves beside those of the best configurations, at the most."""
_REASONS = 8
"""Different failures that have a bar, at the most."""
_TRIAL_MARKER = {"color": BLUE, "opacity": 0.6, "size": 8}


def pictures(records: Sequence[Result], table: Table, ended: Mapping[str, float]) -> list[Picture]:
    """Those that the records have something to show in, the main one first.

    Args:
        records: The sweep's.
        table: Made from them.
        ended: When each trial ended, by key, in seconds since 1970.
    """
    complete = ranked(records)
    if not complete:
        return list(_failures(records))
    return [*_of_settings(complete, table), *_over_time(complete, table, ended), *_failures(records)]


def _of_settings(complete: Sequence[Result], table: Table) -> Iterator[Picture]:
    by = "" if table.objective == ACCURACY else f" by {table.objective.name}"
    yield Picture(
        "depth",
        "Accuracy against freeze depth",
        f"Points are trials; the line joins the best configuration of each depth{by}, with the 95 % interval of its "
        "mean over seeds. Above: share of the parameters, and of the forward pass at 224 px, that is frozen.",
        depth_figure(table, complete),
    )
    yield Picture(
        "time",
        "Accuracy against cost",
        "The line is the Pareto front: no trial is both faster and better.",
        pareto_figure(complete, table),
    )
    if "optim.lr" in table.swept:
        yield Picture("rates", "Learning rate × depth", "Mean accuracy of each cell's trials.", rates_figure(complete))

    yield Picture(
        "parallel",
        "All settings at once",
        "A line is a trial, bright where it is accurate; hover to see which.",
        parallel_figure(complete, table),
    )
    deciding = importance_figure(complete, table)
    if deciding is not None:
        yield Picture(
            "importance",
            "What decides",
            "Optuna's PED-ANOVA: how much a setting decides if a trial is a good one.",
            deciding,
        )


def _over_time(complete: Sequence[Result], table: Table, ended: Mapping[str, float]) -> Iterator[Picture]:
    if any(len(record.history) > 1 for record in complete):
        yield Picture(
            "curves",
            "Learning curves",
            "The best configuration of each depth, every seed; other trials in grey.",
            curves_figure(complete, table),
        )
    if ended:
        figure = order_figure(complete, table, ended)
        yield Picture("trials", "Trials over time", "The line is the best so far.", figure)


def _failures(records: Sequence[Result]) -> Iterator[Picture]:
    failed = [record for record in records if record.status == "failed"]
    # "… became nan in epoch 3": one reason, whichever epoch it was
    reasons = Counter(record.reason.partition(" in epoch")[0][:70] or "no reason" for record in failed)
    if reasons:
        figure = bars(dict(reasons.most_common(_REASONS)), "trials", ORANGE, "d")
        yield Picture("failures", "Failures by reason", "The reasons in full are in the trials' records.", figure)


def depth_figure(table: Table, complete: Sequence[Result]) -> go.Figure:
    """Validation accuracy against freeze depth: every trial a point, the best of each depth a line."""
    best = table.best_per_depth
    widths = [group.half_width for group in best]
    depths = [group.freeze_depth for group in best]

    plot = empty_figure("freeze depth k", "best validation accuracy")
    plot.add_scatter(
        x=[record.freeze_depth for record in complete],
        y=[record.accuracy for record in complete],
        mode="markers",
        name="trial",
        marker=_TRIAL_MARKER,
        **hover(complete, table, "k=%{x}"),
    )
    plot.add_scatter(
        x=depths,
        y=[group.mean for group in best],
        mode="lines+markers",
        name="best configuration, mean of its seeds",
        line={"color": ORANGE, "width": 3},
        marker={"size": 10, "symbol": "diamond"},
        error_y={
            "array": [width or 0 for width in widths],
            "visible": any(width is not None for width in widths),
            "width": 6,
        },
        text=[f"{plain(label(group.params, table.swept))}, {len(group.accuracies)} seeds" for group in best],
        hovertemplate="k=%{x}<br>mean val/acc %{y:.4f}<br>%{text}<extra></extra>",
    )
    plot.update_layout(yaxis_range=accuracy_range([record.accuracy for record in complete]), height=520)
    _name_depths(plot, depths, complete)
    return plot


def _name_depths(plot: go.Figure, depths: Sequence[int], complete: Sequence[Result]) -> None:
    """Write the units' names under the axis, and the shares that they freeze above the plot."""
    ends = [min(depths) - 0.5, max(depths) + 0.5]
    plot.update_xaxes(title=f"freeze depth k ({unit_names(complete)})", range=ends)
    if len(depths) > TICKS:
        return

    plot.update_xaxes(tickvals=list(depths))
    known = common_depths(complete)
    if known is None or max(depths) >= len(known.names):
        return

    names = [f"<b>{depth}</b><br>{known.names[depth].strip('()')}" for depth in depths]
    shares = [f"{known.parameters[depth]:.0%}<br>{known.flops[depth]:.0%}" for depth in depths]
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


def pareto_figure(complete: Sequence[Result], table: Table) -> go.Figure:
    """Accuracy against the seconds of a trial."""
    plot = empty_figure("seconds of a trial", "best validation accuracy")
    plot.add_scatter(
        x=[record.total_seconds for record in complete],
        y=[record.accuracy for record in complete],
        mode="markers",
        name="trial",
        marker={
            "color": [record.freeze_depth for record in complete],
            "colorscale": SCALE,
            "size": 9,
            "line": {"color": GREY, "width": 1},  # its ends are as dark and as light as a page may be
            "colorbar": {"title": {"text": "k"}, "thickness": 12},
        },
        **hover(complete, table, "k=%{marker.color}, %{x:.1f} s"),
    )
    front = pareto_front([(record.total_seconds, record.accuracy) for record in complete])
    plot.add_scatter(
        x=[seconds for seconds, _ in front],
        y=[accuracy for _, accuracy in front],
        mode="lines",
        name="Pareto front",
        line={"color": ORANGE, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
    return plot


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) points that no other is better than in both, cheapest first.

    >>> pareto_front([(1, 0.5), (2, 0.4), (3, 0.8)])
    [(1, 0.5), (3, 0.8)]
    """
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def curves_figure(complete: Sequence[Result], table: Table) -> go.Figure:
    """Validation accuracy after each epoch."""
    plot = empty_figure("epoch", "validation accuracy")
    best = table.best_per_depth
    best_keys = {key for group in best for key in group.keys}
    _add_grey_curves(plot, [record for record in complete if record.key not in best_keys][:_CURVES])

    shares = [0.2 + 0.7 * i / max(1, len(best) - 1) for i in range(len(best))]  # its ends do not show on every page
    colors = sample_colorscale(SCALE, shares)
    dashes = itertools.cycle(("solid", "dash", "dot", "dashdot"))
    by_key = {record.key: record for record in complete}
    for group, color, dash in zip(best, colors, dashes, strict=False):
        line = {"color": color, "width": 2.5, "dash": dash}
        _add_curves(plot, group, [by_key[key] for key in group.keys], line)
    return plot


def _add_grey_curves(plot: go.Figure, records: Sequence[Result]) -> None:
    """Add the curves of trials that are only there to compare with, as one trace with gaps."""
    x: list[float | None] = []
    y: list[float | None] = []
    for record in records:
        x += [*(epoch["epoch"] + 1 for epoch in record.history), None]
        y += [*(epoch["val/acc"] for epoch in record.history), None]

    line = {"color": GREY, "width": 1}
    plot.add_scatter(x=x, y=y, mode="lines", name="other trials", line=line, opacity=0.35, hoverinfo="skip")


def _add_curves(plot: go.Figure, group: Group, records: Sequence[Result], line: dict[str, object]) -> None:
    """Add a curve for each seed of a configuration, under one entry of the legend."""
    name = f"k={group.freeze_depth}"
    for i, record in enumerate(records):
        plot.add_scatter(
            x=[epoch["epoch"] + 1 for epoch in record.history],
            y=[epoch["val/acc"] for epoch in record.history],
            mode="lines",
            name=name,
            legendgroup=name,
            showlegend=i == 0,
            line=line,
            customdata=[record.key] * len(record.history),
            hovertemplate=f"{name} seed={record.seed}<br>epoch %{{x}}: %{{y:.4f}}<extra></extra>",
        )


def order_figure(complete: Sequence[Result], table: Table, ended: Mapping[str, float]) -> go.Figure:
    """Accuracy of each trial, in the order in which they ended, and the best so far."""
    ordered = sorted(complete, key=lambda record: (ended.get(record.key, 0.0), record.key))
    start = min((ended.get(record.key, 0.0) - record.total_seconds for record in ordered), default=0.0)
    minutes = [(ended.get(record.key, start) - start) / 60 for record in ordered]

    plot = empty_figure("minutes since the first trial began", "best validation accuracy")
    plot.add_scatter(
        x=minutes,
        y=[record.accuracy for record in ordered],
        mode="markers",
        name="trial",
        marker=_TRIAL_MARKER,
        **hover(ordered, table, "after %{x:.1f} min"),
    )
    plot.add_scatter(
        x=minutes,
        y=list(itertools.accumulate((record.accuracy for record in ordered), max)),
        mode="lines",
        name="best so far",
        line={"color": ORANGE, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
    return plot
