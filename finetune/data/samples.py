"""A folder of images, or a CSV, as paths with labels and splits. Looks at names and bytes, not at pixels."""

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.config import digest_of
from finetune.data.contents import FORMATS
from finetune.errors import Refused

SPLITS = ("train", "val", "test")
EXTENSIONS = frozenset(FORMATS)
_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Samples:
    """Labelled images of one split; entry i of each field belongs to image i."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    """Indices into the data set's classes."""

    def __len__(self) -> int:
        return len(self.paths)

    def without(self, bad: frozenset[Path]) -> "Samples":
        """The samples whose file is not among `bad`."""
        return self.pick([i for i, path in enumerate(self.paths) if path not in bad])

    def pick(self, indices: Sequence[int] | NDArray[np.int64]) -> "Samples":
        """The samples at `indices`, in that order."""
        return Samples(tuple(self.paths[i] for i in indices), tuple(self.labels[i] for i in indices))


@dataclass(frozen=True)
class DataSet:
    """Everything known about the images before one is decoded."""

    classes: tuple[str, ...]
    """Class names in label order; always the training split's, sorted."""
    splits: dict[str, Samples]
    """`train` and `val`, and `test` where there is one; sorted by path."""
    warnings: tuple[str, ...] = field(default=())
    """What is odd but usable, one sentence each."""

    def with_val_in_train(self) -> "DataSet":
        """The same with the validation images among the training images too."""
        both = [self.splits["train"], self.splits["val"]]
        pairs = sorted(
            {pair for s in both for pair in zip(s.paths, s.labels, strict=True)}, key=lambda p: os.fsencode(p[0])
        )
        train = Samples(tuple(path for path, _ in pairs), tuple(label for _, label in pairs))
        told = "trained on the validation images too, and the last epoch was kept: val/acc is no estimate of anything"
        return DataSet(self.classes, {**self.splits, "train": train}, (told, *self.warnings))

    @property
    def split_digest(self) -> str:
        """Names which image is in which split with which label; file names count, contents do not."""
        return digest_of(
            [
                [split, *(f"{self.classes[label]}/{path.name}" for path, label in zip(s.paths, s.labels, strict=True))]
                for split, s in self.splits.items()
            ]
        )


def load_samples(
    root: str | None,
    csv_file: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    use_val_as: str = "val",
) -> DataSet:
    """Find the images under `root`, or those a CSV names, and split them.

    Args:
        root: A folder of class folders, or one with `train/` and perhaps `val/` and `test/` that hold them.
        csv_file: Lines of `path,label[,split]` under such a header; paths are relative to `root`, else to the file.
        val_fraction: Share of the training images that become validation where none is given, 0..1.
        split_seed: Which of them; together with labels and fraction it decides the split, and nothing else does.
        use_val_as: `test` makes the given validation images the test set and splits validation off the training set.

    Raises:
        Refused: no such folder, no images, a class without images, fewer than two classes, or a class that only
            validation or test has; the message names it.
    """
    if csv_file is not None:
        found, warnings = _from_csv(Path(csv_file).expanduser(), root)
    elif root is not None:
        found, warnings = _from_folder(Path(root).expanduser())
    else:
        raise Refused("data.root is not set; give data.root=FOLDER of class folders, or experiment=embedded")
    if use_val_as == "test":
        if "val" not in found:
            raise Refused("data.use_val_as=test, but there is no val/ folder or split; leave the key at val")
        found["test"] = found.pop("val")
    where = csv_file or root
    classes = tuple(sorted({label for _, label in found.get("train", [])}))
    if len(classes) < 2:
        names = f" ({classes[0]})" if classes else ""
        raise Refused(f"{where}: found {len(classes)} class{names} to train on; at least two are needed")
    splits = {name: _indexed(name, found[name], classes, str(where)) for name in SPLITS if name in found}
    for name in splits.keys() - {"train"}:
        absent = sorted(set(classes) - {label for _, label in found[name]})
        if absent:
            warnings.append(f"{where}: {name} has no image of {', '.join(absent)}")
    if "val" not in splits:
        single = [classes[label] for label, count in Counter(splits["train"].labels).items() if count < 2]
        if single:
            raise Refused(
                f"{where}: class {single[0]} has one image, which cannot be split into training and validation; "
                "add images, or give a val/ folder"
            )
        chosen = stratified(splits["train"].labels, val_fraction, split_seed)
        rest = sorted(set(range(len(splits["train"]))) - set(chosen))
        splits = {**splits, "train": splits["train"].pick(rest), "val": splits["train"].pick(chosen)}
    ordered = {name: splits[name] for name in SPLITS if name in splits}
    return DataSet(classes, ordered, tuple(warnings))


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


def stratified(labels: Sequence[int], fraction: float, seed: int) -> list[int]:
    """Indices, sorted, of `ceil(fraction * N)` samples with each class at its share, but never all or none of a class.

    Every class has at least two samples.
    """
    array = np.asarray(labels)
    classes, counts = np.unique(array, return_counts=True)
    exact = counts * (math.ceil(fraction * len(array)) / len(array))
    take = np.floor(exact).astype(int)
    spare = math.ceil(fraction * len(array)) - take.sum()
    take[np.argsort(-(exact - take), kind="stable")[:spare]] += 1
    take = np.clip(take, 1, counts - 1)
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.flatnonzero(array == c))[:n] for c, n in zip(classes, take, strict=True)]
    return sorted(int(i) for i in np.concatenate(chosen))


Found = dict[str, list[tuple[Path, str]]]


def _from_folder(root: Path) -> tuple[Found, list[str]]:
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
    warnings = [f"{root}: ignored {sum(ignored.values())} files that are no images ({_examples(ignored)})"]
    return found, warnings if ignored else []


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


def _from_csv(file: Path, root: str | None) -> tuple[Found, list[str]]:
    base = Path(root).expanduser() if root is not None else file.parent
    found: Found = {}
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
        raise Refused(f"data.csv={file} names {len(missing)} files that do not exist, first {missing[0]}; correct it")
    return found, []


def _indexed(split: str, images: list[tuple[Path, str]], classes: tuple[str, ...], where: str) -> Samples:
    index = {label: i for i, label in enumerate(classes)}
    unknown = sorted({label for _, label in images} - index.keys())
    if unknown:
        raise Refused(
            f"{where}: {split} has class {unknown[0]!r}, which training lacks; remove it or add images to train"
        )
    images = sorted(images, key=lambda image: os.fsencode(image[0]))
    return Samples(tuple(path for path, _ in images), tuple(index[label] for _, label in images))


def _examples(names: Counter[str]) -> str:
    first = [name for name, _ in names.most_common(3)]
    return ", ".join(first) + (" …" if len(names) > 3 else "")
