"""One image file to 8-bit RGB: what is large, what is odd, and what is no image."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from finetune.data import decode as decode_module
from finetune.data.decode import Transform, decode
from finetune.data.files import contents
from tests.data.test_formats import PICTURE


def text_chunk(kind: str, size: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if kind == "itxt":
        info.add_itxt("XML:com.adobe.xmp", "x" * size, zip=True)
    else:
        info.add_text("workflow", "x" * size, zip=True)
    return info


@pytest.mark.parametrize("kind", ["text", "itxt", "profile"])
@pytest.mark.parametrize("size", [2_000_000, 60_000_000])
def test_a_png_with_much_text_or_a_large_profile_is_read(tmp_path: Path, kind: str, size: int) -> None:
    more = {"icc_profile": b"x" * size} if kind == "profile" else {"pnginfo": text_chunk(kind, size)}
    PICTURE.save(tmp_path / "x.png", **more)
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "x.png")), np.asarray(PICTURE))


@pytest.mark.parametrize("kind", ["text", "itxt", "profile"])
def test_a_png_that_unpacks_to_more_than_memory_should_hold_is_refused(tmp_path: Path, kind: str) -> None:
    size = 70_000_000
    more = {"icc_profile": b"x" * size} if kind == "profile" else {"pnginfo": text_chunk(kind, size)}
    PICTURE.save(tmp_path / "x.png", **more)
    assert (tmp_path / "x.png").stat().st_size < 200_000
    with pytest.raises(ValueError, match="too large"):
        decode(tmp_path / "x.png")


def test_a_very_large_jpeg_is_read_at_a_part_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = Image.fromarray((np.add.outer(np.arange(160), np.arange(240)) // 2).astype(np.uint8)).convert("RGB")
    smooth.save(tmp_path / "x.jpg", quality=95)
    whole = decode(tmp_path / "x.jpg")
    for limit, scale in ((160 * 240, 1), (160 * 240 - 1, 2), (160 * 60, 2), (160 * 60 - 1, 4), (600, 8)):
        monkeypatch.setattr(decode_module, "_LARGE", limit)
        part = decode(tmp_path / "x.jpg")
        assert part.size == (240 // scale, 160 // scale)
        for resize in ("squash", "crop", "pad"):
            to = Transform(16, resize, "bilinear")
            np.testing.assert_allclose(to(part).astype(int), to(whole).astype(int), atol=6)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16"])
def test_another_very_large_image_is_read_and_halved(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)
    image = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(values).convert(mode)
    image.save(tmp_path / "x.tif")
    whole = decode(tmp_path / "x.tif")
    monkeypatch.setattr(decode_module, "_LARGE", 4000)
    half = decode(tmp_path / "x.tif")
    assert (whole.size, half.size) == ((80, 60), (40, 30))
    if mode != "1":
        np.testing.assert_allclose(np.asarray(half).astype(int), np.asarray(whole.reduce(2)).astype(int), atol=2)


def test_what_is_larger_still_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "x.png")
    PICTURE.save(tmp_path / "x.jpg")
    PICTURE.save(tmp_path / "progressive.jpg", progressive=True)
    monkeypatch.setattr(decode_module, "_LARGEST", PICTURE.width * PICTURE.height - 1)
    assert decode(tmp_path / "x.jpg").size == PICTURE.size
    for name in ("x.png", "progressive.jpg"):  # whose coefficients are in memory at once
        with pytest.raises(ValueError, match="larger than any photograph"):
            decode(tmp_path / name)
    monkeypatch.setattr(decode_module, "_LARGEST_JPEG", PICTURE.width * PICTURE.height - 1)
    with pytest.raises(ValueError, match="larger than any photograph"):
        decode(tmp_path / "x.jpg")


def test_a_200_megapixel_photograph_takes_a_bounded_amount_of_memory(tmp_path: Path) -> None:
    Image.new("RGB", (16320, 12240), (90, 120, 60)).save(tmp_path / "phone.jpg", quality=60)
    code = (
        "import resource, sys, pathlib; from finetune.data.decode import decode\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "image = decode(pathlib.Path(sys.argv[1]))\n"
        "print(*image.size, image.getpixel((100, 100)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path / "phone.jpg"], capture_output=True, text=True, check=True
    )
    width, height, *pixel, kilobytes = said.stdout.split()
    assert (int(width), int(height)) == (8160, 6120)
    np.testing.assert_allclose(ast.literal_eval(" ".join(pixel)), (90, 120, 60), atol=2)
    assert int(kilobytes) < 600 << 10  # of 800 MB that the whole picture takes


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user for a moment takes root")
def test_a_file_that_may_not_be_read_is_an_unreadable_image(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("open")
    path = folder / "x.png"
    PICTURE.save(path)
    for place in (folder, *folder.parents[:2]):
        place.chmod(0o755)
    path.chmod(0)
    decode(path)  # as root
    os.seteuid(65534)
    try:
        content = contents([path], Path("/nowhere"))[path]
        assert (content.digest, content.format) == ("", "")
        with pytest.raises(ValueError, match=r"^Permission denied$"):
            decode(path)
    finally:
        os.seteuid(0)


INSTEAD = {
    "a web page": (b"<!DOCTYPE html><html>404 Not Found</html>", "a web page, saved in place of the image"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a Git LFS pointer; run `git lfs"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIC, which `pip install pillow-heif` lets"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript; export it as PNG"),
}


@pytest.mark.parametrize("kind", INSTEAD)
def test_what_is_there_instead_of_an_image_is_said(tmp_path: Path, kind: str) -> None:
    data, reason = INSTEAD[kind]
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        decode(tmp_path / "x.jpg")
