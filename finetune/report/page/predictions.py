"""The page's part on the winner: what its predictions on the validation images look like. Imports no torch."""

import base64
import html
import io
import re
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from finetune.records.predictions import Predictions
from finetune.records.result import Result
from finetune.records.scores import Confusion, calibration
from finetune.report.figures.base import Picture
from finetune.report.figures.predictions import calibration_figure, confusion_figure
from finetune.report.table import Table, label


def winner_section(record: Result, found: Predictions, table: Table) -> tuple[str, list[Picture]]:
    """The section's HTML, and the figures that belong into its `plot-NAME` places."""
    fits, confusion = calibration(found), Confusion.of(found, record.classes)
    drawn = [
        Picture("confusion", "Confusions", "", confusion_figure(confusion.counts, record.classes)),
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
        for c in Confusion.of(found, record.classes).per_class
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
