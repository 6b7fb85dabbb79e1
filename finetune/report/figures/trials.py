"""The pictures of single trials: accuracy against cost, over epochs and over time."""

import itertools
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from finetune.records.metric import of_an_epoch
from finetune.records.ranking import network_of
from finetune.records.result import Result
from finetune.report.figures.base import (
    DASHES,
    GREY,
    LINES,
    ORANGE,
    SCALE,
    SYMBOLS,
    TRIAL,
    empty_figure,
    hover,
    plain,
    share_format,
)
from finetune.report.table import Table

_CURVES = 60
"""Learning curves beside those of the best configurations, at the most."""


def pareto_figure(complete: Sequence[Result], table: Table) -> go.Figure:
    """Accuracy against the seconds of a trial; of several networks each has a colour and a mark of its own."""
    plot = empty_figure("seconds of a trial", f"best {table.objective.words}")
    by_depth = {
        "color": [record.freeze_depth for record in complete],
        "colorscale": SCALE,
        "size": 9,
        "line": {"color": GREY, "width": 1},  # its ends are as dark and as light as a page may be
        "colorbar": {"title": {"text": "k"}, "thickness": 12},
    }
    for i, network in enumerate(table.networks or ("",)):
        trials = [record for record in complete if network in ("", network_of(record))]
        by_network = {"color": LINES[i % len(LINES)], "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 9, "opacity": 0.75}
        plot.add_scatter(
            x=[record.total_seconds for record in trials],
            y=[table.objective.shown(record) for record in trials],
            mode="markers",
            name=plain(network) or "trial",
            marker=by_network if network else by_depth,
            **hover(trials, table, "%{x:.1f} s" if network else "k=%{marker.color}, %{x:.1f} s"),
        )
    plot.update_yaxes(tickformat=share_format(table.objective))
    front = pareto_front([(record.total_seconds, table.objective.score_of(record)) for record in complete])
    plot.add_scatter(
        x=[seconds for seconds, _ in front],
        y=[table.objective.score(score) for _, score in front],
        mode="lines",
        name="Pareto front",
        line={"color": GREY if table.networks else ORANGE, "width": 2, "shape": "hv"},
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
    """What the sweep optimises, after each epoch."""
    plot = empty_figure("epoch", table.objective.words)
    plot.update_yaxes(tickformat=share_format(table.objective))
    best = table.best_per_depth
    best_keys = {key for group in best for key in group.keys}
    metric = of_an_epoch(table.objective.metric)
    _add_grey_curves(plot, [record for record in complete if record.key not in best_keys][:_CURVES], metric)

    shares = [0.2 + 0.7 * i / max(1, len(best) - 1) for i in range(len(best))]  # its ends do not show on every page
    colors = sample_colorscale(SCALE, shares)
    dashes = itertools.cycle(DASHES)
    by_key = {record.key: record for record in complete}
    for group, color, dash in zip(best, colors, dashes, strict=False):
        line = {"color": color, "width": 2.5, "dash": dash}
        _add_curves(plot, plain(table.name(group)), [by_key[key] for key in group.keys], line, metric)
    return plot


def _add_grey_curves(plot: go.Figure, records: Sequence[Result], metric: str) -> None:
    """Add the curves of trials that are only there to compare with, as one trace with gaps."""
    x: list[float | None] = []
    y: list[float | None] = []
    for record in records:
        x += [*(epoch["epoch"] + 1 for epoch in record.history), None]
        y += [*(epoch.get(metric) for epoch in record.history), None]

    line = {"color": GREY, "width": 1}
    plot.add_scatter(x=x, y=y, mode="lines", name="other trials", line=line, opacity=0.35, hoverinfo="skip")


def _add_curves(plot: go.Figure, name: str, records: Sequence[Result], line: dict[str, object], metric: str) -> None:
    """Add a curve for each seed of a configuration, under one entry of the legend."""
    for i, record in enumerate(records):
        plot.add_scatter(
            x=[epoch["epoch"] + 1 for epoch in record.history],
            y=[epoch.get(metric) for epoch in record.history],
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

    plot = empty_figure("minutes since the first trial began", f"best {table.objective.words}")
    plot.update_yaxes(tickformat=share_format(table.objective))
    plot.add_scatter(
        x=minutes,
        y=[table.objective.shown(record) for record in ordered],
        mode="markers",
        name="trial",
        marker=TRIAL,
        **hover(ordered, table, "after %{x:.1f} min"),
    )
    plot.add_scatter(
        x=minutes,
        y=[table.objective.score(best) for best in itertools.accumulate(map(table.objective.score_of, ordered), max)],
        mode="lines",
        name="best so far",
        line={"color": ORANGE, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
    return plot
