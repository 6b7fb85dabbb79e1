"""What a trial's best epoch predicted for each validation image. Imports no torch."""

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
"""Mistakes that are kept as small pictures, at the most."""
THUMBNAIL = 64
"""Height and width of a small picture, pixels."""


@dataclass(frozen=True)
class Predictions:
    """One trial's predictions; entry i of the first three fields belongs to validation image i.

    >>> from finetune.report.winner import find_winner
    >>> trial = find_winner(Path("runs/local")).best
    >>> predictions = Predictions.load(Path("runs/local/trials") / trial.key)
    >>> predictions.right, len(predictions.labels)
    (2, 3)
    """

    probabilities: NDArray[np.float32]
    """N × classes, after the softmax."""
    labels: NDArray[np.int64]
    """N true classes."""
    paths: tuple[str, ...]
    """N, relative to the data's folder where all images lie in it."""
    mistakes: NDArray[np.int64]
    """Positions of the most confident mistakes, the most confident first."""
    thumbnails: NDArray[np.uint8]
    """Mistakes × THUMBNAIL × THUMBNAIL × 3."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """N predicted classes: those with the highest probability."""
        return np.asarray(self.probabilities.argmax(1), np.int64)

    @property
    def right(self) -> int:
        """How many images are predicted as what they are."""
        return int((self.predicted == self.labels).sum())

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
        """Read `predictions.npz` of `folder`; None where there is none, or none that can be read."""
        try:
            # A file that came with somebody's sweep must not run code, so nothing in it is unpickled.
            with (folder / PREDICTIONS).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                predictions = cls(
                    probabilities=np.asarray(file["probabilities"], np.float32),
                    labels=np.asarray(file["labels"], np.int64),
                    paths=tuple(map(str, file["paths"])),
                    mistakes=np.asarray(file["mistakes"], np.int64),
                    thumbnails=np.asarray(file["thumbnails"], np.uint8),
                )
        except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
            return None
        return predictions if predictions._is_consistent() else None

    def _is_consistent(self) -> bool:
        """Whether the fields agree on how many images and classes there are."""
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


def predictions_of(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    paths: Sequence[Path],
    root: Path | None,
    pixels: Callable[[list[int]], NDArray[np.uint8]],
) -> Predictions:
    """Predictions with the pictures of their most confident mistakes.

    Args:
        probabilities: N × classes.
        labels: N.
        paths: N.
        root: The data's folder.
        pixels: From positions to their images, n × height × width × 3.
    """
    mistakes = confident_mistakes(probabilities, labels)
    thumbnails = _thumbnails(pixels(mistakes.tolist()))
    return Predictions(probabilities, labels, _names(paths, root), mistakes, thumbnails)


def confident_mistakes(probabilities: NDArray[Any], labels: NDArray[Any], count: int = MISTAKES) -> NDArray[np.int64]:
    """Positions of the wrongly predicted images, those with the highest probability for the wrong class first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    most_confident_first = np.argsort(-probabilities[wrong].max(1), kind="stable")
    return wrong[most_confident_first][:count].astype(np.int64)


def _thumbnails(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    thumbnails = np.zeros((len(images), THUMBNAIL, THUMBNAIL, 3), np.uint8)
    for i, image in enumerate(images):
        small = Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        thumbnails[i] = np.asarray(small)
    return thumbnails


def _names(paths: Sequence[Path], root: Path | None) -> tuple[str, ...]:
    if root is not None and all(path.is_relative_to(root) for path in paths):
        paths = [path.relative_to(root) for path in paths]
    return tuple(str(path).encode(errors="replace").decode() for path in paths)  # a file's name need not be UTF-8
