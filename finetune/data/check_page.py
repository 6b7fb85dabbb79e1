"""A page that shows images of each class, so that a person sees whether labels are right. Imports no torch."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from string import Template

from PIL import Image

from finetune.data.check import Inspection
from finetune.data.decode import decode
from finetune.data.levels import Levels

_EACH = 8
"""Images of a class that are shown, and"""
_ALL = 800
"""of all classes together; each takes about 4 kB."""
_GROUPS = 20
"""Groups of equal files that are shown."""
_SIDE = 160
"""The longer side of a shown image, pixels."""


def check_page(name: str, inspection: Inspection, sentences: Sequence[str]) -> str:
    """The page as one HTML document that fetches nothing.

    Args:
        name: What the images are called.
        inspection: What was found in them.
        sentences: Caveats, and why training would be refused.
    """
    classes = inspection.data.classes
    each = max(1, min(_EACH, _ALL // len(classes)))
    totals = [f"{sum(counts)} for {split}" for split, counts in inspection.counts.items()]
    template = Template(Path(__file__).with_name("check.html").read_text())
    return template.substitute(
        title=html.escape(f"Images of {name}"),
        counts=f"{len(classes)} classes; images: {', '.join(totals)}",
        caveats=_caveats(sentences),
        which=f"Up to {each} of each, from the first to the last by name, most of them to train on."
        + (f" The first {_ALL} of {len(classes)} classes." if len(classes) > _ALL else ""),
        classes="\n".join(_class(inspection, label, each) for label in range(len(classes))[:_ALL]),
        copies=_copies(inspection),
    )


def _caveats(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<section class="caveats"><h2>Caveats</h2><ul>{items}</ul></section>'


def _class(inspection: Inspection, label: int, each: int) -> str:
    figures, counts = [], []
    for split, samples in inspection.data.splits.items():
        paths = [path for path, own in zip(samples.paths, samples.labels, strict=True) if own == label]
        counts.append(f"{len(paths)} {split}")
        share = each - each // 4 if split == "train" else each // 4
        figures += [_figure(path, f"{split}: {path.name}", inspection.levels) for path in _spread(paths, share)]

    name = html.escape(inspection.data.classes[label])
    return f'<h3>{name} <span class="quiet">{", ".join(counts)}</span></h3><div class="images">{"".join(figures)}</div>'


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Some of them, from all over; neighbours are often alike."""
    count = min(count, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def _copies(inspection: Inspection) -> str:
    """Equal files that lie in several splits or classes, each with its picture."""
    wrong = list(dict.fromkeys([*inspection.leaked, *inspection.contradicting]))
    if not wrong:
        return ""
    groups = [
        f'<h3 class="quiet">{" = ".join(html.escape(str(path)) for path in group)}</h3>'
        f'<div class="images">{_figure(group[0], group[0].name, inspection.levels)}</div>'
        for group in wrong[:_GROUPS]
    ]
    some = f", {_GROUPS} of {len(wrong)}" if len(wrong) > _GROUPS else ""
    return f"<section><h2>Equal files in several splits or classes{some}</h2>{''.join(groups)}</section>"


def _figure(path: Path, caption: str, levels: Levels) -> str:
    try:
        image = decode(path, levels)
    except (ValueError, OSError) as error:
        return f"<figure><figcaption>{html.escape(f'{caption}: {error}')}</figcaption></figure>"

    image.thumbnail((_SIDE, _SIDE))
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{_jpeg(image)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
