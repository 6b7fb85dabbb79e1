"""Where labelled images are: a folder of class folders, or a CSV. Looks at names, and refuses what cannot be taken."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from finetune.data.files import FORMATS
from finetune.errors import Refused, counted

SPLITS = ("train", "val", "test")
EXTENSIONS = frozenset(FORMATS)
_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
LabelledImages = dict[str, list[tuple[Path, str]]]
"""By split: images with the names of their classes."""


def from_folder(root: Path) -> tuple[LabelledImages, list[str]]:
    """The images of a folder of class folders, or of splits that hold them, and what is odd but usable.

    Raises:
        Refused: there is none, a class is empty, or something in it is no file of its own; the message names it.
    """
    if not root.is_dir():
        raise Refused(f"data.root={root} is not a folder; give a folder that holds one folder of images per class")
    ignored: Counter[str] = Counter()
    folders = {
        split: next((root / name for name in names if (root / name).is_dir()), None)
        for split, names in _FOLDERS.items()
    }
    if folders["train"] is None:
        folders = {"train": root}
    found = {}
    for split, folder in folders.items():
        if folder is not None:
            found[split] = [(path, label) for label, path in _class_images(folder, root.resolve(), ignored)]
    odd = counted(sum(ignored.values()), "file", ("that is no image", "that are no images"))
    return found, [f"{root}: ignored {odd} ({_examples(ignored)})"] if ignored else []


def _class_images(folder: Path, root: Path, ignored: Counter[str]) -> Iterator[tuple[str, Path]]:
    if not folder.resolve().is_relative_to(root):
        raise Refused(f"{folder} links out of {root}; copy the folder in instead")
    entries = list(_visible(folder, ignored))
    for entry in entries:
        if entry.is_symlink() and not entry.exists():
            raise Refused(f"{entry} links to nothing or to itself; copy the folder in or remove the link")
        if entry.is_dir() and not entry.resolve().is_relative_to(root):
            raise Refused(f"{entry} links out of {root}; copy the folder in instead")
    classes = sorted(entry for entry in entries if entry.is_dir())
    if not classes:
        raise Refused(f"{folder} holds no class folders; put the images of each class in a folder named after it")
    for entry in classes:
        images = sorted(_images(entry, entry.resolve(), ignored))
        if not images:
            raise Refused(f"{entry} holds no images; add some or remove the folder")
        yield from ((entry.name, image) for image in images)


def _images(folder: Path, top: Path, ignored: Counter[str]) -> Iterator[Path]:
    for entry in _visible(folder, ignored):
        is_folder = entry.is_dir()
        if entry.is_symlink():
            if not entry.exists():
                raise Refused(f"{entry} links to nothing or to itself; copy the image in or remove the link")
            if not entry.resolve().is_relative_to(top):
                raise Refused(f"{entry} links out of its class folder; copy the images in instead")
            if is_folder:
                raise Refused(f"{entry} links to a folder, which may loop; copy the images in instead")
        if is_folder:
            if entry.suffix.lower() in EXTENSIONS:
                raise Refused(f"{entry} is a folder with the name of an image; rename or remove it")
            yield from _images(entry, top, ignored)
        elif entry.suffix.lower() not in EXTENSIONS:
            ignored[entry.name] += 1
        elif entry.is_file():
            yield entry
        else:  # reading a pipe would wait for ever
            raise Refused(f"{entry} is no ordinary file; remove it")


def _visible(folder: Path, ignored: Counter[str]) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise Refused(f"{folder} cannot be listed ({error.strerror}); check its permissions") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "Thumbs.db":
            ignored[entry.name] += 1
        else:
            yield entry


def from_csv(file: Path, root: str | None) -> tuple[LabelledImages, list[str]]:
    """The images that lines of `path,label[,split]` name, relative to `root` or else to the file.

    Raises:
        Refused: the file is no such CSV, or an image is not there; the message names the line.
    """
    base = Path(root).expanduser() if root is not None else file.parent
    found: LabelledImages = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines)
            if not {"path", "label"} <= set(table.fieldnames or []):
                raise Refused(f"data.csv={file}: the first line must name the columns: path,label or path,label,split")
            for row in table:
                path, label, split = ((row.get(column) or "").strip() for column in ("path", "label", "split"))
                split = split or "train"
                if split not in SPLITS:
                    raise Refused(f"{file}:{table.line_num}: split {split!r} is not known; use {', '.join(SPLITS)}")
                if not path or not label:
                    raise Refused(f"{file}:{table.line_num}: path or label is empty; fill it in or remove the line")
                found.setdefault(split, []).append((base / path, label))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"data.csv={file} cannot be read: {error}; give a UTF-8 CSV file") from error
    missing = [path for images in found.values() for path, _ in images if not path.is_file()]
    if missing:
        gone = counted(len(missing), "file", ("that does", "that do"))
        raise Refused(f"data.csv={file} names {gone} not exist, first {missing[0]}; correct it")
    return found, []


def labelled_images(root: Path, split: str | None = None) -> tuple[str | None, list[tuple[Path, str]]]:
    """The images of one split with their class names, to measure a model on.

    Args:
        root: A folder of class folders, or of splits that hold them.
        split: `train`, `val` or `test`; by default `test` where there is one, else `val`, else `train`.

    Returns:
        The split's name, None where `root` has no splits, and the images in order of their paths.

    Raises:
        Refused: no such folder or split, or no images in it.
    """
    if split is not None and split not in SPLITS:
        raise Refused(f"--split {split} is not known; use one of {', '.join(SPLITS)}")
    if not root.is_dir():
        raise Refused(f"{root} is not a folder; give a folder that holds one folder of images per class")
    there = {name: root / alias for name in SPLITS for alias in _FOLDERS[name][::-1] if (root / alias).is_dir()}
    if split is not None and split not in there:
        raise Refused(f"{root} has no {split}/ folder; it has {', '.join(there) or 'no splits'}")
    name = split or next((name for name in ("test", "val", "train") if name in there), None)
    images = [(path, label) for label, path in _class_images(there[name] if name else root, root.resolve(), Counter())]
    return name, sorted(images, key=lambda image: os.fsencode(image[0]))


def _examples(names: Counter[str]) -> str:
    first = [name for name, _ in names.most_common(3)]
    return ", ".join(first) + (" …" if len(names) > 3 else "")
