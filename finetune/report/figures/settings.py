"""The pictures of what settings do: learning rate against depth, all of them at once, how much each decides."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from finetune.records.result import Result
from finetune.report.figures.base import BLUE, SCALE, TICKS, bars, empty_figure, plain
from finetune.report.importance import importance
from finetune.report.table import Table, label, short

_BANDS = 8


def rates_figure(complete: Sequence[Result]) -> go.Figure:
    """Mean accuracy by learning rate and depth; many different rates are put into bands."""
    rates = sorted({float(r.config.get("optim.lr", r.params.get("optim.lr", 0))) for r in complete})
    bands = [(rate, rate) for rate in rates]
    if len(rates) > TICKS:
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
    plot = empty_figure("freeze depth k", "learning rate")
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
    plot = empty_figure("", "")
    for band, color in zip(bands, sample_colorscale(SCALE, [b / (_BANDS - 1) for b in range(_BANDS)]), strict=True):
        points = [(a, i) for i in band for a in (*range(len(axes)), None)]
        texts = [f"{plain(label(complete[i].params, table.swept))} seed={complete[i].seed}" for _, i in points]
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
    texts = [f"{v:.3g}" if isinstance(v, float) else plain(str(v))[:30] for v in values]
    spots = sorted(set(zip(_places(values), texts, strict=True)))
    return spots if len(spots) <= 7 else [spots[0], spots[len(spots) // 2], spots[-1]]


def importance_figure(complete: Sequence[Result], table: Table) -> go.Figure | None:
    """A bar for each setting's share of the importance; None where it cannot be told."""
    weights = importance(complete, ["model.freeze_depth", *table.swept])
    if not weights:
        return None
    return bars({short(key): value for key, value in weights.items()}, "share of the importance", BLUE, ".0%")
