"""One image file to upright 8-bit RGB, and to the network's size."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

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


def decode(path: Path) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    EXIF orientation is applied, 16-bit grey is scaled (not cut off), alpha is laid over white, and a truncated file is
    an error rather than a half image.

    Raises:
        ValueError: the file is not a whole image of a supported kind; the message says in a few words why.
    """
    try:
        with Image.open(path) as file:
            file.load()
            turn = _UPRIGHT.get(file.getexif().get(_ORIENTATION, 1))
            image: Image.Image = file if turn is None else file.transpose(turn)
            is_32_bit = file.mode == "I" and file.format != "PPM"  # Pillow scales a PPM to 16 bits
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError("larger than any photograph (a decompression bomb?)") from error
    except UnidentifiedImageError as error:
        raise ValueError("empty" if path.stat().st_size == 0 else "not an image") from error
    except Exception as error:  # what Pillow's readers raise on bytes that make no sense
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error

    if is_32_bit:
        raise ValueError("32-bit pixels; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        rounded = (values * 255 + 32767) // 65535  # Pillow's own conversion cuts off what exceeds 255
        return Image.fromarray(rounded.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*ALPHA_BACKGROUND, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")
