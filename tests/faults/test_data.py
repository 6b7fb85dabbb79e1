"""Rows 1 to 11, 50 and 52 to 54: what is wrong with images is refused by name, or counted in the report."""

import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from finetune.data.decode import Transform, decode
from finetune.data.pixels import pixel_store
from finetune.data.samples import Samples, load_samples
from finetune.export.card import model_card
from finetune.export.classifier import exported_bytes, load_classifier
from finetune.export.predict import probabilities_of
from finetune.export.write import class_file
from finetune.records.result import Result
from tests.faults.invariants import check_invariants, run, terminal_records
from tests.faults.refusing import Sweeps
from tests.models import finetune


@pytest.fixture
def sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Sweeps:
    return Sweeps(tmp_path, monkeypatch, capfd)


def photograph(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 32)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


# 1


def spoil(images: Path) -> list[Path]:
    """One image of each kind that cannot be read, over three that could."""
    empty, cut, text = (images / "train" / "class0" / f"{name}.jpg" for name in ("empty", "cut", "text"))
    empty.write_bytes(b"")
    whole = encoded(photograph(1), "JPEG", quality=95)
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("I am no image")
    late = images / "val" / "class1" / "late.png"
    late.write_bytes(encoded(photograph(2), "PNG")[:-30])
    return [empty, cut, text, late]


def test_fault_01_unreadable_images_are_all_listed(sweeps: Sweeps, small: list[str], images: Path) -> None:
    *train, late = spoil(images)
    line = sweeps.refused(small)
    assert line.startswith("refused: 3 unreadable images: ")
    for path, why in zip(train, ("empty", "image file is truncated", "not an image"), strict=True):
        assert f"{path} ({why}" in line
    assert line.endswith("mend or remove them, or set data.on_bad=skip")
    for path in train:
        path.unlink()
    assert f"1 unreadable image: {late} (" in sweeps.refused(small)


def test_fault_01_skipped_images_are_counted_in_the_report(sweeps: Sweeps, small: list[str], images: Path) -> None:
    *train, late = spoil(images)
    told = sweeps.warned([*small, "data.on_bad=skip"])
    assert any(text.startswith("left out 3 unreadable images: ") and str(train[1]) in text for text in told)
    assert any(text.startswith(f"left out 1 unreadable image: {late}") for text in told)
    check_invariants(sweeps.folder, terminal_records(sweeps.folder))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's name for any TIFF tag
@pytest.mark.parametrize("form", ["JPEG", "progressive JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_fault_01_no_truncated_image_is_half_decoded(tmp_path: Path, form: str) -> None:
    words = form.split()
    whole = encoded(photograph(3), words[-1], **({"progressive": True} if words[0] == "progressive" else {}))
    path = tmp_path / "x"
    path.write_bytes(whole)
    pixels = np.asarray(decode(path))
    for share in range(1, 100, 3):
        path.write_bytes(whole[: len(whole) * share // 100])
        try:
            found = np.asarray(decode(path))
        except ValueError:
            continue
        np.testing.assert_array_equal(found, pixels)  # only what means nothing was cut off


# 2


def test_fault_02_an_image_with_the_name_of_another_format_is_read_and_counted(
    sweeps: Sweeps, small: list[str], images: Path
) -> None:
    for i in (0, 1):
        file = images / "train" / "class0" / f"{i}.png"
        file.rename(file.with_suffix(".jpg"))
    told = sweeps.warned(small)
    first = images / "train" / "class0" / "0.jpg"
    assert f"2 files are not what their names say (read anyway): {first} is PNG" in told
    check_invariants(sweeps.folder, terminal_records(sweeps.folder))


@pytest.mark.slow
def test_fault_02_it_is_counted_though_the_store_was_built_under_better_names(
    sweeps: Sweeps, small: list[str], images: Path
) -> None:
    assert not [text for text in sweeps.warned(small) if "not what their names say" in text]
    file = images / "val" / "class2" / "3.png"
    file.rename(file.with_suffix(".webp"))
    shutil.rmtree(sweeps.folder)
    told = sweeps.warned(small)
    assert f"1 file is not what its name says (read anyway): {file.with_suffix('.webp')} is PNG" in told


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
def test_fault_02_every_format_is_known_by_its_first_bytes(tmp_path: Path, form: str) -> None:
    suffix = {"JPEG": ".jpeg", "TIFF": ".tif"}.get(form, f".{form.lower()}")
    other = ".png" if form != "PNG" else ".jpg"
    for name in (f"right{suffix}", f"wrong{other}"):
        (tmp_path / name).write_bytes(encoded(photograph(4), form))
    paths = (tmp_path / f"right{suffix}", tmp_path / f"wrong{other}")
    store = pixel_store(Samples(paths, (0, 1)), Transform(8, "squash", "bilinear"), tmp_path / "cache")
    assert store.warnings == (f"1 file is not what its name says (read anyway): {paths[1]} is {form}",)


# 3


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bombs() -> dict[str, bytes]:
    """Small files whose headers promise several thousand million pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    zeros = zlib.compress(bytes(1 << 20))
    bitmap = bytearray(encoded(photograph(5), "BMP"))
    bitmap[18:26] = struct.pack("<ii", 60000, 60000)
    jpeg = bytearray(encoded(photograph(5), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 60000, 60000)
    gif = bytearray(encoded(photograph(5), "GIF"))
    gif[6:10] = struct.pack("<HH", 60000, 60000)
    return {
        "png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zeros) + chunk(b"IEND", b""),
        "bmp": bytes(bitmap),
        "jpg": bytes(jpeg),
        "gif": bytes(gif),
        "ppm": b"P6 60000 60000 255\n" + bytes(1000),
    }


def test_fault_03_decompression_bombs_are_refused_unopened(sweeps: Sweeps, small: list[str], images: Path) -> None:
    for suffix, data in bombs().items():
        (images / "train" / "class1" / f"bomb.{suffix}").write_bytes(data)
    line = sweeps.refused(small)
    assert line.startswith("refused: 5 unreadable images: ")
    for suffix in bombs():
        name = images / "train" / "class1" / f"bomb.{suffix}"
        assert f"{name} (larger than any photograph (a decompression bomb?))" in line


# 4

TURNED: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda upright: upright,
    2: lambda upright: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda upright: upright.rotate(180),
    4: lambda upright: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda upright: upright.transpose(Image.Transpose.TRANSPOSE),
    6: lambda upright: upright.transpose(Image.Transpose.ROTATE_90),
    7: lambda upright: upright.transpose(Image.Transpose.TRANSVERSE),
    8: lambda upright: upright.transpose(Image.Transpose.ROTATE_270),
}
"""How a camera that writes this orientation stores an upright picture."""


def test_fault_04_a_turned_photograph_has_the_pixels_of_the_one_turned_before(tmp_path: Path) -> None:
    places = {"exif": tmp_path / "exif", "upright": tmp_path / "upright"}
    for place in places.values():
        place.mkdir()
    for orientation, turn in TURNED.items():
        upright, exif = photograph(orientation), Image.Exif()
        exif[0x0112] = orientation
        turn(upright).save(places["exif"] / f"{orientation}.png", exif=exif)
        upright.save(places["upright"] / f"{orientation}.png")
    stores = [
        pixel_store(
            Samples(tuple(place / f"{i}.png" for i in TURNED), tuple(TURNED)),
            Transform(24, "crop", "bicubic"),
            tmp_path / "cache",
        )
        for place in places.values()
    ]
    np.testing.assert_array_equal(stores[0].images[:], stores[1].images[:])
    assert len({image.tobytes() for image in stores[0].images[:]}) == len(TURNED)


# 5


def ramp(mode: str) -> Image.Image:
    """Every value of every channel, on 16 x 16 pixels."""
    values = np.arange(256, dtype=np.uint8)
    bands = [Image.fromarray(np.roll(values, 37 * i).reshape(16, 16)) for i in range(Image.getmodebands(mode))]
    return Image.merge(mode, bands) if len(bands) > 1 else bands[0].convert(mode)


def palette(**more: object) -> bytes:
    image = Image.frombytes("P", (16, 16), bytes(range(256)))
    image.putpalette([(i * factor) % 256 for i in range(256) for factor in (1, 3, 7)])
    return encoded(image, "PNG", **more)


SIXTEEN = Image.fromarray((np.arange(256, dtype=np.uint32) * 257).astype(np.uint16).reshape(16, 16))
KINDS = {
    "grey": encoded(ramp("L"), "PNG"),
    "black and white": encoded(ramp("1"), "PNG"),
    "palette": palette(),
    "palette with a clear colour": palette(transparency=7),
    "palette with opacities": palette(transparency=bytes(range(256))),
    "RGBA": encoded(ramp("RGBA"), "PNG"),
    "grey with alpha": encoded(ramp("LA"), "PNG"),
    "CMYK": encoded(ramp("CMYK"), "TIFF"),
    "16 bits": encoded(SIXTEEN, "PNG"),
    "16 bits TIFF": encoded(SIXTEEN, "TIFF"),
}
GOLDEN = {
    "grey": "72432263dbfe17ab",
    "black and white": "3e3b08473370c6a9",
    "palette": "ae03d5942401798e",
    "palette with a clear colour": "6a9a8792576e6e42",
    "palette with opacities": "57e669e978f8bcb0",
    "RGBA": "d5d33208ec7e6130",
    "grey with alpha": "e4336be36ac4aa88",
    "CMYK": "620f1f566c0c819e",
    "16 bits": "72432263dbfe17ab",
    "16 bits TIFF": "72432263dbfe17ab",
}
"""SHA-256 of the decoded pixels."""


@pytest.mark.parametrize("kind", KINDS)
def test_fault_05_every_kind_of_pixel_becomes_the_same_rgb_for_ever(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x").write_bytes(KINDS[kind])
    image = decode(tmp_path / "x")
    assert (image.mode, image.size) == ("RGB", (16, 16))
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == GOLDEN[kind]


def test_fault_05_16_bits_are_scaled_and_alpha_lies_on_white(tmp_path: Path) -> None:
    for kind in ("16 bits", "16 bits TIFF"):
        (tmp_path / "x").write_bytes(KINDS[kind])
        np.testing.assert_array_equal(np.asarray(decode(tmp_path / "x"))[..., 0].ravel(), np.arange(256))
    pixels = np.asarray(ramp("RGBA"), float)
    (tmp_path / "x").write_bytes(KINDS["RGBA"])
    alpha = pixels[..., 3:] / 255
    np.testing.assert_allclose(np.asarray(decode(tmp_path / "x")), pixels[..., :3] * alpha + 255 * (1 - alpha), atol=1)


# 6


def test_fault_06_classes_that_cannot_be_learned_are_named(sweeps: Sweeps, small: list[str], images: Path) -> None:
    empty = images / "train" / "nothing"
    empty.mkdir()
    assert f"{empty} holds no images; add some or remove the folder" in sweeps.refused(small)
    empty.rmdir()
    shutil.copytree(images / "val" / "class0", images / "val" / "emu")
    assert "val has class 'emu', which training lacks; remove it or add images to train" in sweeps.refused(small)
    shutil.rmtree(images / "val")
    for name in ("class1", "class2"):
        shutil.rmtree(images / "train" / name)
    assert "found 1 class (class0) to train on; at least two are needed" in sweeps.refused(small)


# 7


def test_fault_07_indices_are_those_of_training_whatever_val_has(
    sweeps: Sweeps, small: list[str], images: Path
) -> None:
    shutil.rmtree(images / "val" / "class0")  # alone, val would call class1 0
    assert f"{images}: val has no image of class0" in sweeps.warned(small)
    (record,) = (Result.load(folder) for folder in sweeps.folder.glob("trials/*"))
    assert record.classes == ["class0", "class1", "class2"]
    assert load_samples(str(images)).splits["val"].labels == (1,) * 4 + (2,) * 4


def test_fault_07_the_order_of_a_table_means_nothing(tmp_path: Path, images: Path) -> None:
    files = sorted(images.rglob("*.png"))
    lines = [f"{file},{file.parent.name},{file.parent.parent.name}\n" for file in files]
    splits = []
    for name, order in (("there", lines), ("back", lines[::-1])):
        (tmp_path / f"{name}.csv").write_text("path,label,split\n" + "".join(order))
        splits.append(load_samples(None, str(tmp_path / f"{name}.csv")))
    assert splits[0] == splits[1]
    assert splits[0].splits == load_samples(str(images)).splits


# 8


def test_fault_08_what_systems_leave_in_folders_is_ignored_and_counted(
    sweeps: Sweeps, small: list[str], images: Path
) -> None:
    plain = load_samples(str(images)).splits
    for place in (images, images / "train", images / "val" / "class0"):
        (place / ".ipynb_checkpoints").mkdir()
        (place / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(encoded(photograph(8), "PNG"))
        (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (place / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (images / "train" / "class1" / "._0.png").write_bytes(b"\0\5\x16\7")
    assert load_samples(str(images)).splits == plain
    (told,) = (text for text in sweeps.warned(small) if "ignored" in text)
    assert told.startswith(f"{images}: ignored 7 files that are no images (")


# 9


def leak(images: Path) -> None:
    for i in (0, 1):
        shutil.copy(images / "train" / "class1" / f"{i}.png", images / "val" / "class1" / f"same{i}.png")


def test_fault_09_the_same_bytes_in_train_and_val_are_counted_in_the_report(
    sweeps: Sweeps, small: list[str], images: Path
) -> None:
    assert not [text for text in sweeps.warned(small) if "several splits" in text]
    shutil.rmtree(sweeps.folder)
    leak(images)
    pairs = [f"{images}/train/class1/{i}.png = {images}/val/class1/same{i}.png" for i in (0, 1)]
    told = f"2 images lie in several splits, so validation is too kind: {'; '.join(pairs)}"
    assert told in sweeps.warned(small)


@pytest.mark.slow
def test_fault_09_strict_mode_refuses_them(
    sweeps: Sweeps, small: list[str], images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    leak(images)
    line = sweeps.refused([*small, "data.on_leak=refuse"])
    assert "2 images lie in several splits" in line
    assert line.endswith("; remove them from one, or set data.on_leak=warn")
    assert finetune(monkeypatch, "check", images, "data.on_leak=refuse") == 2
    assert "training would be refused: 2 images lie in several splits" in capfd.readouterr().out
    for i in (0, 1):
        (images / "val" / "class1" / f"same{i}.png").unlink()
    assert sweeps.run([*small, "data.on_leak=refuse"])[0] == 0


def test_fault_09_a_refit_trains_on_validation_images_and_is_not_accused(
    sweeps: Sweeps, small: list[str], images: Path
) -> None:
    _, out, err = sweeps.run([*small, "data.on_leak=refuse", "trainer.refit=true"])
    assert "lie in several splits" not in out + err
    (record,) = (Result.load(folder) for folder in sweeps.folder.glob("trials/*"))
    assert record.status == "complete"


# 10


@pytest.mark.parametrize(
    ("link", "target", "why"),
    [
        ("train/class0/loop", ".", "which it lies in: a loop"),
        pytest.param("train/class0/up", "..", "which it lies in: a loop", marks=pytest.mark.slow),
        ("train/class0/self.png", "self.png", "links to nothing or to itself"),
        pytest.param(
            "train/class0/gone.png", "../../../gone.png", "links to nothing or to itself", marks=pytest.mark.slow
        ),
        pytest.param("train/class9", "class9", "links to nothing or to itself", marks=pytest.mark.slow),
        ("train/class9", "../train", "which it lies in: a loop"),
        ("train/class9", "/", "which it lies in: a loop"),
        ("test", "../gone", "links to nothing or to itself"),
    ],
)
def test_fault_10_links_that_loop_or_dangle_are_refused(
    sweeps: Sweeps, small: list[str], images: Path, link: str, target: str, why: str
) -> None:
    (images / link).symlink_to(target)
    line = sweeps.refused(small)
    assert str(images / link) in line
    assert why in line


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/class0/far.png", "../../../elsewhere/0.png"),
        pytest.param("train/class0/other.png", "../class1/0.png", marks=pytest.mark.slow),
        pytest.param("train/class0/folder", "../../../elsewhere/class0", marks=pytest.mark.slow),
        pytest.param("val/class0", "../../elsewhere/class0", marks=pytest.mark.slow),
        pytest.param("test", "../elsewhere", marks=pytest.mark.slow),
    ],
)
def test_fault_10_links_that_lead_elsewhere_are_followed_or_refused_as_set(
    sweeps: Sweeps, small: list[str], images: Path, link: str, target: str
) -> None:
    elsewhere = images.parent / "elsewhere"
    (elsewhere / "class0").mkdir(parents=True)
    for place in (elsewhere, elsewhere / "class0"):
        (place / "0.png").write_bytes(encoded(photograph(10), "PNG"))
    if (images / link).is_dir():
        shutil.rmtree(images / link)
    (images / link).symlink_to(target)
    line = sweeps.refused([*small, "data.links=refuse"])
    assert f"{images / link} is a link, and data.links=refuse takes none" in line
    sweeps.warned(small)
    (record,) = (Result.load(folder) for folder in sweeps.folder.glob("trials/*"))
    splits = {split: ImageFolder(images / split) for split in ("train", "val", "test") if (images / split).is_dir()}
    ours = load_samples(str(images)).splits
    for split, theirs in splits.items():
        if split == "train":
            assert record.classes == theirs.classes
            pairs = zip(map(str, ours[split].paths), ours[split].labels, strict=True)
            assert sorted(pairs) == sorted(theirs.samples)
        assert sorted(map(str, ours[split].paths)) == sorted(path for path, _ in theirs.samples)


# 11


ODD = ("été 猫", "line\nbreak", "tab\t[bold]%s{}", os.fsdecode(b"not utf-8 \xff\xfe"), "-leading", "a,b;'\"")


def test_fault_11_odd_names_go_all_the_way_to_the_page(
    sweeps: Sweeps, small: list[str], images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for i, name in enumerate(ODD):
        for split in ("train", "val"):
            folder = images / split / name
            folder.mkdir()
            for j in range(2):  # the same two basenames in every class
                photograph(100 + 10 * i + j + (split == "val") * 5).save(folder / f"{name}{j}.png", format="PNG")
                photograph(500 + 10 * i + j + (split == "val") * 5).save(folder / f"{j}.png")
    (images / "train" / ODD[3] / f"{ODD[3]}.txt").write_text("x")
    told = sweeps.warned(small)
    assert any("ignored 1 file that is no image" in text for text in told)
    (record,) = (Result.load(folder) for folder in sweeps.folder.glob("trials/*"))
    assert record.classes == sorted([*ODD, "class0", "class1", "class2"])
    check_invariants(sweeps.folder, terminal_records(sweeps.folder))
    for words in (("check", images), ("report", sweeps.folder)):  # pytest's own streams would forgive
        code, printed = run(*words)
        assert code == 0, printed
    assert json.loads(class_file(record.classes)) == record.classes
    assert finetune(monkeypatch, "test", sweeps.folder, images) == 0
    assert finetune(monkeypatch, "predict", sweeps.folder, images / "val" / ODD[3]) == 0
    assert "failed" not in capfd.readouterr().err


def test_fault_11_odd_names_are_named_in_a_refusal(sweeps: Sweeps, small: list[str], images: Path) -> None:
    for name in ODD:
        (images / "train" / "class0" / f"{name}.png").write_bytes(b"")
    assert sweeps.refused(small).startswith("refused: 6 unreadable images: ")


def test_fault_11_a_folder_named_like_an_image_is_refused(sweeps: Sweeps, small: list[str], images: Path) -> None:
    folder = images / "train" / "class2" / "x.jpg"
    folder.mkdir()
    assert f"{folder} is a folder with the name of an image; rename or remove it" in sweeps.refused(small)


# 50


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Validation"),
        pytest.param(("TRAIN", "EVAL"), marks=pytest.mark.slow),
        pytest.param(("seg_train/seg_train", "seg_dev"), marks=pytest.mark.slow),
    ],
)
def test_fault_50_splits_by_other_names_are_no_classes(
    sweeps: Sweeps, small: list[str], images: Path, names: tuple[str, str]
) -> None:
    for old, new in zip(("train", "val"), names, strict=True):
        (images / new).parent.mkdir(exist_ok=True)
        (images / old).rename(images / new)
    sweeps.warned(small)
    (record,) = (Result.load(folder) for folder in sweeps.folder.glob("trials/*"))
    for samples, name in zip(load_samples(str(images)).splits.values(), names, strict=True):
        theirs = ImageFolder(images / name)
        assert record.classes == theirs.classes
        assert sorted(zip(map(str, samples.paths), samples.labels, strict=True)) == sorted(theirs.samples)


def test_fault_50_what_cannot_be_told_is_refused_and_the_key_decides(
    sweeps: Sweeps, small: list[str], images: Path
) -> None:
    shutil.copytree(images / "val", images / "valid")
    assert "val and valid could each be the val split; set data.val_dir=val, or another" in sweeps.refused(small)
    told = sweeps.warned([*small, "data.val_dir=valid"])
    assert f"{images}: not used: val (3 folders with images)" in told


# 52


def test_fault_52_images_under_other_names_are_read_and_the_rest_is_said(
    sweeps: Sweeps, small: list[str], images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = images / "train" / "class0"
    for i, name in enumerate(("a.jfif", "b.jpg?itok=1", "c", "d.avif", "e.tga")):
        form = {".jfif": "JPEG", ".avif": "AVIF", ".tga": "TGA"}.get(Path(name).suffix, "PNG")
        (folder / name).write_bytes(encoded(photograph(60 + i), form))
        (images / "val" / "class0" / name).write_bytes(encoded(photograph(70 + i), form))
    for place in (folder, images / "val" / "class0"):
        (place / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    told = sweeps.warned(small)
    heic = "left out 2 .heic files, which `pip install pillow-heif` lets Pillow read"
    assert f"{images}: {heic}" in told
    assert len(load_samples(str(images)).splits["train"]) == 24 + 5
    for command, place, count in (("predict", images / "val" / "class0", 9), ("test", images, 17)):
        capfd.readouterr()
        assert finetune(monkeypatch, command, sweeps.folder, place) == 0
        out = capfd.readouterr().out
        assert "left out 1 .heic file, which `pip install pillow-heif` lets Pillow read" in out
        if command == "predict":
            assert sum(line.startswith(str(place)) and "  class" in line for line in out.splitlines()) == count
        else:
            assert f"on {count} images of val/" in out


# 53


def as_12_bits(images: Path) -> None:
    """The grey of each picture, in 12 bits of 16."""
    for path in images.rglob("*.png"):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(grey * 16 + grey // 16).save(path)


def test_fault_53_12_bits_in_16_are_scaled_and_whoever_uses_the_model_scales_alike(
    sweeps: Sweeps, small: list[str], images: Path, tmp_path: Path
) -> None:
    greys = {path: Image.open(path).convert("L") for path in images.rglob("*.png")}
    as_12_bits(images)
    told = sweeps.warned(small)
    assert any("36 images have more than 8 bits and 12-bit values" in text for text in told), told
    (checkpoint,) = sweeps.folder.glob("trials/*/best.safetensors")
    classifier = load_classifier(checkpoint)
    exported = tmp_path / "model.safetensors"
    exported.write_bytes(exported_bytes(classifier))
    plain = tmp_path / "plain"
    for path, grey in greys.items():
        (plain / path.relative_to(images)).parent.mkdir(parents=True, exist_ok=True)
        grey.save(plain / path.relative_to(images))
    for model in (classifier, load_classifier(exported)):
        assert model.preprocessing.levels == {"integers": [0, 4095], "floats": None, "wide": False}
        deep = [row for _, row in probabilities_of(model, sorted(images.rglob("*.png")), device="cpu")]
        eight = [row for _, row in probabilities_of(model, sorted(plain.rglob("*.png")), device="cpu")]
        np.testing.assert_allclose(np.stack(deep), np.stack(eight), atol=0.02)  # half a level at the most
    card = model_card(classifier.model, classifier.classes, vars(classifier.preprocessing), "", "", None, "", [])
    assert "0 becomes black and 4095 white" in card
    assert "low, high = (0, 4095)" in card


# 54


def test_fault_54_a_class_of_which_no_image_is_left_is_refused(
    sweeps: Sweeps, small: list[str], images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in (images / "train" / "class1").iterdir():
        path.write_bytes(b"")
    line = sweeps.refused([*small, "data.on_bad=skip"])
    assert "every training image of class class1 is unreadable, so nothing is left to learn it from" in line
    assert finetune(monkeypatch, "check", images, "data.on_bad=skip") == 2
    assert "training would be refused: every image of class class1 is unreadable" in capfd.readouterr().out
