"""Which validation images a trial got right, epoch by epoch: a bit an image, as text; and of which class they are.

Imports no torch.
"""

import base64
import binascii
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pack(correct: NDArray[np.bool_]) -> str:
    """The bits of one epoch, N of them in the order of the validation images, as base64 of ⌈N / 8⌉ bytes.

    >>> pack(np.array([True, False, True]))
    'oA=='
    """
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def unpack(epochs: Sequence[str], images: int) -> NDArray[np.bool_]:
    """What `pack` was given: epochs x images.

    >>> unpack(["oA=="], 3).tolist()
    [[True, False, True]]

    Raises:
        ValueError: a text that is not of so many images.
    """
    rows = np.zeros((len(epochs), images), np.bool_)
    for row, text in zip(rows, epochs, strict=True):
        try:
            packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
        except (binascii.Error, TypeError) as error:
            raise ValueError(f"the bits of an epoch are no base64: {error}") from error
        if len(packed) != -(-images // 8):
            raise ValueError(f"{len(packed)} bytes are not the bits of {images} images")
        row[:] = np.unpackbits(packed, count=images).astype(np.bool_)
    return rows


def pack_labels(labels: NDArray[np.int64]) -> str:
    """The classes of the validation images in order, as base64 of deflated 16-bit numbers: next to nothing in order.

    >>> unpack_labels(pack_labels(np.array([0, 0, 1]))).tolist()
    [0, 0, 1]
    """
    return base64.b64encode(zlib.compress(labels.astype("<u2").tobytes(), 9)).decode()


def unpack_labels(text: str) -> NDArray[np.int64]:
    """What `pack_labels` was given.

    Raises:
        ValueError: it is no such text.
    """
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<u2").astype(np.int64)
    except (binascii.Error, zlib.error, TypeError) as error:
        raise ValueError(f"the classes of the validation images cannot be read: {error}") from error


def effective_images(labels: NDArray[np.int64]) -> int:
    """Images, equally many of each class, that would tell a mean over classes as surely as these do.

    That is classes² / Σ 1 / images of a class: with few images of one class, it is these that decide.

    >>> effective_images(np.array([0] * 90 + [1] * 10))
    36
    """
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    return round(len(counts) ** 2 / float((1 / counts).sum()))
