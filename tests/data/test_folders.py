"""The images below folders, compared with torchvision's ImageFolder where it reads the same folder."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from finetune.data.folders import from_folder, image_files, labelled_images
from finetune.data.formats import is_image
from finetune.data.samples import load_samples
from finetune.errors import Refused
from tests.data.test_formats import encoded
from tests.data.test_samples import TWO_CLASSES, every_path

PNG = encoded("PNG")


def drawn(root: Path, *files: str) -> Path:
    """Write small images, whatever their names."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    return root


def as_image_folder(root: Path) -> list[tuple[str, str]]:
    """Paths and class names, as torchvision reads them; by content too, which it leaves to its caller."""
    folder = ImageFolder(root, is_valid_file=lambda path: is_image(Path(path)))
    return sorted((path, folder.classes[label]) for path, label in folder.samples)


def as_ours(root: Path) -> list[tuple[str, str]]:
    images, _ = from_folder(root)
    assert set(images) == {"train"}
    return sorted((str(path), label) for path, label in images["train"])


ORDINARY = {
    "flat": TWO_CLASSES,
    "folders by date": ["cat/2023/a/1.png", "cat/2024/1.png", "dog/2023/a/1.png", "dog/2024/1.png"],
    "other endings": ["cat/1.jfif", "cat/2.jpe", "cat/3.avif", "cat/4.tga", "dog/1.JPG", "dog/2.webp"],
    "no endings": ["cat/1", "cat/2.jpg?itok=1", "cat/3.jpg_large", "dog/1", "dog/x.y.z"],
    "files that are none": [*TWO_CLASSES],
    "odd names": ["a=b/1.png", "None/1.png", "-c/1.png", "[b]x/1.png", "été/1.png", "line\nbreak/1.png"],
    "a class called train": ["train/1.png", "bus/1.png", "car/1.png"],
    "valid and invalid": ["valid/1.png", "invalid/1.png"],
    "test and control": ["test/1.png", "control/1.png"],
    "words with train in them": ["train_station/1.png", "trainers/1.png", "test tube/1.png"],
}


@pytest.mark.parametrize("case", ORDINARY)
def test_images_classes_and_labels_are_those_of_torchvision(tmp_path: Path, case: str) -> None:
    root = drawn(tmp_path / "root", *ORDINARY[case])
    (root / ORDINARY[case][0]).with_name("notes.txt").write_text("x")
    ours = as_ours(root)
    assert ours == as_image_folder(root)
    assert len(ours) == len(ORDINARY[case])


# Links


def linked_images(tmp_path: Path) -> Path:
    pool, root = drawn(tmp_path / "elsewhere", *TWO_CLASSES), tmp_path / "root"
    for name in TWO_CLASSES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(pool / name)
    return root


def linked_classes(tmp_path: Path) -> Path:
    pool, root = drawn(tmp_path / "elsewhere", *TWO_CLASSES), tmp_path / "root"
    root.mkdir()
    for label in ("cat", "dog"):
        (root / label).symlink_to(pool / label)
    return root


def linked_folders_in_classes(tmp_path: Path) -> Path:
    drawn(tmp_path / "elsewhere", "1/a.png", "2/b.png")
    root = drawn(tmp_path / "root", *TWO_CLASSES)
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "1")
    (root / "dog" / "more").symlink_to("../../elsewhere/2")
    return root


def linked_root(tmp_path: Path) -> Path:
    drawn(tmp_path / "elsewhere", *TWO_CLASSES)
    (tmp_path / "root").symlink_to("elsewhere")
    return tmp_path / "root"


def linked_among_classes(tmp_path: Path) -> Path:
    root = drawn(tmp_path / "root", *TWO_CLASSES)
    (root / "cat" / "link.png").symlink_to("../dog/1.png")
    (root / "cat" / "again.png").symlink_to("1.png")
    return root


@pytest.mark.parametrize(
    "build", [linked_images, linked_classes, linked_folders_in_classes, linked_root, linked_among_classes]
)
def test_links_are_followed_as_torchvision_follows_them(tmp_path: Path, build: object) -> None:
    root = build(tmp_path)  # type: ignore[operator]
    assert as_ours(root) == as_image_folder(root)
    if build is linked_root:
        assert from_folder(root, links="refuse")
        return
    with pytest.raises(Refused, match=r"is a link, and data\.links=refuse takes none"):
        from_folder(root, links="refuse")


def test_linked_splits_are_splits(tmp_path: Path) -> None:
    pool = drawn(tmp_path / "elsewhere", *TWO_CLASSES, "emu/1.png")
    root = drawn(tmp_path / "root", *(f"train/{name}" for name in TWO_CLASSES), "train/emu/1.png")
    (root / "valid").symlink_to(pool)
    images, _ = from_folder(root)
    assert [(str(path), label) for path, label in images["val"]] == as_image_folder(root / "valid")
    with pytest.raises(Refused, match=r"valid is a link, and data\.links=refuse"):
        from_folder(root, links="refuse")


REFUSED_LINKS = {
    "to its own folder": (".", "cat/link", r"cat/link links back to .*cat, which it lies in: a loop; remove"),
    "to the folder above": ("..", "cat/link", r"cat/link links back to .*root, which it lies in"),
    "to everything": ("/", "cat/link", r"cat/link links back to /, which it lies in"),
    "a class to the root": (".", "link", r"root/link links back to .*root, which it lies in"),
    "to itself": ("link.png", "cat/link.png", r"link\.png links to nothing or to itself; restore what it leads to"),
    "to nothing": ("nothing.png", "cat/link.png", r"link\.png links to nothing or to itself"),
    "a class to nothing": ("nothing", "emu", r"emu links to nothing or to itself"),
    "round two corners": ("../../other", "cat/link", r"cat/link/back/other links back to .*other, which it lies in"),
}


@pytest.mark.parametrize("case", REFUSED_LINKS)
def test_links_that_lead_nowhere_or_back_are_refused_by_name(tmp_path: Path, case: str) -> None:
    target, name, text = REFUSED_LINKS[case]
    root = drawn(tmp_path / "root", *TWO_CLASSES)
    (tmp_path / "other").mkdir()
    drawn(tmp_path / "far", "1.png")
    (tmp_path / "other" / "back").symlink_to("../far")
    (tmp_path / "far" / "other").symlink_to("../other")
    (root / name).symlink_to(target)
    with pytest.raises(Refused, match=text):
        load_samples(str(root))


@pytest.mark.parametrize("links", ["follow", "refuse"])
@pytest.mark.parametrize("target", ["/", "/proc"])
@pytest.mark.parametrize("name", ["link", "cat/link", "cat/x.png"])
def test_a_link_to_the_whole_machine_is_not_looked_through(tmp_path: Path, name: str, target: str, links: str) -> None:
    """Some files of /proc can be waited for without end."""
    root = drawn(tmp_path / "root", *TWO_CLASSES)
    (root / name).symlink_to(target)
    if (target, links) != ("/proc", "follow"):
        with pytest.raises(Refused, match=rf"{name} (links back to /|is a folder with the name|is a link, and data)"):
            from_folder(root, links=links)
    (root / name).unlink()
    (root / name).symlink_to("/proc/kmsg")
    try:
        from_folder(root, links=links)
    except Refused:
        assert links == "refuse"


@pytest.mark.parametrize("name", ["val", "test", "extra"])
def test_a_dangling_link_beside_the_splits_is_refused_too(tmp_path: Path, name: str) -> None:
    root = drawn(tmp_path / "root", *(f"train/{name}" for name in TWO_CLASSES))
    (root / name).symlink_to("../gone")
    with pytest.raises(Refused, match=rf"{name} links to nothing or to itself"):
        load_samples(str(root))


# What is passed over, and what is said of it


def test_what_systems_leave_is_no_class(tmp_path: Path) -> None:
    root = drawn(tmp_path, *TWO_CLASSES, "__MACOSX/cat/1.png", "@eaDir/cat/1.png", "cat/@eaDir/1.png/THUMB.jpg")
    for name in ("lost+found", "$RECYCLE.BIN", "System Volume Information", "#recycle"):
        (root / name).mkdir()
    data = load_samples(str(root), val_fraction=0.5)
    assert data.classes == ("cat", "dog")
    assert sorted(every_path(data)) == sorted(root / name for name in TWO_CLASSES)
    assert [text for text in data.warnings if "ignored 7 files that are no images" in text]


def test_images_beside_class_folders_are_counted(tmp_path: Path) -> None:
    root = drawn(tmp_path, *TWO_CLASSES, "stray.png", "other.jpg")
    assert load_samples(str(root), val_fraction=0.5).warnings == (
        f"{root}: 2 images lie beside the class folders, in no class (other.jpg, stray.png)",
    )
    split = drawn(tmp_path / "split", *(f"train/{name}" for name in TWO_CLASSES), "train/stray.png", "sample.png")
    assert load_samples(str(split), val_fraction=0.5).warnings == (
        f"{split}: 2 images lie beside the class folders, in no class (sample.png, stray.png)",
    )


def test_pictures_that_are_not_read_are_counted_by_kind(tmp_path: Path) -> None:
    root = drawn(tmp_path, *TWO_CLASSES, "cat/a.dcm", "cat/b.DCM", "dog/x.nef", "dog/film.mp4")
    assert load_samples(str(root), val_fraction=0.5).warnings == (
        f"{root}: left out 2 .dcm files, which are DICOM; convert them to PNG or TIFF",
        f"{root}: left out 1 .mp4 file, which are videos; extract their frames",
        f"{root}: left out 1 .nef file, which are a camera's raw files; develop them to JPEG or TIFF",
    )
    only = drawn(tmp_path / "only", *TWO_CLASSES, "emu/1.dcm", "emu/2.dcm")
    with pytest.raises(Refused, match=r"emu holds no images but 2 \.dcm files, which are DICOM; .*; add some"):
        load_samples(str(only))


def test_an_empty_class_in_validation_is_warned_of(tmp_path: Path) -> None:
    root = drawn(tmp_path, *(f"{split}/{name}" for split in ("train", "val") for name in TWO_CLASSES))
    (root / "val" / "emu").mkdir()
    assert load_samples(str(root)).warnings == (f"{root}: 1 class folder holds no images ({root}/val/emu)",)


def test_two_spellings_of_one_class_are_refused_in_one_split_and_one_class_in_two(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
    root = drawn(tmp_path / "one", f"{composed}/1.png", f"{apart}/1.png", "dog/1.png")
    with pytest.raises(Refused, match=r"holds two folders called .*, whose accents are written in two ways"):
        load_samples(str(root))
    root = drawn(tmp_path / "two", *(f"train/{name}" for name in (f"{apart}/1.png", "dog/1.png")))
    drawn(root, f"val/{composed}/2.png", "val/dog/2.png")
    data = load_samples(str(root))
    assert data.classes == ("dog", apart)
    assert data.splits["val"].labels == (0, 1)
    assert data.warnings == ()


def test_classes_that_differ_in_case_only_are_doubted(tmp_path: Path) -> None:
    root = drawn(tmp_path, *TWO_CLASSES, "Cat/1.png", "Cat/2.png")
    assert load_samples(str(root), val_fraction=0.5).warnings == (
        f"{root}: classes Cat and cat differ in case only; are they one?",
    )


def test_a_pipe_with_the_name_of_an_image_is_refused_and_another_passed_over(tmp_path: Path) -> None:
    root = drawn(tmp_path, *TWO_CLASSES)
    os.mkfifo(root / "cat" / "pipe")
    assert "pipe" in load_samples(str(root), val_fraction=0.5).warnings[0]
    os.mkfifo(root / "cat" / "pipe.png")
    with pytest.raises(Refused, match=r"pipe\.png is no ordinary file; remove it"):
        load_samples(str(root))


# What `finetune predict` and `finetune test` are given


def test_images_to_predict_are_found_as_those_to_train_on(tmp_path: Path) -> None:
    root = drawn(tmp_path, "a/1.jfif", "a/2", "b/3.avif", "b/4.dcm", "b/notes.txt", "@eaDir/5.png", ".hidden/6.png")
    (root / "b" / "notes.txt").write_text("x")
    (root / "b" / "linked").symlink_to(root / "a" / "2")
    files, notes = image_files([root, root / "b" / "notes.txt"])
    assert files == [root / name for name in ("a/1.jfif", "a/2", "b/3.avif", "b/linked", "b/notes.txt")]
    assert notes == [
        f"{root}: ignored 3 files that are no images (.hidden, @eaDir, notes.txt)",
        f"{root}: left out 1 .dcm file, which are DICOM; convert them to PNG or TIFF",
    ]
    with pytest.raises(Refused, match="there is no such file or folder"):
        image_files([root / "nowhere"])
    (root / "empty").mkdir()
    with pytest.raises(Refused, match="no image here"):
        image_files([root / "empty"])


def test_the_images_to_measure_on_are_those_of_the_split(tmp_path: Path) -> None:
    root = drawn(tmp_path, *(f"{split}/{name}" for split in ("Training", "valid", "TEST") for name in TWO_CLASSES))
    for split, folder in (("train", "Training"), ("val", "valid"), ("test", "TEST"), (None, "TEST")):
        name, images, notes = labelled_images(root, split)
        assert (name, notes) == (split or "test", [])
        assert [(str(path), label) for path, label in images] == as_image_folder(root / folder)
    shutil.rmtree(root / "TEST")
    drawn(root, "TEST/flat.png")
    assert labelled_images(root)[0] == "val"
    with pytest.raises(Refused, match=r"has no test/ folder; it has train, val"):
        labelled_images(root, "test")
    name, images, notes = labelled_images(root / "valid")
    assert (name, len(images), notes) == (None, 4, [])


def test_only_test_images_can_be_measured_on(tmp_path: Path) -> None:
    root = drawn(tmp_path, *(f"{split}/{name}" for split in ("valid", "test") for name in TWO_CLASSES))
    assert labelled_images(root)[0] == "test"
    fold = drawn(tmp_path / "folds", *(f"fold{i}/{name}" for i in (1, 2) for name in TWO_CLASSES))
    with pytest.raises(Refused, match="as splits do; give the folder that holds the class folders itself"):
        labelled_images(fold)


def test_images_of_any_name_are_decoded(tmp_path: Path) -> None:
    root = drawn(tmp_path, *ORDINARY["no endings"])
    for path, _ in from_folder(root)[0]["train"]:
        with Image.open(path) as image:
            assert image.size == (32, 24)
