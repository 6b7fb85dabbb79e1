"""The page's part on the winner: what its predictions on the validation images look like. Imports no torch."""

import base64
import html
import io
import re
from pathlib import PurePath

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from finetune.predictions import Predictions
from finetune.report.plot import BLUE, GREY, SCALE, Picture
from finetune.report.table import Table, label
from finetune.report.winner import Calibration, calibration, confusion, per_class
from finetune.result import Result

_NUMBERS = 15
"""Classes up to which a confusion matrix has its numbers written in."""


def winner_section(record: Result, found: Predictions, table: Table) -> tuple[str, list[Picture]]:
    """The section's HTML, and the figures that belong into its `plot-NAME` places."""
    fits = calibration(found)
    drawn = [
        Picture("confusion", "Confusions", "", confusion_figure(confusion(found), record.classes)),
        Picture("calibration", "Calibration", "", calibration_figure(fits)),
    ]
    which = f"k={record.freeze_depth} {label(record.params, table.swept)} seed={record.seed}".replace("  ", " ")
    won = table.winner is not None and record.key in table.winner.keys
    of = "the winning configuration" if won else "the best single trial, which is not of the winning configuration"
    images, right = len(found.labels), int((found.predicted == found.labels).sum())
    return (
        f"""<section id="winner" aria-labelledby="winner-title"><h2 id="winner-title">The winner's predictions</h2>
<p>{html.escape(which)}, {of}, in its best epoch: {right} of {images} validation images right.</p>
<div class="pair"><div><h3>Confusions</h3>
<div class="plot" id="plot-confusion" role="img" aria-label="Confusion matrix"></div></div>
<div><h3>Calibration</h3>
<div class="plot" id="plot-calibration" role="img" aria-label="Calibration"></div>
<p class="quiet">When it is 80 % sure it should be right 80 % of the time, on the line. Expected calibration error
{fits.error:.3f}.</p></div></div>
<h3>Class by class</h3><div class="wide tall" tabindex="0" role="region" aria-label="Class by class">
<table id="classes"><thead><tr><th class="text">class</th><th>images</th><th>precision</th><th>recall</th></tr></thead>
<tbody>{_classes(found, record)}</tbody></table></div>
{_mistakes(found, record)}</section>""",
        drawn,
    )


def _classes(found: Predictions, record: Result) -> str:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    return "\n".join(
        f"<tr><td class=text>{html.escape(c.name)}</td><td>{c.images}</td>"
        f"<td>{share(c.precision)}</td><td>{share(c.recall)}</td></tr>"
        for c in per_class(found, record.classes)
    )


def _mistakes(found: Predictions, record: Result) -> str:
    if not len(found.mistakes):
        return "<h3>Most confident mistakes</h3><p>None: every validation image is right.</p>"
    items = []
    for position, thumbnail in zip(found.mistakes, found.thumbnails, strict=True):
        said, is_ = record.classes[found.predicted[position]], record.classes[found.labels[position]]
        name = "/".join(PurePath(found.paths[position]).parts[-3:])
        breakable = re.sub(r"(?<=[/_.-])", "<wbr>", html.escape(name))
        words = f"{said} ({found.probabilities[position].max():.0%}), is {is_}"
        items.append(
            f'<li><img src="{data_uri(thumbnail)}" alt="{html.escape(words)}">'
            f'{html.escape(words)}<br><span class="quiet">{breakable}</span></li>'
        )
    return (
        "<h3>Most confident mistakes</h3><p class=quiet>Mislabelled images show up here first.</p>"
        f'<ul class="mistakes">{"".join(items)}</ul>'
    )


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """An image, H x W x 3, as text that a page can hold."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


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
