"""Which pixel values become black and white, where files have more than 8 bits a channel."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 22
"""Pixels of more than 8 bits that are scaled at once."""


@dataclass(frozen=True)
class Levels:
    """Which pixel values become black and white where files have more than 8 bits: the data set's range."""

    integers: tuple[int, int] = (0, 65535)
    floats: tuple[float, float] | None = None
    """None where the data set has no floating-point pixels, which are then an error."""
    wide: bool = False
    """Whether there are integers of 32 bits, or signed ones; where the data set has none they are an error."""

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Levels":
        """The levels whose fields were written as JSON."""
        low, high = raw["integers"]
        floats = None if raw["floats"] is None else (float(raw["floats"][0]), float(raw["floats"][1]))
        return cls((int(low), int(high)), floats, bool(raw["wide"]))

    def of_integers(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """0 to 255, rounded, whatever lies outside cut off."""
        low, high = self.integers
        span = high - low

        def scaled(part: NDArray[Any]) -> NDArray[np.int64]:
            return ((part.astype(np.int64) - low) * 255 + span // 2) // span

        if values.dtype == np.uint16:  # a table of all values takes less memory than the image in 64 bits
            table: NDArray[np.uint8] = scaled(np.arange(1 << 16)).clip(0, 255).astype(np.uint8)
            return np.take(table, values)
        return _in_blocks(values, scaled)

    def of_floats(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """0 to 255, rounded, whatever lies outside cut off.

        Raises:
            ValueError: a value is not finite, or the data set has no such pixels.
        """
        if self.floats is None:
            raise ValueError("floating-point pixels; convert it to 8 or 16 bits")
        if not np.isfinite(values).all():
            raise ValueError("floating-point pixels, some not finite")

        low, high = self.floats
        step = (high - low) / 255
        return _in_blocks(values, lambda part: np.rint((part.astype(np.float64) - low) / step))


DEFAULT_LEVELS = Levels()
"""Those of images in 8 bits, and in 16 bits of which the upper ones are used."""


def _in_blocks(values: NDArray[Any], scaled: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.uint8]:
    """All values scaled, a block at a time, since that takes 64 bits each; cut off to 0..255."""
    flat = values.reshape(-1)
    out = np.empty(flat.size, np.uint8)
    for start in range(0, flat.size, _BLOCK):
        out[start : start + _BLOCK] = scaled(flat[start : start + _BLOCK]).clip(0, 255)
    return out.reshape(values.shape)
