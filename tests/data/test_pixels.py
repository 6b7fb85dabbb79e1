import os
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from finetune.data import pixels
from finetune.data.decode import PAD_COLOR, Transform, decode
from finetune.data.pixels import pixel_store
from finetune.data.samples import Samples
from finetune.errors import Interrupted, Refused

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
SQUASH = Transform(8, "squash", "bilinear")
Pixels = NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def row(mode: str, *values: Any) -> Image.Image:
    """An image one pixel high."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def palette(*colors: tuple[int, int, int]) -> Image.Image:
    image = row("P", *range(len(colors)))
    image.putpalette([channel for color in colors for channel in color])
    return image


TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}
"""EXIF 2.32, tag 0x0112: what makes the stored pixels upright."""
FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "tif": {"compression": "tiff_lzw"},
    "webp": {"lossless": True},
    "jpg": {"quality": 100, "subsampling": 0},
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = np.kron([[RED, GREEN, BLUE], [WHITE, BLACK, RED]], np.ones((16, 16, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(stored.reshape(32, 48, 3)).save(path, exif=exif, **FORMATS[suffix])
    upright = TURNS[orientation](stored.reshape(32, 48, 3))
    np.testing.assert_allclose(np.asarray(decode(path), int), upright, atol=3 if suffix == "jpg" else 0)


TWO = palette((10, 20, 30), (200, 100, 0))
FAINT = (244, 224, 204)
"""(200, 100, 0) at an opacity of 0.2 over white."""
CLEAR = (9, 9, 9, 0)
INKS = ((255, 0, 0, 0), (0, 51, 0, 0), (0, 0, 0, 255))
Kind = tuple[str, Image.Image, dict[str, Any], list[int | tuple[int, int, int]]]
KINDS: dict[str, Kind] = {
    "grey": ("png", row("L", 0, 100, 255), {}, [0, 100, 255]),
    "black and white": ("png", row("1", 0, 255), {}, [0, 255]),
    "palette": ("png", TWO, {}, [(10, 20, 30), (200, 100, 0)]),
    "palette, one clear": ("png", TWO, {"transparency": 1}, [(10, 20, 30), 255]),
    "palette, one faint": ("png", TWO, {"transparency": bytes([255, 51])}, [(10, 20, 30), FAINT]),
    "GIF": ("gif", TWO, {}, [(10, 20, 30), (200, 100, 0)]),
    "GIF, one clear": ("gif", TWO, {"transparency": 0}, [255, (200, 100, 0)]),
    "CMYK": ("tif", row("CMYK", *INKS), {}, [(0, 255, 255), (255, 204, 255), 0]),
    "CMYK JPEG": ("jpg", Image.new("CMYK", (2, 1), (0, 255, 255, 0)), {"quality": 100}, [RED, RED]),
    "YCbCr JPEG": ("jpg", Image.new("YCbCr", (2, 1), (76, 85, 255)), {"quality": 100}, [RED, RED]),
    "RGBA": ("png", row("RGBA", (200, 100, 0, 255), (200, 100, 0, 51), CLEAR), {}, [(200, 100, 0), FAINT, 255]),
    "RGB, one clear": ("png", row("RGB", (1, 2, 3), (1, 2, 4)), {"transparency": (1, 2, 3)}, [255, (1, 2, 4)]),
    "grey with alpha": ("png", row("LA", (100, 255), (100, 51), (9, 0)), {}, [100, 224, 255]),
    "grey, one clear": ("png", row("L", 7, 8), {"transparency": 7}, [255, 8]),
    "16 bits": ("png", row("I;16", 0, 255, 25700, 65535), {}, [0, 1, 100, 255]),
    "16 bits, PGM": ("pgm", row("I;16", 257, 25700, 65535), {}, [1, 100, 255]),
    "16 bits, big-endian": ("tif", row("I;16B", 257, 25700, 65535), {}, [1, 100, 255]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, kind: str) -> None:
    suffix, image, options, colors = KINDS[kind]
    image.save(tmp_path / f"x.{suffix}", **options)
    decoded = decode(tmp_path / f"x.{suffix}")
    assert decoded.mode == "RGB"
    expected = [np.broadcast_to(color, 3) for color in colors]
    np.testing.assert_allclose(np.asarray(decoded, int)[0], expected, atol=3 if suffix == "jpg" else 0)


STRIPES = np.repeat([RED, GREEN, BLUE], 18, axis=0).astype(np.uint8)[None].repeat(18, axis=0)
THIN = STRIPES[:6, ::3]
SHAPED = {
    "squash": THIN.repeat(3, axis=0),
    "crop": np.full((18, 18, 3), GREEN, np.uint8),
    "pad": np.concatenate([np.full((6, 18, 3), PAD_COLOR), THIN, np.full((6, 18, 3), PAD_COLOR)]).astype(np.uint8),
}


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("resize", SHAPED)
def test_squash_bends_and_crop_cuts_and_pad_fills(resize: str, tall: bool) -> None:
    stripes, expected = (a.swapaxes(0, 1) if tall else a for a in (STRIPES, SHAPED[resize]))
    result = Transform(18, resize, "nearest")(Image.fromarray(np.ascontiguousarray(stripes)))
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.uint8


def test_interpolations_are_pillows() -> None:
    image = noise(23, 37)
    results = set()
    for name in ("nearest", "bilinear", "bicubic", "lanczos"):
        method = Image.Resampling[name.upper()]
        squashed = Transform(16, "squash", name)(image)
        np.testing.assert_array_equal(squashed, np.asarray(image.resize((16, 16), method)))
        middle = np.asarray(image.resize((16, 16), method, box=(7, 0, 30, 23)))
        np.testing.assert_array_equal(Transform(16, "crop", name)(image), middle)
        results.add(squashed.tobytes())
    assert len(results) == 4


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's name for any TIFF tag
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_truncated_image_is_never_half_decoded(tmp_path: Path, form: str) -> None:
    whole = encoded(noise(40, 30), form)
    path = tmp_path / "cut"
    for share in (0.01, 0.3, 0.5, 0.7, 0.9, 0.98):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"\w"):
            decode(path)


BAD = {
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"I am no image", "not an image"),
    "cut.png": (encoded(noise(40, 30), "PNG")[:900], "image file is truncated"),
    "float.tif": (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point pixels; convert it to 8 or 16 bits"),
    "deep.tif": (encoded(Image.new("I", (4, 4), 70000), "TIFF"), "32-bit pixels; convert it to 8 or 16 bits"),
    "signed.tif": (encoded(Image.new("I", (4, 4), -1), "TIFF"), "32-bit pixels"),
}


def sown(folder: Path, good: int, bad: tuple[str, ...] = ()) -> Samples:
    """Flat images, the i-th of grey level 10 i and label i % 7, each of its own size; after each, one of the `bad`."""
    folder.mkdir()
    samples = []
    for i in range(good):
        Image.new("RGB", (20 + i, 30 - i), (10 * i,) * 3).save(folder / f"{i}.bmp")
        samples.append((folder / f"{i}.bmp", i % 7))
        for name in bad[i : i + 1]:
            (folder / name).write_bytes(BAD[name][0])
            samples.append((folder / name, 99))
    paths, labels = zip(*samples, strict=True)
    return Samples(paths, labels)


def levels(store: pixels.PixelStore) -> list[int]:
    """The grey level of each image, all of whose pixels must have it."""
    images = store.images[:]
    assert (images == images[:, :1, :1, :1]).all()
    return [int(image[0, 0, 0]) for image in images]


def stores_in(cache: Path) -> list[str]:
    return [path.name for path in (cache / "pixels").iterdir() if path.suffix not in (".lock", ".bad")]


def never(*_: object) -> NoReturn:
    raise AssertionError("decoded again")


def test_a_store_keeps_order_and_labels_and_reports_its_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    samples = sown(tmp_path / "a", 9)
    shuffled = samples.pick([3, 8, 0, 5, 1])
    store = pixel_store(shuffled, SQUASH, tmp_path / "c", progress=lambda done, total: seen.append((done, total)))
    assert levels(store) == [30, 80, 0, 50, 10]
    assert store.labels.tolist() == [3, 1, 0, 5, 1]
    assert store.images.shape == (5, 8, 8, 3)
    assert store.images[:].dtype == np.uint8
    assert store.labels.dtype == np.int64
    assert store.warnings == ()
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_every_unreadable_file_is_named_at_once_and_nothing_is_stored(tmp_path: Path) -> None:
    samples = sown(tmp_path / "a", 7, tuple(BAD))
    fix = r"mend or remove them, or set data\.on_bad=skip"
    with pytest.raises(Refused, match=rf"^6 unreadable images: .*; {fix}$") as error:
        pixel_store(samples, SQUASH, tmp_path / "c")
    for name, (_, reason) in BAD.items():
        assert f"{tmp_path / 'a' / name} ({reason}" in str(error.value)
    assert ".bmp" not in str(error.value)
    assert stores_in(tmp_path / "c") == []


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = sown(tmp_path / "a", 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.raises(Refused, match=r"0\.bmp \(larger than any photograph \(a decompression bomb\?\)\)"):
        pixel_store(samples, SQUASH, tmp_path / "c")


def test_skip_leaves_out_the_unreadable_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = sown(tmp_path / "a", 9, ("empty.jpg", "cut.png", "text.jpg"))
    for again in (False, True):
        if again:
            monkeypatch.setattr(pixels, "decode", never)
        store = pixel_store(samples, SQUASH, tmp_path / "c", on_bad="skip")
        assert levels(store) == [10 * i for i in range(9)]
        assert store.labels.tolist() == [i % 7 for i in range(9)]
        [warning] = store.warnings
        assert warning.startswith("left out 3 unreadable images: ")
        assert all(f"{tmp_path / 'a' / name} (" in warning for name in ("empty.jpg", "cut.png", "text.jpg"))
    with pytest.raises(Refused, match=r"^3 unreadable images: .*empty\.jpg \(empty\), .*on_bad=skip"):
        pixel_store(samples, SQUASH, tmp_path / "c", on_bad="refuse")


def test_a_split_of_unreadable_images_alone_is_refused_even_when_skipping(tmp_path: Path) -> None:
    samples = sown(tmp_path / "a", 2, ("empty.jpg", "text.jpg")).pick([1, 3])
    with pytest.raises(Refused, match=r"every image of a split is unreadable: .*empty\.jpg \(empty\), .*text\.jpg"):
        pixel_store(samples, SQUASH, tmp_path / "c", on_bad="skip")


def test_a_store_is_used_again_by_whoever_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pixel_store(sown(tmp_path / "a", 5), SQUASH, tmp_path / "c")
    same = sown(tmp_path / "b", 5)
    monkeypatch.setattr(pixels, "decode", never)
    again = pixel_store(Samples(same.paths, (4, 3, 2, 1, 0)), SQUASH, tmp_path / "c", progress=never)
    assert again.digest == first.digest
    assert again.labels.tolist() == [4, 3, 2, 1, 0]
    np.testing.assert_array_equal(again.images[:], first.images[:])


def test_another_order_is_another_store(tmp_path: Path) -> None:
    samples = sown(tmp_path / "a", 3)
    there, back = (pixel_store(samples.pick(order), SQUASH, tmp_path / "c") for order in ([0, 1, 2], [2, 1, 0]))
    assert there.digest != back.digest
    assert (levels(there), levels(back)) == ([0, 10, 20], [20, 10, 0])


@pytest.mark.parametrize("change", [{"size": 9}, {"resize": "pad"}, {"interpolation": "nearest"}])
def test_another_transform_is_another_store(tmp_path: Path, change: dict[str, Any]) -> None:
    samples = sown(tmp_path / "a", 3)
    noise(30, 20).save(samples.paths[0])
    old = pixel_store(samples, SQUASH, tmp_path / "c")
    new = pixel_store(samples, replace(SQUASH, **change), tmp_path / "c")
    assert sorted(stores_in(tmp_path / "c")) == sorted([old.digest, new.digest])
    assert old.digest != new.digest
    assert not np.array_equal(old.images[:], new.images[:])


def test_changed_content_is_another_store_though_size_and_time_are_kept(tmp_path: Path) -> None:
    samples = sown(tmp_path / "a", 3)
    old = pixel_store(samples, SQUASH, tmp_path / "c")
    before = samples.paths[1].stat()
    Image.new("RGB", (21, 29), (200,) * 3).save(samples.paths[1])
    os.utime(samples.paths[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert samples.paths[1].stat().st_size == before.st_size
    new = pixel_store(samples, SQUASH, tmp_path / "c")
    assert new.digest != old.digest
    assert (levels(old), levels(new)) == ([0, 10, 20], [0, 200, 20])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("name", ["rows.bin", "manifest.json"])
@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half, Path.unlink, lambda file: file.write_bytes(b"{}")])
def test_a_damaged_store_is_built_anew(tmp_path: Path, name: str, damage: Callable[[Path], object]) -> None:
    samples = sown(tmp_path / "a", 3)
    whole = pixel_store(samples, SQUASH, tmp_path / "c")
    folder = tmp_path / "c" / "pixels" / whole.digest
    before = (folder / "rows.bin").read_bytes()
    damage(folder / name)
    again = pixel_store(samples, SQUASH, tmp_path / "c")
    assert again.warnings == (f"{folder} was damaged, and was built anew",)
    assert (folder / "rows.bin").read_bytes() == before
    assert pixel_store(samples, SQUASH, tmp_path / "c").warnings == ()


def test_an_exif_block_that_cannot_be_written_again_turns_the_image_all_the_same(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x0128] = 6, 2
    Image.new("RGB", (16, 8)).save(tmp_path / "odd.jpg", exif=exif)
    data = (tmp_path / "odd.jpg").read_bytes()
    unit = data.index(b"\x01\x28\x00\x03") if b"\x01\x28\x00\x03" in data else data.index(b"\x28\x01\x03\x00")
    short = b"\x00\x03" if data[unit] == 1 else b"\x03\x00"
    (tmp_path / "odd.jpg").write_bytes(data[: unit + 2] + short.replace(b"\x03", b"\x02") + data[unit + 4 :])
    assert decode(tmp_path / "odd.jpg").size == (8, 16)


def test_the_number_of_threads_does_not_change_a_byte(tmp_path: Path) -> None:
    samples = sown(tmp_path / "a", 20, ("empty.jpg", "cut.png", "text.jpg"))
    Image.new("RGB", (1500, 1500)).save(samples.paths[0])  # done after those behind it, given threads
    files = []
    for threads in (1, 8):
        store = pixel_store(samples, SQUASH, tmp_path / f"{threads}", "skip", threads)
        files.append((tmp_path / f"{threads}" / "pixels" / store.digest / "rows.bin").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(143), RuntimeError("any")])
def test_an_interrupted_build_leaves_nothing_and_the_next_is_whole(tmp_path: Path, error: BaseException) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise error

    samples = sown(tmp_path / "a", 6)
    with pytest.raises(type(error)):
        pixel_store(samples, SQUASH, tmp_path / "c", progress=stop)
    assert [Path(name).suffix for name in stores_in(tmp_path / "c")] == [".part"]
    assert levels(pixel_store(samples, SQUASH, tmp_path / "c")) == [0, 10, 20, 30, 40, 50]
    assert [Path(name).suffix for name in stores_in(tmp_path / "c")] == [""]


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_BLOCK", 4)
    samples = sown(tmp_path / "a", 11, ("cut.png", "empty.jpg"))
    whole = pixel_store(samples, SQUASH, tmp_path / "whole", "skip")

    def stop(done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pixel_store(samples, SQUASH, tmp_path / "c", "skip", progress=stop)
    part = tmp_path / "c" / "pixels" / f"{whole.digest}.part"
    assert len((part / "blocks.jsonl").read_text().splitlines()) == 2
    decoded: list[Path] = []
    monkeypatch.setattr(pixels, "decode", lambda path, levels: (decoded.append(path), decode(path, levels))[1])
    again = pixel_store(samples, SQUASH, tmp_path / "c", "skip")
    assert sorted(decoded) == sorted(samples.paths[8:])
    np.testing.assert_array_equal(again.images[:], whole.images[:])
    assert (again.labels.tolist(), again.warnings) == (whole.labels.tolist(), whole.warnings)
