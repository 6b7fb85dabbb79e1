"""The range of pixel values of a data set whose files have more than 8 bits: 12-bit pictures in 16-bit files."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config import digest_of
from finetune.data.decode import deep_values
from finetune.data.files import Content
from finetune.data.levels import DEFAULT_LEVELS, Levels
from finetune.errors import counted
from finetune.storage.durable import sealed, unsealed, write_durably
from finetune.storage.parallel import in_order
from finetune.storage.permissions import refuse_shared_writing
from finetune.storage.system import usable_cores


@dataclass(frozen=True)
class Extremes:
    """The least and the largest pixel values of the images of a data set that have more than 8 bits a channel."""

    images: int
    integers: tuple[int, int] | None = None
    floats: tuple[float, float] | None = None
    wide: bool = False
    """Whether integers are signed or of 32 bits."""
    colour: bool = False
    """Whether some are of colours, of which Pillow reads the upper 8 bits."""

    @property
    def levels(self) -> Levels:
        """Which values become black and white: as many bits as the largest value needs, at least 8."""
        integers = DEFAULT_LEVELS.integers if self.integers is None else _whole_bits(*self.integers)
        floats = None
        if self.floats is not None:
            low, high = self.floats
            fits_one = low >= -1 and high <= 1
            floats = (
                (float(min(0, math.floor(low))), 1.0) if fits_one else _whole_bits(math.floor(low), math.ceil(high))
            )
        return Levels(integers, floats, self.wide)

    @property
    def note(self) -> str:
        """One sentence where values are scaled in another way than from 0 to 65535; empty where they are not."""
        levels = self.levels
        if levels == DEFAULT_LEVELS:
            return ""

        have = counted(self.images, "image", ("has", "have"))
        ranges = []
        if self.integers is not None:
            low, high = levels.integers
            bits = f"{(high - low).bit_length()}-bit values, " if low == 0 else ""
            ranges.append(f"{bits}{self.integers[0]} to {self.integers[1]}: black is {low}, white is {high}")
        if self.floats is not None and levels.floats is not None:
            black, white = levels.floats
            ranges.append(f"{self.floats[0]:g} to {self.floats[1]:g}: black is {black:g}, white is {white:g}")
        coarse = ""
        if self.colour and levels.integers[1] < 65535:
            coarse = f"; of colours only {levels.integers[1] >> 8} steps are left, so save them in 8 bits"
        return f"{have} more than 8 bits and {'; '.join(ranges)}{coarse}"


def find_extremes(files: Mapping[Path, Content], cache: Path, threads: int | None = None) -> Extremes | None:
    """What the images that have more than 8 bits a channel go from and to; None where there are none.

    Every such image is decoded, once: the figures are kept in `cache` under the digests of the files.

    Args:
        files: The images of a data set, as `contents` gives them.
        cache: Folder of all stores.
        threads: Decoding threads; one per core by default.

    Raises:
        Refused: others could have written to the cache.
    """
    deep = [path for path, content in files.items() if content.is_deep]
    if not deep:
        return None

    key = digest_of(sorted(files[path].digest for path in deep))
    folder = cache / "pixels" / f"{key}.levels"
    refuse_shared_writing(folder)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _parsed(folder.read_bytes())

    extremes = _measured(deep, threads or usable_cores())
    if extremes is not None:
        with contextlib.suppress(OSError):  # a read-only cache, or a full disk: they are measured again
            write_durably(folder, sealed(vars(extremes)))
    return extremes


def _measured(paths: Sequence[Path], threads: int) -> Extremes | None:
    integers = list[int]()
    floats = list[float]()
    images = 0
    wide = colour = False
    for extremes in in_order(_extremes, paths, threads):
        if extremes is None:
            continue
        kind, low, high = extremes
        images += 1
        wide = wide or kind == "i"
        colour = colour or kind == "colour"
        if kind == "f":
            floats += [low, high]
        else:
            integers += [int(low), int(high)]
    if not images:
        return None
    return Extremes(
        images,
        (min(integers), max(integers)) if integers else None,
        (min(floats), max(floats)) if floats else None,
        wide,
        colour,
    )


def _extremes(path: Path) -> tuple[str, float, float] | None:
    """A kind, and the least and largest value; None for an image that cannot be read, or has values without number."""
    try:
        values = deep_values(path)
    except ValueError:  # which is said when it is to be decoded
        return None

    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low + high):
        return None
    return ("colour" if values.ndim == 3 else values.dtype.kind), low, high


def _whole_bits(low: int, high: int) -> tuple[int, int]:
    """The range of as many bits as these values need.

    >>> _whole_bits(7, 3000), _whole_bits(-1000, 3071)
    ((0, 4095), (-1024, 4095))
    """
    below = 0 if low >= 0 else -(1 << (-low - 1).bit_length())
    return below, max(255, (1 << max(high, 0).bit_length()) - 1)


def _parsed(data: bytes) -> Extremes:
    values = unsealed(data)
    integers, floats = values["integers"], values["floats"]
    return Extremes(
        int(values["images"]),
        None if integers is None else (int(integers[0]), int(integers[1])),
        None if floats is None else (float(floats[0]), float(floats[1])),
        bool(values["wide"]),
        bool(values["colour"]),
    )
