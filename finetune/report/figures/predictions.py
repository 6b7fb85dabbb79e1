"""The pictures of one trial's predictions: confusions, calibration."""

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from finetune.records.scores import Calibration
from finetune.report.figures.base import BLUE, GREY, SCALE

_NUMBERS = 15
"""Classes up to which a confusion matrix has its numbers written in."""


def confusion_figure(counts: NDArray[np.int64], classes: list[str]) -> go.Figure:
    """True classes downwards, predicted ones to the right, coloured by share of the true class."""
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    names = [name.replace("<", "‹").replace(">", "›")[:24] for name in classes]
    written = len(names) <= _NUMBERS
    at = list(range(len(names)))
    plot = go.Figure()
    plot.add_heatmap(
        x=at, y=at, z=shares.tolist(), text=counts.tolist(), texttemplate="%{text}" if written else None,
        customdata=[[f"{t} taken for {p}" for p in names] for t in names],
        hovertemplate="%{customdata}: %{text} images, %{z:.0%} of its class<extra></extra>",
        colorscale=SCALE, zmin=0, zmax=1, showscale=False,
    )  # fmt: skip
    ticks = {"tickvals": at, "ticktext": names} if len(names) <= 40 else {}
    plot.update_layout(
        template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", height=440,
        xaxis={"title": "predicted class; rows are the true one", "automargin": True, "tickangle": -45, **ticks},
        yaxis={"autorange": "reversed", "automargin": True, "showgrid": False, **ticks},
        margin={"l": 60, "r": 10, "t": 10, "b": 60},
    )  # fmt: skip
    return plot


def calibration_figure(fits: Calibration) -> go.Figure:
    """Accuracy against confidence, bin by bin, beside the line of perfect calibration."""
    plot = go.Figure()
    plot.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="perfect", line={"color": GREY, "dash": "dash"}, hoverinfo="skip"
    )
    most = max(fits.images)
    plot.add_scatter(
        x=fits.confidence, y=fits.accuracy, mode="lines+markers", name="this network", line={"color": BLUE},
        marker={"size": [8 + 14 * n / most for n in fits.images]}, text=[f"{n} images" for n in fits.images],
        hovertemplate="%{x:.0%} sure, right %{y:.0%} of the time<br>%{text}<extra></extra>",
    )  # fmt: skip
    plot.update_layout(
        template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", height=440,
        xaxis={"title": "confidence", "tickformat": ".0%", "range": [0, 1.02], "automargin": True},
        yaxis={"title": "accuracy", "tickformat": ".0%", "range": [0, 1.02], "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 60, "r": 10, "t": 40, "b": 60},
    )  # fmt: skip
    return plot
