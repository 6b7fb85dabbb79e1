"""The page's part on the winner: what its predictions on the validation images look like. Imports no torch."""

import base64
import html
import io
import math
import re
from pathlib import Path, PurePath
from string import Template

import numpy as np
from numpy.typing import NDArray

from finetune.config import METRICS
from finetune.records.intervals import estimate
from finetune.records.predictions import Predictions
from finetune.records.result import Result
from finetune.records.scores import Confusion, calibration
from finetune.report.figures.base import Picture
from finetune.report.figures.predictions import calibration_figure, confusion_figure
from finetune.report.table import Table, label

_MATRIX = 40
"""Classes in the picture of the confusions, at the most: those with the most frequent ones."""
_ROWS = 500
"""Rows of the tables of classes and of confusions, at the most, so that the page can be mailed."""
_NAME = 60
"""Characters of a class's name in these tables, at the most."""


def winner_section(record: Result, predictions: Predictions, table: Table) -> tuple[str, list[Picture]]:
    """The section's HTML, and the figures that belong into its `plot-NAME` places."""
    confusion = Confusion.of(predictions, record.classes)
    reliability = calibration(predictions)
    shown = confusion if len(confusion.classes) <= _MATRIX else confusion.among(most_confused(confusion))
    figures = [
        Picture("confusion", "Confusions", "", confusion_figure(shown)),
        Picture("calibration", "Calibration", "", calibration_figure(reliability)),
    ]

    won = table.winner is not None and record.key in table.winner.keys
    trial = f"{table.name(record)} {label(record.params, table.swept)} seed={record.seed}".replace("  ", " ")
    template = Template(Path(__file__).with_name("winner.html").read_text(encoding="utf-8"))
    section = template.substitute(
        trial=html.escape(trial),
        configuration="the winning configuration"
        if won
        else "the best single trial, which is not of the winning configuration",
        right=predictions.right,
        figures=_figures(predictions),
        images=len(predictions.labels),
        which_confusions=_which_confusions(confusion, shown),
        confusions="" if shown is confusion else _confusions(confusion),
        error=f"{reliability.error:.3f}",
        which_classes=_which_classes(confusion),
        classes=_classes(confusion),
        mistakes=_mistakes(predictions, record),
    )
    return section, figures


def _figures(predictions: Predictions) -> str:
    """Every metric of these predictions, with its interval."""
    parts = []
    for metric in METRICS:
        value, low, high = estimate(metric, predictions)
        if not math.isnan(value):  # of a single class there is no ROC curve
            parts.append(f"{metric.removeprefix('val/')} {value:.3f} [{low:.3f}..{high:.3f}]")
    return ", ".join(parts)


def most_confused(confusion: Confusion) -> list[int]:
    """The numbers of the classes of the most frequent confusions, as many as the picture has room for, ascending."""
    numbers: set[int] = set()
    for mistake in confusion.mistakes:
        both = numbers | {mistake.true, mistake.predicted}
        if len(both) > _MATRIX:
            break
        numbers = both

    others = (number for number in range(len(confusion.classes)) if number not in numbers)
    while len(numbers) < 2:  # no mistake at all
        numbers.add(next(others))
    return sorted(numbers)


def _which_confusions(confusion: Confusion, shown: Confusion) -> str:
    if shown is confusion:
        return ""
    some = f"{len(shown.classes)} of {len(confusion.classes)} classes"
    return f'<p class="quiet">The {some} with the most frequent confusions.</p>'


def _confusions(confusion: Confusion) -> str:
    """The confusions as a table that opens on demand."""
    mistakes = confusion.mistakes
    names = confusion.classes
    images = np.bincount(confusion.true, minlength=len(names)).tolist()
    rows = "\n".join(
        f"<tr><td class=text>{_short_name(names[mistake.true])}</td>"
        f"<td class=text>{_short_name(names[mistake.predicted])}</td>"
        f"<td>{mistake.images}</td><td>{mistake.images / images[mistake.true]:.0%}</td></tr>"
        for mistake in mistakes[:_ROWS]
    )
    most = f"the {_ROWS} most frequent of {len(mistakes)}" if len(mistakes) > _ROWS else f"all {len(mistakes)}"
    return f"""<details><summary>Confusions as a table, {most}</summary>
<div class="wide tall" tabindex="0" role="region" aria-label="Confusions"><table id="confusions">
<thead><tr><th class="text">true class</th><th class="text">taken for</th><th>images</th><th>of its class</th></tr>
</thead><tbody>{rows}</tbody></table></div></details>"""


def _which_classes(confusion: Confusion) -> str:
    if len(confusion.classes) <= _ROWS:
        return ""
    return f'<p class="quiet">The {_ROWS} of {len(confusion.classes)} classes with the lowest recall.</p>'


def _classes(confusion: Confusion) -> str:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    classes = confusion.per_class
    if len(classes) > _ROWS:
        classes = sorted((c for c in classes if c.recall is not None), key=lambda c: c.recall or 0)[:_ROWS]
    return "\n".join(
        f"<tr><td class=text>{_short_name(figures.name)}</td><td>{figures.images}</td>"
        f"<td>{share(figures.precision)}</td><td>{share(figures.recall)}</td></tr>"
        for figures in classes
    )


def _short_name(name: str) -> str:
    return html.escape(name if len(name) <= _NAME else f"{name[: _NAME - 1]}…")


def _mistakes(predictions: Predictions, record: Result) -> str:
    if not len(predictions.mistakes):
        return "<h3>Most confident mistakes</h3><p>None: every validation image is right.</p>"

    items = []
    for position, thumbnail in zip(predictions.mistakes, predictions.thumbnails, strict=True):
        predicted = record.classes[predictions.predicted[position]]
        true = record.classes[predictions.labels[position]]
        certainty = predictions.probabilities[position].max()
        caption = f"{_short_name(predicted)} ({certainty:.0%}), is {_short_name(true)}"

        name = "/".join(PurePath(predictions.paths[position]).parts[-3:])
        breakable = re.sub(r"(?<=[/_.-])", "<wbr>", html.escape(name))  # a long name wraps after these
        items.append(
            f'<li><img src="{data_uri(thumbnail)}" alt="{caption}">'
            f'{caption}<br><span class="quiet">{breakable}</span></li>'
        )
    return (
        "<h3>Most confident mistakes</h3><p class=quiet>Mislabelled images show up here first.</p>"
        f'<ul class="mistakes">{"".join(items)}</ul>'
    )


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """An image, H × W × 3, as text that a page can hold."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
