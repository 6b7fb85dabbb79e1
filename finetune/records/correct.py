"""Which validation images a trial got right, epoch by epoch: a bit an image, as text. Imports no torch."""

import base64
import binascii
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
