"""What a trial's best epoch said of each validation image. Imports no torch."""

import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.records.layout import PREDICTIONS
from finetune.storage.durable import write_durably

MISTAKES = 12
THUMBNAIL = 64
"""Height and width of a mistake's small picture, pixels."""


@dataclass(frozen=True)
class Predictions:
    """Of one trial; entry i of each field but the last two belongs to validation image i."""

    probabilities: NDArray[np.float32]
    """N x classes, after the softmax."""
    labels: NDArray[np.int64]
    """N, the true classes."""
    paths: tuple[str, ...]
    """N, relative to the data's folder where they lie in it."""
    mistakes: NDArray[np.int64]
    """Positions of the most confident mistakes, the surest first."""
    thumbnails: NDArray[np.uint8]
    """Mistakes x THUMBNAIL x THUMBNAIL x 3."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """N, the class with the highest probability."""
        return np.asarray(self.probabilities.argmax(1), np.int64)

    def save(self, folder: Path) -> None:
        """Write `predictions.npz` into `folder`, whole or not at all."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            probabilities=self.probabilities,
            labels=self.labels,
            paths=np.array(self.paths, dtype=np.str_),
            mistakes=self.mistakes,
            thumbnails=self.thumbnails,
        )
        write_durably(folder / PREDICTIONS, buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> "Predictions | None":
        """Read `predictions.npz` of `folder`; None where there is none, or none that can be read. No pickle is."""
        try:
            with (folder / PREDICTIONS).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                found = cls(
                    np.asarray(file["probabilities"], np.float32),
                    np.asarray(file["labels"], np.int64),
                    tuple(map(str, file["paths"])),
                    np.asarray(file["mistakes"], np.int64),
                    np.asarray(file["thumbnails"], np.uint8),
                )
        except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
            return None
        return found if found._fits() else None

    def _fits(self) -> bool:
        count = len(self.labels)
        return (
            self.probabilities.ndim == 2
            and self.labels.shape == (len(self.probabilities),)
            and count > 0
            and len(self.paths) == count
            and self.mistakes.ndim == 1
            and self.thumbnails.shape == (len(self.mistakes), THUMBNAIL, THUMBNAIL, 3)
            and all(0 <= int(i) < count for i in self.mistakes)
            and 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.probabilities.shape[1]
        )


def confident_mistakes(probabilities: NDArray[Any], labels: NDArray[Any], count: int = MISTAKES) -> NDArray[np.int64]:
    """Positions of the wrongly predicted images, those with the highest probability for the wrong class first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:count].astype(np.int64)


def predictions_of(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    paths: Sequence[Path],
    root: Path | None,
    pixels: Callable[[list[int]], NDArray[np.uint8]],
) -> Predictions:
    """Pick the mistakes and shrink their pictures.

    Args:
        probabilities: N x classes.
        labels: N.
        paths: N.
        root: The data's folder.
        pixels: From positions to their images, n x height x width x 3.
    """
    from PIL import Image

    mistakes = confident_mistakes(probabilities, labels)
    small = [
        np.asarray(Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS))
        for image in pixels(mistakes.tolist())
    ]
    thumbnails = np.stack(small) if small else np.zeros((0, THUMBNAIL, THUMBNAIL, 3), np.uint8)
    inside = root is not None and all(path.is_relative_to(root) for path in paths)
    shown = [str(path.relative_to(root) if inside and root else path) for path in paths]
    shown = [name.encode(errors="replace").decode() for name in shown]  # names that are no UTF-8
    return Predictions(probabilities, labels, tuple(shown), mistakes, thumbnails)
