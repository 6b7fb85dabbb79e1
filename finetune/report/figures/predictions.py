"""The pictures of one trial's predictions: confusions, calibration."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from finetune.records.scores import Calibration, Confusion
from finetune.report.figures.base import BLUE, GREY, SCALE, empty_figure, plain

_NUMBERS = 15
"""Classes up to which a confusion matrix has its numbers written in."""
_NAME, _NAME_OF_MANY = 24, 14
"""Characters of a class's name on the axes of a few classes, and of more than those, at the most."""


def confusion_figure(confusion: Confusion) -> go.Figure:
    """True classes downwards, predicted ones to the right, coloured by share of the true class.

    A row or a column a class, so for some dozens of them at the most.
    """
    counts = confusion.counts
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    few = len(confusion.classes) <= _NUMBERS
    names = [plain(name)[: _NAME if few else _NAME_OF_MANY] for name in confusion.classes]
    places = list(range(len(names)))  # names that are cut off may be equal, which would be one row

    plot = empty_figure("predicted class; rows are the true one", "")
    plot.add_heatmap(
        x=places,
        y=places,
        z=shares.round(4).tolist(),
        text=counts.tolist(),
        texttemplate="%{text}" if few else None,
        hovertemplate="%{y} taken for %{x}: %{text} images, %{z:.0%} of its class<extra></extra>",
        colorscale=SCALE,
        zmin=0,
        zmax=1,
        showscale=False,
    )
    ticks: dict[str, Any] = {"tickvals": places, "ticktext": names, "tickformat": ""}
    if not few:
        ticks["tickfont"] = {"size": 9}
    plot.update_layout(
        xaxis={"tickangle": -45 if few else -90, **ticks},
        yaxis={"autorange": "reversed", "showgrid": False, **ticks},
        margin={"l": 60, "r": 10, "t": 10, "b": 60},
        height=440 if few else 200 + 11 * len(names),
    )
    return plot


def calibration_figure(calibration: Calibration) -> go.Figure:
    """Accuracy against confidence, bin by bin, beside the line of perfect calibration."""
    plot = empty_figure("confidence", "accuracy")
    plot.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="perfect",
        line={"color": GREY, "dash": "dash"},
        hoverinfo="skip",
    )
    most = max(calibration.images)
    plot.add_scatter(
        x=calibration.confidence,
        y=calibration.accuracy,
        mode="lines+markers",
        name="this network",
        line={"color": BLUE},
        marker={"size": [8 + 14 * images / most for images in calibration.images]},
        text=[f"{images} images" for images in calibration.images],
        hovertemplate="%{x:.0%} sure, right %{y:.0%} of the time<br>%{text}<extra></extra>",
    )
    plot.update_layout(
        xaxis={"tickformat": ".0%", "range": [0, 1.02]},
        yaxis={"range": [0, 1.02]},
        margin={"l": 60, "r": 10, "t": 40, "b": 60},
        height=440,
    )
    return plot
