"""One image file to upright 8-bit RGB, and to the network's size."""

import functools
import logging
import re
import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from finetune.data.formats import what_else
from finetune.data.levels import DEFAULT_LEVELS, Levels

ALPHA_BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels."""
PAD_COLOR = (124, 116, 104)
"""ImageNet's mean colour, close to 0 after normalisation."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn an image, by its EXIF orientation.

`ImageOps.exif_transpose` turns the same way, but writes the EXIF block anew, and fails where that cannot be done.
"""
_ORIENTATION = 0x0112
_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_LARGE = 178_956_970
"""Pixels, where Pillow by itself sees a decompression bomb: 680 MB in RGB. Beyond, memory is bounded in other ways."""
_LARGEST = 1 << 28
"""Pixels that are decoded at the most: 1 GB in RGB, one such image at a time."""
_LARGEST_JPEG = 1 << 30
"""Pixels of a JPEG, of which every second, fourth or eighth is decoded each way."""
_LARGEST_TEXT = 64 << 20
"""Bytes of text and colour profile that a PNG may unpack to; Pillow's own limit is 1 MB, which programs exceed."""
_ONE_AT_A_TIME = threading.Lock()
_COLOUR_16 = re.compile(r"(RGB|RGBA|RGBX|LA|CMYK);16[BLN]?")
"""What Pillow calls 16-bit colour in a file, of which it reads the upper 8 bits."""

Image.MAX_IMAGE_PIXELS = _LARGEST_JPEG // 2  # it refuses twice that; what is between is refused here
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _LARGEST_TEXT
warnings.filterwarnings("ignore", module=r"PIL\.")  # on files that are read all the same; nobody could act on them
logging.getLogger("PIL").addHandler(logging.NullHandler())  # or its errors would be printed besides being raised

_UNSAFE = ("EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR")
"""Formats that other programs would have to draw, or that Pillow knows by name only."""


@dataclass(frozen=True)
class Transform:
    """From an image of any size to `size` x `size`."""

    size: int
    resize: str
    """`squash` ignores the aspect ratio; `crop` keeps the middle; `pad` keeps all and fills with a mean grey."""
    interpolation: str

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize an RGB image: uint8, size x size x 3."""
        target = self.size, self.size
        method = _INTERPOLATION[self.interpolation]
        if self.resize == "squash":
            image = image.resize(target, method)
        elif self.resize == "crop":
            image = ImageOps.fit(image, target, method)
        else:
            image = ImageOps.pad(image, target, method, color=PAD_COLOR)
        return np.asarray(image, dtype=np.uint8)


def decode(path: Path, levels: Levels = DEFAULT_LEVELS) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    EXIF orientation is applied, pixels of more than 8 bits are scaled (not cut off), alpha is laid over white, and a
    truncated file is an error rather than a half image.

    Raises:
        ValueError: the file is not a whole image of a supported kind; the message says in a few words why.
    """
    picture = _read(path)
    if picture.is_wide and not levels.wide:
        raise ValueError("32-bit pixels; convert it to 8 or 16 bits")

    image = picture.image
    if picture.is_deep_grey:
        values = _values(picture)
        grey = Image.fromarray(levels.of_floats(values) if image.mode == "F" else levels.of_integers(values))
        return _reduced(grey).convert("RGB")
    if picture.is_deep_colour and levels.integers != DEFAULT_LEVELS.integers:
        image = _scaled_colours(image, levels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*ALPHA_BACKGROUND, 255))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def is_deep(path: Path) -> bool:
    """Whether a file has more than 8 bits a channel, by its header; not where it cannot be read."""
    try:
        with Image.open(path, formats=_formats()) as file:
            return _is_deep_grey(file) or _is_deep_colour(file)
    except Exception:  # which is said when it is to be decoded
        return False


def deep_values(path: Path) -> NDArray[Any]:
    """The pixel values of an image whose file has more than 8 bits a channel.

    Grey: H x W, uint16, int32 where values are signed or of 32 bits, or float32. Of colour, which Pillow reads in 8
    bits, the largest 16-bit values that they can have been, H x W x 3, uint16.

    Raises:
        ValueError: as `decode` raises it.
    """
    picture = _read(path)
    if picture.is_deep_grey:
        return _values(picture)

    upper = np.asarray(picture.image.convert("RGB")).astype(np.uint16)
    return np.where(upper > 0, (upper << 8) | 255, upper)


@dataclass(frozen=True)
class _Picture:
    """What a file holds, upright, as Pillow reads it."""

    image: Image.Image
    is_deep_grey: bool
    """Whether it has more than 8 bits a pixel."""
    is_wide: bool
    """Whether those are integers of 32 bits, or signed ones."""
    is_deep_colour: bool
    """Whether the file has 16 bits a channel, of which Pillow reads the upper 8."""


def _read(path: Path) -> _Picture:
    """The image of a file.

    Raises:
        ValueError: as `decode` raises it.
    """
    try:
        with Image.open(path, formats=_formats()) as file:
            limit = _LARGEST_JPEG if file.format == "JPEG" and not file.info.get("progressive") else _LARGEST
            if file.width * file.height > limit:
                raise Image.DecompressionBombError

            is_deep_grey = _is_deep_grey(file)
            is_deep_colour = _is_deep_colour(file)  # which the file does not say any more once it is loaded
            is_wide = file.mode == "I" and file.format != "PPM"  # of which Pillow makes 16 bits
            return _Picture(_loaded(file), is_deep_grey, is_wide, is_deep_colour)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError("larger than any photograph (a decompression bomb?)") from error
    except UnidentifiedImageError as error:
        raise ValueError(what_else(path)) from error
    except PermissionError as error:
        raise ValueError(str(error.strerror)) from error
    except Exception as error:  # what Pillow's readers raise on bytes that make no sense
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _loaded(file: Any) -> Image.Image:
    """The pixels of a file, turned upright; those of a very large image at half its size or less."""
    pixels = file.width * file.height
    with _ONE_AT_A_TIME if pixels > _LARGE else nullcontext():
        if pixels > _LARGE and file.format == "JPEG":
            scale = next(scale for scale in (2, 4, 8) if pixels <= _LARGE * scale**2)
            file.draft(file.mode, (file.width // scale, file.height // scale))
        file.load()

        turn = _UPRIGHT.get(file.getexif().get(_ORIENTATION, 1))
        image: Image.Image = file if turn is None else file.transpose(turn)
        return _reduced(image)


def _reduced(image: Image.Image) -> Image.Image:
    """The image, at half its size where it is very large and has 8 bits a channel."""
    if image.width * image.height <= _LARGE or _is_deep_grey(image):
        return image
    if image.has_transparency_data:
        return image.convert("RGBA").reduce(2)
    return (image.convert("RGB") if image.mode in ("1", "P") else image).reduce(2)


def _scaled_colours(image: Image.Image, levels: Levels) -> Image.Image:
    """The upper 8 bits of 16-bit colours, scaled by the data set's range; opacity stays."""
    table = levels.of_integers(np.arange(256, dtype=np.uint16) * 257).tolist()
    *colours, last = image.split()
    last = last if image.mode in ("LA", "RGBA") else last.point(table)
    return Image.merge(image.mode, [*(band.point(table) for band in colours), last])


def _values(picture: _Picture) -> NDArray[Any]:
    """The values of grey pixels; uint16 of either byte order, and of a PPM, becomes the machine's."""
    values = np.asarray(picture.image)
    return values if picture.is_wide or values.dtype.kind == "f" else values.astype(np.uint16)


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _is_deep_colour(file: Any) -> bool:
    """Whether the file has colours of 16 bits; the mode of the image does not say."""
    for _, _, _, arguments in file.tile:
        names = arguments if isinstance(arguments, tuple) else (arguments,)
        if any(isinstance(name, str) and _COLOUR_16.fullmatch(name) for name in names):
            return True
    return False


@functools.cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, the usual ones first."""
    Image.init()
    usual = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
    return (*usual, *(name for name in Image.ID if name not in (*usual, *_UNSAFE)))
