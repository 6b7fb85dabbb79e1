"""The pictures of what settings do: learning rate against depth, all of them at once, how much each decides."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from finetune.records.metric import sign_of
from finetune.records.ranking import BACKBONE, NetworkDepth, depth_name, network_of
from finetune.records.result import Result
from finetune.report.figures.base import BLUE, SCALE, TICKS, bars, empty_figure, plain, share_format, wrapped
from finetune.report.importance import importance
from finetune.report.table import Table, label, setting, short, value_text

_BANDS = 8
"""Bands of learning rates, and of accuracies."""
_MARKS = 7
"""Values that are written beside an axis of the parallel plot, at the most."""
_SAME = 1e-6
"""Relative difference of learning rates that are one and the same, read from different files."""


def rates_figure(complete: Sequence[Result], table: Table) -> go.Figure:
    """The mean of what the sweep optimises by learning rate and depth; many different rates are put into bands.

    Trials whose head or whose early units have rates of their own have rows of their own.
    """
    objective = table.objective
    bands = _bands(sorted({_rate(record) for record in complete}))
    depths = sorted({table.at(record) for record in complete if record.freeze_depth is not None})
    rows = [(own, band) for own in sorted({_own_rates(record) for record in complete}) for band in bands]

    def mean(own: str, band: tuple[float, float], depth: NetworkDepth) -> float | None:
        low, high = band[0] * (1 - _SAME), band[1] * (1 + _SAME)
        of_row = [r for r in complete if _own_rates(r) == own and low <= _rate(r) <= high]
        values = [objective.shown(record) for record in of_row if table.at(record) == depth]
        return sum(values) / len(values) if values else None

    name = "%{x}" if table.networks else "k=%{x}"
    plot = empty_figure("freeze depth k", "learning rate")
    plot.add_heatmap(
        x=[wrapped(depth_name(depth)) if table.networks else f"{depth[1]:g}" for depth in depths],
        y=[(f"{low:.3g}" if low == high else f"{low:.1g}–{high:.1g}") + own for own, (low, high) in rows],
        z=[[mean(own, band, depth) for depth in depths] for own, band in rows],
        colorscale=SCALE,
        reversescale=sign_of(objective.metric) < 0,
        texttemplate="%{z:.3f}" if len(depths) <= 10 else None,
        hovertemplate=f"{name}, lr %{{y}}<br>mean {objective.name} %{{z:.4f}}<extra></extra>",
        hoverongaps=False,
        colorbar={"thickness": 12, "tickformat": share_format(objective)},
    )
    plot.update_layout(xaxis_type="category", yaxis={"type": "category", "tickformat": ""})
    return plot


def _rate(record: Result) -> float:
    """The learning rate, which need not be swept in every sweep of a report."""
    return float(setting(record, "optim.lr") or 0)


def _own_rates(record: Result) -> str:
    """What the head's rate and each earlier unit's are of the learning rate; empty where all are the same."""
    head, unit = (float(setting(record, key) or 1) for key in ("optim.head_lr", "optim.layer_decay"))
    return (f", head ×{head:g}" if head != 1 else "") + (f", ×{unit:g} a unit" if unit != 1 else "")


def _bands(rates: Sequence[float]) -> list[tuple[float, float]]:
    """Each rate by itself, or equal bands of their logarithm where there are many."""
    if len(rates) <= TICKS:
        return [(rate, rate) for rate in rates]

    ratio = rates[-1] / rates[0]
    edges = [rates[0] * ratio ** (i / _BANDS) for i in range(_BANDS + 1)]
    return list(itertools.pairwise(edges))


def parallel_figure(complete: Sequence[Result], table: Table) -> go.Figure:
    """Every trial as a line over its settings and its accuracy, drawn in eight bands of accuracy."""
    axes: dict[str, list[Any]] = {"network": list(map(network_of, complete))} if table.networks else {}
    axes["k"] = [record.freeze_depth for record in complete]
    axes |= {short(key): [setting(record, key) for record in complete] for key in table.swept}
    axes[table.objective.name] = [table.objective.shown(record) for record in complete]

    plot = empty_figure("", "")
    heights = [_heights(values) for values in axes.values()]
    order = sorted(range(len(complete)), key=lambda i: table.objective.score_of(complete[i]))
    colors = sample_colorscale(SCALE, [band / (_BANDS - 1) for band in range(_BANDS)])
    for band, color in enumerate(colors):
        members = order[len(order) * band // _BANDS : len(order) * (band + 1) // _BANDS]
        trials = [complete[i] for i in members]
        _add_band(plot, trials, [[axis[i] for axis in heights] for i in members], table, color)

    for x, values in enumerate(axes.values()):
        for y, text in _marks(values):
            plot.add_annotation(x=x, y=y, text=text, showarrow=False, xanchor="left", xshift=8, font={"size": 11})
    plot.update_layout(
        xaxis={
            "tickvals": list(range(len(axes))),
            "ticktext": list(axes),
            "side": "top",
            "range": [-0.2, len(axes) - 0.4],
        },
        yaxis={"visible": False},
    )
    return plot


def _add_band(
    plot: go.Figure, trials: Sequence[Result], heights: Sequence[Sequence[float]], table: Table, color: str
) -> None:
    """Add the lines of some trials as one trace with gaps; `heights` has a line's height on each axis."""
    x: list[int | None] = []
    y: list[float | None] = []
    keys, texts = [], []
    for trial, line in zip(trials, heights, strict=True):
        points = len(line) + 1  # with the gap after it
        x += [*range(len(line)), None]
        y += [*line, None]
        keys += [trial.key] * points
        texts += [f"{table.name(trial)} {plain(label(trial.params, table.swept))} seed={trial.seed}"] * points

    plot.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line={"color": color, "width": 1.5},
        marker={"size": 6},
        showlegend=False,
        customdata=keys,
        text=texts,
        meta=[table.objective.shown(trial) for trial in trials],
        hovertemplate="%{text}<extra></extra>",
    )


def _heights(values: Sequence[Any]) -> list[float]:
    """Where each value lies on an axis from 0 to 1; logarithmic where numbers span a factor of ten."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        if low == high:
            return [0.5] * len(values)
        if low > 0 and high / low >= 10:
            return [math.log(value / low) / math.log(high / low) for value in values]
        return [(value - low) / (high - low) for value in values]

    names = sorted({str(value) for value in values}, key=lambda name: (len(name), name))
    return [names.index(str(value)) / max(1, len(names) - 1) for value in values]


def _marks(values: Sequence[Any]) -> list[tuple[float, str]]:
    """A few values to write beside their heights."""
    texts = [plain(value_text(value))[:30] for value in values]
    marks = sorted(set(zip(_heights(values), texts, strict=True)))
    return marks if len(marks) <= _MARKS else [marks[0], marks[len(marks) // 2], marks[-1]]


def importance_figure(complete: Sequence[Result], table: Table) -> go.Figure | None:
    """A bar for each setting's share of the importance; None where it cannot be told."""
    networks = [BACKBONE] if table.networks else []
    weights = importance(complete, ["model.freeze_depth", *networks, *table.swept], table.objective)
    if not weights:
        return None
    return bars({short(key): value for key, value in weights.items()}, "share of the importance", BLUE, ".0%")
