"""The pictures of a report as plotly figures. Colours are Okabe and Ito's, or cividis: safe for the colour-blind."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from finetune.report.depths import depths_of
from finetune.report.table import Table, label, short
from finetune.result import Result

BLUE, ORANGE, GREY = "#3d8fd1", "#d55e00", "#8a8a8a"
SCALE = "Cividis"
_CURVES = 60
"""Learning curves beside those of the best configurations, at the most."""
_TICKS = 20
_BANDS = 8


@dataclass(frozen=True)
class Picture:
    """A figure with what to say of it."""

    name: str
    title: str
    note: str
    """One sentence on how to read it."""
    figure: go.Figure


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
        "Accuracy against frozen depth",
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
    weights = _importance(complete, table)
    if weights:
        yield Picture(
            "importance", "What decides", "Optuna's PED-ANOVA: how much a setting decides if a trial is a good one.",
            _bars({short(key): value for key, value in weights.items()}, "share of the importance", BLUE, ".0%"),
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
    """Validation accuracy against frozen depth: every trial a point, the best of each depth a line."""
    best = table.best_per_depth
    widths = [group.half_width for group in best]
    plot = _figure("freeze depth k", "best validation accuracy")
    plot.add_scatter(
        x=[r.freeze_depth for r in complete],
        y=[r.val_acc_best for r in complete],
        mode="markers",
        name="trial",
        marker={"color": BLUE, "opacity": 0.6, "size": 8},
        **_hover(complete, table, "k=%{x}"),
    )
    plot.add_scatter(
        x=[group.freeze_depth for group in best],
        y=[group.mean for group in best],
        mode="lines+markers",
        name="best configuration, mean of its seeds",
        line={"color": ORANGE, "width": 3},
        marker={"size": 10, "symbol": "diamond"},
        error_y={"array": [w or 0 for w in widths], "visible": any(w is not None for w in widths), "width": 6},
        text=[f"{_plain(label(group.params, table.swept))}, {len(group.accuracies)} seeds" for group in best],
        hovertemplate="k=%{x}<br>mean val/acc %{y:.4f}<br>%{text}<extra></extra>",
    )
    plot.update_layout(yaxis_range=_range([r.val_acc_best or 0 for r in complete]), height=520)
    _name_depths(plot, [group.freeze_depth for group in best], complete)
    return plot


def _range(values: Sequence[float]) -> list[float]:
    """The points' own, with some room: an interval over three seeds can be wider than everything else."""
    room = max(0.02, 0.15 * (max(values) - min(values)))
    return [max(0.0, min(values) - room), min(1.02, max(values) + room)]


def _name_depths(plot: go.Figure, depths: Sequence[int], complete: Sequence[Result]) -> None:
    """Units' names under the axis; the shares that they freeze above the plot."""
    outside = [min(depths) - 0.5, max(depths) + 0.5]
    kinds = {(str(r.config.get("model.backbone")), r.freeze_unit) for r in complete}
    known = depths_of(*next(iter(kinds))) if len(kinds) == 1 else None
    unit = ", ".join(sorted({f"{r.freeze_unit}s" for r in complete}))
    plot.update_xaxes(title=f"freeze depth k ({unit})", range=outside)
    if len(depths) > _TICKS:
        return
    plot.update_xaxes(tickvals=list(depths))
    if known is None or max(depths) >= len(known.names):
        return
    names = [known.names[k].replace("(nothing)", "nothing") for k in depths]
    ticks = [f"<b>{k}</b><br>{name}" for k, name in zip(depths, names, strict=True)]
    shares = [f"{known.parameters[k]:.0%}<br>{known.flops[k]:.0%}" for k in depths]
    top = {"overlaying": "x", "side": "top", "range": outside, "tickvals": list(depths), "ticktext": shares}
    plot.update_layout(xaxis_ticktext=ticks, xaxis2={**top, "title": "parameters / FLOPs frozen", "showgrid": False})
    plot.update_layout(margin={"t": 90, "b": 90}, legend={"y": -0.3, "yanchor": "top"})
    plot.add_scatter(x=list(depths), y=[None] * len(depths), xaxis="x2", showlegend=False, hoverinfo="skip")


def pareto_figure(complete: Sequence[Result], table: Table) -> go.Figure:
    """Accuracy against training seconds."""
    plot = _figure("seconds of a trial", "best validation accuracy")
    seconds = [r.seconds.get("total", 0.0) for r in complete]
    depths = [r.freeze_depth for r in complete]
    plot.add_scatter(
        x=seconds,
        y=[r.val_acc_best for r in complete],
        mode="markers",
        name="trial",
        marker={"color": depths, "colorscale": SCALE, "size": 9, "colorbar": {"title": {"text": "k"}, "thickness": 12}},
        **_hover(complete, table, "k=%{marker.color}, %{x:.1f} s"),
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


def rates_figure(complete: Sequence[Result]) -> go.Figure:
    """Mean accuracy by learning rate and depth; many different rates are put into bands."""
    rates = sorted({float(r.config.get("optim.lr", r.params.get("optim.lr", 0))) for r in complete})
    bands = [(rate, rate) for rate in rates]
    if len(rates) > _TICKS:
        edges = [rates[0] * (rates[-1] / rates[0]) ** (i / _BANDS) for i in range(_BANDS + 1)]
        bands = list(itertools.pairwise(edges))
    depths = sorted({r.freeze_depth for r in complete if r.freeze_depth is not None})

    def cell(low: float, high: float, depth: int) -> float | None:
        found = [
            r.val_acc_best or 0.0
            for r in complete
            if r.freeze_depth == depth and low * 0.999999 <= float(r.params.get("optim.lr", 0)) <= high * 1.000001
        ]
        return sum(found) / len(found) if found else None

    names = [f"{low:.3g}" if low == high else f"{low:.1g}–{high:.1g}" for low, high in bands]
    plot = _figure("freeze depth k", "learning rate")
    plot.add_heatmap(
        x=[str(depth) for depth in depths],
        y=names,
        z=[[cell(*band, depth) for depth in depths] for band in bands],
        colorscale=SCALE,
        texttemplate="%{z:.3f}" if len(depths) <= 10 else None,
        hovertemplate="k=%{x}, lr %{y}<br>mean val/acc %{z:.4f}<extra></extra>",
        hoverongaps=False,
        colorbar={"thickness": 12, "tickformat": ".0%"},
    )
    plot.update_layout(xaxis_type="category", yaxis={"type": "category", "tickformat": ""})
    return plot


def parallel_figure(complete: Sequence[Result], table: Table) -> go.Figure:
    """Every trial as a line over its settings and its accuracy, drawn in eight bands of accuracy."""
    axes: list[tuple[str, list[Any]]] = [("k", [r.freeze_depth for r in complete])]
    axes += [(short(key), [r.params.get(key) for r in complete]) for key in table.swept]
    axes.append(("val/acc", [r.val_acc_best for r in complete]))
    scaled = [_places(values) for _, values in axes]
    ranked = sorted(range(len(complete)), key=lambda i: complete[i].val_acc_best or 0)
    bands = [ranked[len(ranked) * b // _BANDS : len(ranked) * (b + 1) // _BANDS] for b in range(_BANDS)]
    plot = _figure("", "")
    for band, color in zip(bands, sample_colorscale(SCALE, [b / (_BANDS - 1) for b in range(_BANDS)]), strict=True):
        points = [(a, i) for i in band for a in (*range(len(axes)), None)]
        texts = [f"{_plain(label(complete[i].params, table.swept))} seed={complete[i].seed}" for _, i in points]
        plot.add_scatter(
            x=[a for a, _ in points],
            y=[None if a is None else scaled[a][i] for a, i in points],
            mode="lines+markers",
            line={"color": color, "width": 1.5},
            marker={"size": 6},
            showlegend=False,
            customdata=[complete[i].key for _, i in points],
            text=[f"k={complete[i].freeze_depth} {t}" for (_, i), t in zip(points, texts, strict=True)],
            meta=[complete[i].val_acc_best for i in band],
            hovertemplate="%{text}<extra></extra>",
        )
    for a, (_, values) in enumerate(axes):
        for place, text in _marks(values):
            plot.add_annotation(x=a, y=place, text=text, showarrow=False, xanchor="left", xshift=8, font={"size": 11})
    plot.update_layout(
        xaxis={"tickvals": list(range(len(axes))), "ticktext": [name for name, _ in axes], "side": "top"},
        yaxis={"visible": False},
    )
    plot.update_xaxes(range=[-0.2, len(axes) - 0.4])
    return plot


def _places(values: Sequence[Any]) -> list[float]:
    """Where each value lies on an axis from 0 to 1; logarithmic where numbers span a factor of ten."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        low, high = min(values), max(values)
        if low == high:
            return [0.5] * len(values)
        if low > 0 and high / low >= 10:
            return [math.log(v / low) / math.log(high / low) for v in values]
        return [(v - low) / (high - low) for v in values]
    names = sorted({str(v) for v in values}, key=lambda name: (len(name), name))
    return [names.index(str(v)) / max(1, len(names) - 1) for v in values]


def _marks(values: Sequence[Any]) -> list[tuple[float, str]]:
    """A few values to write beside their places."""
    texts = [f"{v:.3g}" if isinstance(v, float) else _plain(str(v))[:30] for v in values]
    spots = sorted(set(zip(_places(values), texts, strict=True)))
    return spots if len(spots) <= 7 else [spots[0], spots[len(spots) // 2], spots[-1]]


def curves_figure(complete: Sequence[Result], table: Table) -> go.Figure:
    """Validation accuracy after each epoch."""
    plot = _figure("epoch", "validation accuracy")
    by_key = {r.key: r for r in complete}
    best = table.best_per_depth
    ours = {key for group in best for key in group.keys}
    others = [r for r in complete if r.key not in ours][:_CURVES]
    points = [(e["epoch"] + 1, e["val/acc"]) if e else (None, None) for r in others for e in (*r.history, {})]
    plot.add_scatter(
        x=[x for x, _ in points], y=[y for _, y in points], mode="lines", name="other trials",
        line={"color": GREY, "width": 1}, opacity=0.35, hoverinfo="skip",
    )  # fmt: skip
    colors = sample_colorscale(SCALE, [i / max(1, len(best) - 1) for i in range(len(best))])
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
    plot = _figure("minutes since the first trial began", "best validation accuracy")
    plot.add_scatter(
        x=minutes,
        y=[r.val_acc_best for r in ordered],
        mode="markers",
        name="trial",
        marker={"color": BLUE, "opacity": 0.6, "size": 8},
        **_hover(ordered, table, "after %{x:.1f} min"),
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
        figure = _bars(dict(reasons.most_common(8)), "trials", ORANGE, "d")
        yield Picture("failures", "Failures by reason", "The reasons in full are in the trials' records.", figure)


def _importance(complete: Sequence[Result], table: Table) -> dict[str, float]:
    from finetune.report.study import importance

    return importance(complete, ["model.freeze_depth", *table.swept])


def _bars(values: Mapping[str, float], title: str, color: str, form: str) -> go.Figure:
    plot = _figure(title, "")
    names = [name.replace("<", "‹").replace(">", "›") for name in values]  # plotly reads tags in labels
    plot.add_bar(
        x=list(values.values()), y=names, orientation="h", marker={"color": color},
        texttemplate=f"%{{x:{form}}}", hovertemplate=f"%{{y}}: %{{x:{form}}}<extra></extra>",
    )  # fmt: skip
    plot.update_layout(
        yaxis={"autorange": "reversed", "automargin": True, "tickformat": "", "type": "category"},
        xaxis_tickformat="" if form == "d" else form,
        height=110 + 45 * len(values),
    )
    return plot


def _hover(records: Sequence[Result], table: Table, first: str) -> dict[str, Any]:
    return {
        "customdata": [r.key for r in records],
        "text": [f"{_plain(label(r.params, table.swept))} seed={r.seed}" for r in records],
        "hovertemplate": f"{first}<br>val/acc %{{y:.4f}}<br>%{{text}}<extra></extra>",
    }


def _plain(text: str) -> str:
    return text.replace("<", "‹").replace(">", "›")


def _figure(x: str, y: str) -> go.Figure:
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
