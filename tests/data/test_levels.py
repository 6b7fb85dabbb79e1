"""Images of more than 8 bits are scaled by the range of their data set."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from finetune.data import extremes as extremes_module
from finetune.data.decode import Transform, decode
from finetune.data.extremes import Extremes, find_extremes
from finetune.data.files import contents
from finetune.data.levels import DEFAULT_LEVELS, Levels
from finetune.data.pixels import pixel_store
from finetune.data.samples import Samples
from finetune.export.card import _scaling

GREY = np.random.default_rng(0).integers(0, 256, (4, 24, 32))
"""Four pictures of 8 bits, every value among them."""
GREY[0, 0, :2] = 0, 255


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def colour_png(values: NDArray[Any], kind: int) -> bytes:
    """A PNG of 16-bit channels, H x W x 3 or 4, which Pillow does not write; `kind` is PNG's number of the colours."""
    high, wide = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", wide, high, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def save(image: NDArray[Any], path: Path) -> Path:
    if path.name.startswith("colour"):
        path.write_bytes(colour_png(np.stack([image] * 3, 2), 2))
    elif path.suffix == ".tif" and image.dtype == np.int16:
        Image.fromarray(image.astype(np.int32)).save(path)
    else:
        Image.fromarray(image).save(path)
    return path


KINDS: dict[str, tuple[NDArray[Any], str, Levels]] = {
    "12 bits in PNG": ((GREY * 4095 // 255).astype(np.uint16), "x.png", Levels((0, 4095))),
    "12 bits in TIFF": ((GREY * 4095 // 255).astype(np.uint16), "x.tif", Levels((0, 4095))),
    "10 bits": ((GREY * 1023 // 255).astype(np.uint16), "x.png", Levels((0, 1023))),
    "14 bits": ((GREY * 16383 // 255).astype(np.uint16), "x.png", Levels((0, 16383))),
    "8 bits in 16": (GREY.astype(np.uint16), "x.png", Levels((0, 255))),
    "15 bits": ((GREY * 32767 // 255).astype(np.uint16), "x.png", Levels((0, 32767))),
    "16 bits": ((GREY * 257).astype(np.uint16), "x.png", Levels((0, 65535))),
    "12 bits in a big PGM": ((GREY * 4095 // 255).astype(np.uint16), "x.pgm", Levels((0, 4095))),
    "12 bits in big endian": ((GREY * 4095 // 255).astype(">u2"), "x.tif", Levels((0, 4095))),
    "Hounsfield units": ((GREY * 5119 // 255 - 1024).astype(np.int32), "x.tif", Levels((-1024, 4095), wide=True)),
    "12 bits in 32": ((GREY * 4095 // 255).astype(np.int32), "x.tif", Levels((0, 4095), wide=True)),
    "16 bits in 32": ((GREY * 257).astype(np.int32), "x.tif", Levels((0, 65535), wide=True)),
    "20 bits in 32": ((GREY * 1048575 // 255).astype(np.int32), "x.tif", Levels((0, 1048575), wide=True)),
    "floats to 1": ((GREY / 255).astype(np.float32), "x.tif", Levels(floats=(0.0, 1.0))),
    "floats about 0": ((GREY / 127.5 - 1).astype(np.float32), "x.tif", Levels(floats=(-1.0, 1.0))),
    "floats to 255": (GREY.astype(np.float32), "x.tif", Levels(floats=(0, 255))),
    "floats in Hounsfield units": (
        (GREY * 5119 / 255 - 1024).astype(np.float32),
        "x.tif",
        Levels(floats=(-1024, 4095)),
    ),
    "14 bits of colour": ((GREY * 16383 // 255).astype(np.uint16), "colour.png", Levels((0, 16383))),
    "16 bits of colour": ((GREY * 257).astype(np.uint16), "colour.png", Levels((0, 65535))),
}


def extremes_of(paths: Sequence[Path], cache: Path) -> Extremes | None:
    return find_extremes(contents(paths, cache), cache)


def written(tmp_path: Path, kind: str) -> list[Path]:
    images, name, _ = KINDS[kind]
    return [save(image, tmp_path / f"{Path(name).stem}{i}{Path(name).suffix}") for i, image in enumerate(images)]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_look_as_they_did_in_8_bits_whatever_file_they_are_in(tmp_path: Path, kind: str) -> None:
    paths = written(tmp_path, kind)
    extremes = extremes_of(paths, tmp_path / "cache")
    assert extremes is not None
    assert extremes.levels == KINDS[kind][2]
    tolerance = 4 if "14 bits of colour" in kind else 1  # 64 steps are left
    for path, grey in zip(paths, GREY, strict=True):
        decoded = np.asarray(decode(path, extremes.levels)).astype(int)
        np.testing.assert_allclose(decoded, np.broadcast_to(grey[..., None], decoded.shape), atol=tolerance)


def test_images_of_8_bits_have_no_levels_and_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(extremes_module, "deep_values", never)
    paths = []
    for form in ("png", "jpg", "gif", "webp", "bmp", "ppm", "tif", "avif", "jp2"):
        Image.fromarray(GREY[0].astype(np.uint8)).convert("RGB").save(tmp_path / f"x.{form}")
        paths.append(tmp_path / f"x.{form}")
    assert extremes_of(paths, tmp_path / "cache") is None


def test_the_range_is_that_of_the_whole_data_set(tmp_path: Path) -> None:
    paths = written(tmp_path, "12 bits in PNG")
    dark = save((GREY[0] // 8).astype(np.uint16), tmp_path / "dark.png")
    extremes = extremes_of([dark, *paths], tmp_path / "cache")
    assert extremes == Extremes(5, (0, 4095))
    (tmp_path / "broken.png").write_bytes(paths[0].read_bytes()[:200])
    assert extremes_of([dark, *paths, tmp_path / "broken.png"], tmp_path / "cache") == extremes


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = written(tmp_path, "Hounsfield units")
    first = extremes_of(paths, tmp_path / "cache")

    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(extremes_module, "deep_values", never)
    assert extremes_of(paths[::-1], tmp_path / "cache") == first
    (kept,) = (tmp_path / "cache" / "pixels").iterdir()
    kept.write_bytes(kept.read_bytes().replace(b"1024", b"2048"))
    with pytest.raises(AssertionError, match="decoded"):
        extremes_of(paths, tmp_path / "cache")


def test_what_is_scaled_otherwise_is_said(tmp_path: Path) -> None:
    said = {}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        extremes = extremes_of(written(tmp_path / kind, kind), tmp_path / "cache")
        said[kind] = "" if extremes is None else extremes.note
    assert said["16 bits"] == said["16 bits of colour"] == ""
    assert said["12 bits in PNG"] == (
        "4 images have more than 8 bits and 12-bit values, 0 to 4095: black is 0, white is 4095"
    )
    assert said["Hounsfield units"] == (
        "4 images have more than 8 bits and -1024 to 4095: black is -1024, white is 4095"
    )
    assert said["floats to 1"] == "4 images have more than 8 bits and 0 to 1: black is 0, white is 1"
    assert said["14 bits of colour"].endswith("of colours only 63 steps are left, so save them in 8 bits")


@pytest.mark.parametrize("name", ["12 bits in PNG", "16 bits"])
def test_a_store_is_named_by_the_levels_unless_they_are_the_usual_ones(tmp_path: Path, name: str) -> None:
    paths = tuple(written(tmp_path, name))
    extremes = extremes_of(paths, tmp_path / "cache")
    assert extremes is not None
    samples, transform = Samples(paths, (0, 1, 0, 1)), Transform(16, "squash", "bilinear")
    plain = pixel_store(samples, transform, tmp_path / "cache")
    scaled = pixel_store(samples, transform, tmp_path / "cache", levels=extremes.levels)
    assert (plain.digest == scaled.digest) == (name == "16 bits")
    eight = [Image.fromarray(grey.astype(np.uint8)).convert("RGB") for grey in GREY]
    np.testing.assert_allclose(
        scaled.images[:].astype(int), np.stack([transform(x) for x in eight]).astype(int), atol=1
    )


def test_16_bits_without_levels_are_what_they_always_were(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    save(values, tmp_path / "x.png")
    expected = (values.astype(np.int64) * 255 + 32767) // 65535
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "x.png"))[..., 0], expected)
    np.testing.assert_array_equal(DEFAULT_LEVELS.of_integers(values.astype(np.int32)), expected)


def test_opacity_of_16_bits_is_not_scaled(tmp_path: Path) -> None:
    values = np.stack([(GREY[0] * 4095 // 255)] * 3 + [np.where(GREY[1] > 100, 65535, 0)], 2)
    (tmp_path / "x.png").write_bytes(colour_png(values, 6))
    decoded = np.asarray(decode(tmp_path / "x.png", Levels((0, 4095)))).astype(int)[..., 0]
    seen = GREY[1] > 100
    assert (decoded[~seen] == 255).all()
    np.testing.assert_allclose(decoded[seen], GREY[0][seen], atol=17)  # of 12 bits, 4 are in the upper byte


def test_values_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    save(np.full((4, 4), np.nan, np.float32), tmp_path / "x.tif")
    with pytest.raises(ValueError, match="some not finite"):
        decode(tmp_path / "x.tif", Levels(floats=(0, 1)))
    assert extremes_of([tmp_path / "x.tif"], tmp_path / "cache") is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "colour" not in kind and "PGM" not in kind])
def test_the_code_of_a_model_card_scales_alike(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)[0]
    levels = KINDS[kind][2]
    code = _scaling({"integers": levels.integers, "floats": levels.floats, "wide": levels.wide})
    names: dict[str, Any] = {"np": np, "Image": Image, "path": path}
    text = f"def pixels(path):\n    image = Image.open(path){code}.convert('RGB')\n    return image\n"
    exec(text, names)
    np.testing.assert_array_equal(np.asarray(names["pixels"](path)), np.asarray(decode(path, levels)))
