"""What kind of file is this? By its name and by its first bytes."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.formats import FORMATS, format_of, is_image, is_system, unread_kind, what_else

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))


def encoded(form: str) -> bytes:
    buffer = BytesIO()
    (PICTURE if form != "PPM" else PICTURE.convert("L")).save(buffer, form)
    return buffer.getvalue()


SIGNED = sorted({*FORMATS.values()} - {"TGA"})
"""Formats that are known by their first bytes."""


@pytest.mark.parametrize("form", SIGNED)
@pytest.mark.parametrize("name", ["x", "x.jpg?itok=1", "x.jpg_large", "photo.3", "x.data"])
def test_an_image_is_known_by_what_it_holds_where_its_name_does_not_say(tmp_path: Path, form: str, name: str) -> None:
    (tmp_path / name).write_bytes(encoded(form))
    assert format_of(tmp_path / name) == form
    assert is_image(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.format == form


@pytest.mark.parametrize("suffix", [*FORMATS, ".JPG", ".JFIF", ".Tga"])
def test_a_name_is_enough_so_that_a_broken_image_is_not_passed_over(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(b"")
    assert is_image(tmp_path / f"x{suffix}")


def test_every_ending_is_one_that_pillow_gives_the_same_format() -> None:
    Image.init()
    known = Image.registered_extensions()
    assert {suffix: known[suffix] for suffix in FORMATS if suffix != ".dib"} == {
        suffix: form for suffix, form in FORMATS.items() if suffix != ".dib"
    }


NO_IMAGES = {
    "BMW notes": b"BMW notes, and not a bitmap at all",
    "P6 in a text": b"P60 is a processor",
    "II in a text": b"III. Of the nature of things",
    "a table": b"path,label\n",
    "json": b'{"a": 1}',
    "nothing": b"",
    "an archive": b"PK\x03\x04" + bytes(50),
    "a wave": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(20),
    "a video": b"\0\0\0\x18ftypmp42" + bytes(20),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_not_taken_for_one(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x").write_bytes(NO_IMAGES[kind])
    assert not is_image(tmp_path / "x")


@pytest.mark.parametrize("name", ["x.jpg~", "x.jpg.part", "x.jpg.crdownload", "x.png.bak", "x.png.tmp"])
def test_a_copy_or_an_unfinished_download_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encoded("JPEG"))
    assert not is_image(tmp_path / name)


@pytest.mark.parametrize("name", ["x.nef", "x.DNG", "x.cr2"])
def test_a_cameras_raw_file_is_not_taken_for_the_tiff_that_it_begins_like(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encoded("TIFF"))
    assert not is_image(tmp_path / name)
    kind = unread_kind(tmp_path / name)
    assert kind is not None
    assert kind[0] == Path(name).suffix.lower()
    assert "raw" in kind[1]


def test_heic_is_known_without_its_ending(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert not is_image(tmp_path / "x")
    assert unread_kind(tmp_path / "x") == (".heic", "which `pip install pillow-heif` lets Pillow read")


def test_dicom_is_known_without_its_ending(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(20))
    assert not is_image(tmp_path / "IM0001")
    assert unread_kind(tmp_path / "IM0001") == (".dcm", "which are DICOM; convert them to PNG or TIFF")


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "thumbs.DB", "__MACOSX", "$RECYCLE.BIN", "@eaDir", "._x"])
def test_what_systems_leave_is_known(name: str) -> None:
    assert is_system(name)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404", "a web page"),
        (b"\n  <html>", "a web page"),
        (b"<svg xmlns='x'/>", "a drawing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; run `git lfs pull`"),
        (b"%PDF-1.7", "a PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which `pip install pillow-heif`"),
        (b"\xff\xd8\xff\xe0", "JPEG, damaged or of a kind that Pillow does not read"),
        (b"some text", "not an image"),
    ],
)
def test_what_a_file_is_instead_is_said(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "x.jpg").write_bytes(data)
    assert what_else(tmp_path / "x.jpg").startswith(kind)
