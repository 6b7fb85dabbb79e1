"""The pictures of a report: accuracy against depth and cost, over epochs and time, and failures."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

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
from finetune.report.table import Table, label

_CURVES = 60
"""Learning curves beside those of the best configurations, at the most."""


def pictures(records: Sequence[Result], table: Table, ended: Mapping[str, float]) -> list[Picture]:
    """Those that the records have something to show in, the main one first.

    Args:
        records: Of the sweep.
        table: Made from them.
        ended: When each trial ended, by key, in seconds since 1970.
    """
    complete = [r for r in records if r.status == "complete" and r.val_acc_best is not None]
    return [*_of_complete(complete, table, ended), *_failures(records)] if complete else list(_failures(records))


def _of_complete(complete: Sequence[Result], table: Table, ended: Mapping[str, float]) -> Iterator[Picture]:
    yield Picture(
        "depth",
        "Accuracy against freeze depth",
        "Points are trials; the line joins the best configuration of each depth, with the 95 % interval of its mean "
        "over seeds. Above: share of the parameters, and of the forward pass at 224 px, that is frozen.",
        depth_figure(table, complete),
    )
    yield Picture(
        "time", "Accuracy against cost", "The line is the Pareto front: no trial is both faster and better.",
        pareto_figure(complete, table),
    )  # fmt: skip
    if any(key == "optim.lr" for key in table.swept):
        yield Picture("rates", "Learning rate × depth", "Mean accuracy of each cell's trials.", rates_figure(complete))
    yield Picture(
        "parallel", "All settings at once", "A line is a trial, bright where it is accurate; hover to see which.",
        parallel_figure(complete, table),
    )  # fmt: skip
    if (deciding := importance_figure(complete, table)) is not None:
        yield Picture(
            "importance", "What decides", "Optuna's PED-ANOVA: how much a setting decides if a trial is a good one.",
            deciding,
        )  # fmt: skip
    if any(len(r.history) > 1 for r in complete):
        yield Picture(
            "curves", "Learning curves", "The best configuration of each depth, every seed; other trials in grey.",
            curves_figure(complete, table),
        )  # fmt: skip
    if ended:
        yield Picture(
            "trials", "Trials over time", "The line is the best so far.", order_figure(complete, table, ended)
        )


def depth_figure(table: Table, complete: Sequence[Result]) -> go.Figure:
    """Validation accuracy against freeze depth: every trial a point, the best of each depth a line."""
    best = table.best_per_depth
    widths = [group.half_width for group in best]
    plot = empty_figure("freeze depth k", "best validation accuracy")
    plot.add_scatter(
        x=[r.freeze_depth for r in complete],
        y=[r.val_acc_best for r in complete],
        mode="markers",
        name="trial",
        marker={"color": BLUE, "opacity": 0.6, "size": 8},
        **hover(complete, table, "k=%{x}"),
    )
    plot.add_scatter(
        x=[group.freeze_depth for group in best],
        y=[group.mean for group in best],
        mode="lines+markers",
        name="best configuration, mean of its seeds",
        line={"color": ORANGE, "width": 3},
        marker={"size": 10, "symbol": "diamond"},
        error_y={"array": [w or 0 for w in widths], "visible": any(w is not None for w in widths), "width": 6},
        text=[f"{plain(label(group.params, table.swept))}, {len(group.accuracies)} seeds" for group in best],
        hovertemplate="k=%{x}<br>mean val/acc %{y:.4f}<br>%{text}<extra></extra>",
    )
    plot.update_layout(yaxis_range=accuracy_range([r.val_acc_best or 0 for r in complete]), height=520)
    _name_depths(plot, [group.freeze_depth for group in best], complete)
    return plot


def _name_depths(plot: go.Figure, depths: Sequence[int], complete: Sequence[Result]) -> None:
    """Units' names under the axis; the shares that they freeze above the plot."""
    outside = [min(depths) - 0.5, max(depths) + 0.5]
    plot.update_xaxes(title=f"freeze depth k ({unit_names(complete)})", range=outside)
    if len(depths) > TICKS:
        return
    plot.update_xaxes(tickvals=list(depths))
    known = common_depths(complete)
    if known is None or max(depths) >= len(known.names):
        return
    names = [known.names[k].strip("()") for k in depths]
    ticks = [f"<b>{k}</b><br>{name}" for k, name in zip(depths, names, strict=True)]
    shares = [f"{known.parameters[k]:.0%}<br>{known.flops[k]:.0%}" for k in depths]
    top = {"overlaying": "x", "side": "top", "range": outside, "tickvals": list(depths), "ticktext": shares}
    plot.update_layout(xaxis_ticktext=ticks, xaxis2={**top, "title": "parameters / FLOPs frozen", "showgrid": False})
    plot.update_layout(margin={"t": 90, "b": 90}, legend={"y": -0.3, "yanchor": "top"})
    plot.add_scatter(x=list(depths), y=[None] * len(depths), xaxis="x2", showlegend=False, hoverinfo="skip")


def pareto_figure(complete: Sequence[Result], table: Table) -> go.Figure:
    """Accuracy against training seconds."""
    plot = empty_figure("seconds of a trial", "best validation accuracy")
    seconds = [r.seconds.get("total", 0.0) for r in complete]
    depths = [r.freeze_depth for r in complete]
    plot.add_scatter(
        x=seconds,
        y=[r.val_acc_best for r in complete],
        mode="markers",
        name="trial",
        marker={
            "color": depths,
            "colorscale": SCALE,
            "size": 9,
            "line": {"color": GREY, "width": 1},  # its ends are as dark and as light as a page may be
            "colorbar": {"title": {"text": "k"}, "thickness": 12},
        },
        **hover(complete, table, "k=%{marker.color}, %{x:.1f} s"),
    )
    front = pareto_front([(s, r.val_acc_best or 0.0) for s, r in zip(seconds, complete, strict=True)])
    plot.add_scatter(
        x=[s for s, _ in front], y=[a for _, a in front], mode="lines", name="Pareto front",
        line={"color": ORANGE, "width": 2, "shape": "hv"}, hoverinfo="skip",
    )  # fmt: skip
    return plot


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) points that no other beats in both, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def curves_figure(complete: Sequence[Result], table: Table) -> go.Figure:
    """Validation accuracy after each epoch."""
    plot = empty_figure("epoch", "validation accuracy")
    by_key = {r.key: r for r in complete}
    best = table.best_per_depth
    ours = {key for group in best for key in group.keys}
    others = [r for r in complete if r.key not in ours][:_CURVES]
    points = [(e["epoch"] + 1, e["val/acc"]) if e else (None, None) for r in others for e in (*r.history, {})]
    plot.add_scatter(
        x=[x for x, _ in points], y=[y for _, y in points], mode="lines", name="other trials",
        line={"color": GREY, "width": 1}, opacity=0.35, hoverinfo="skip",
    )  # fmt: skip
    shares = [0.2 + 0.7 * i / max(1, len(best) - 1) for i in range(len(best))]  # its ends do not show on every page
    colors = sample_colorscale(SCALE, shares)
    dashes = itertools.cycle(("solid", "dash", "dot", "dashdot"))
    for group, color, dash in zip(best, colors, dashes, strict=False):
        for at, record in enumerate(by_key[key] for key in group.keys):
            plot.add_scatter(
                x=[e["epoch"] + 1 for e in record.history],
                y=[e["val/acc"] for e in record.history],
                mode="lines",
                name=f"k={group.freeze_depth}",
                legendgroup=f"k={group.freeze_depth}",
                showlegend=at == 0,
                line={"color": color, "width": 2.5, "dash": dash},
                customdata=[record.key] * len(record.history),
                hovertemplate=f"k={group.freeze_depth} seed={record.seed}<br>epoch %{{x}}: %{{y:.4f}}<extra></extra>",
            )
    return plot


def order_figure(complete: Sequence[Result], table: Table, ended: Mapping[str, float]) -> go.Figure:
    """Accuracy of each trial, in the order in which they ended, and the best so far."""
    ordered = sorted(complete, key=lambda r: (ended.get(r.key, 0.0), r.key))
    start = min((ended.get(r.key, 0.0) - r.seconds.get("total", 0.0) for r in ordered), default=0.0)
    minutes = [(ended.get(r.key, start) - start) / 60 for r in ordered]
    plot = empty_figure("minutes since the first trial began", "best validation accuracy")
    plot.add_scatter(
        x=minutes,
        y=[r.val_acc_best for r in ordered],
        mode="markers",
        name="trial",
        marker={"color": BLUE, "opacity": 0.6, "size": 8},
        **hover(ordered, table, "after %{x:.1f} min"),
    )
    so_far = list(itertools.accumulate((r.val_acc_best or 0.0 for r in ordered), max))
    plot.add_scatter(
        x=minutes, y=so_far, mode="lines", name="best so far", line={"color": ORANGE, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )  # fmt: skip
    return plot


def _failures(records: Sequence[Result]) -> Iterator[Picture]:
    reasons = Counter(r.reason.partition(" in epoch")[0][:70] or "no reason" for r in records if r.status == "failed")
    if reasons:
        figure = bars(dict(reasons.most_common(8)), "trials", ORANGE, "d")
        yield Picture("failures", "Failures by reason", "The reasons in full are in the trials' records.", figure)
