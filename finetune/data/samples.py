"""Images as paths with labels and splits. Looks at names, not at pixels."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from finetune.config import digest_of
from finetune.data.contents import table_hint
from finetune.data.folders import LabelledImages, from_folder
from finetune.data.groups import group_leakage, groups_in_names
from finetune.data.names import SPLITS
from finetune.data.table import from_csv
from finetune.data.validation import choose_fold, choose_part
from finetune.errors import Refused


@dataclass(frozen=True)
class Samples:
    """Labelled images of one split; entry i of each field belongs to image i."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    """Indices into the data set's classes."""
    groups: tuple[str, ...] = ()
    """Which images belong together, by `data.groups`; empty where that is not set."""

    def __len__(self) -> int:
        return len(self.paths)

    def without(self, bad: frozenset[Path]) -> "Samples":
        """The samples whose file is not among `bad`."""
        return self.pick([i for i, path in enumerate(self.paths) if path not in bad])

    def pick(self, indices: Sequence[int] | NDArray[np.int64]) -> "Samples":
        """The samples at `indices`, in that order."""
        groups = tuple(self.groups[i] for i in indices) if self.groups else ()
        return Samples(tuple(self.paths[i] for i in indices), tuple(self.labels[i] for i in indices), groups)


@dataclass(frozen=True)
class DataSet:
    """Everything known about the images before one is decoded."""

    classes: tuple[str, ...]
    """Class names in label order; always the training split's, sorted."""
    splits: dict[str, Samples]
    """`train` and `val`, and `test` where there is one; sorted by path."""
    warnings: tuple[str, ...] = field(default=())
    """What is odd but usable, one sentence each."""
    folded: Samples | None = None
    """Those of all folds, where `train` and `val` are made of folds: what trials of any fold share."""

    def with_val_in_train(self) -> "DataSet":
        """The same with the validation images among the training images too."""
        pairs = set[tuple[Path, int]]()
        for split in ("train", "val"):
            samples = self.splits[split]
            pairs.update(zip(samples.paths, samples.labels, strict=True))

        ordered = sorted(pairs, key=lambda pair: os.fsencode(pair[0]))
        train = Samples(tuple(path for path, _ in ordered), tuple(label for _, label in ordered))
        warning = (
            "trained on the validation images too, and the last epoch was kept: val/acc is no estimate of anything"
        )
        return replace(self, splits={**self.splits, "train": train}, warnings=(warning, *self.warnings))

    @property
    def group_leakage(self) -> str:
        """A sentence on groups that lie in several splits; empty without any."""
        return group_leakage({split: samples.groups for split, samples in self.splits.items()})

    @property
    def split_digest(self) -> str:
        """Names which image is in which split with which label; file names count, contents do not."""
        splits = []
        for split, samples in self.splits.items():
            pairs = zip(samples.paths, samples.labels, strict=True)
            splits.append([split, *(f"{self.classes[label]}/{path.name}" for path, label in pairs)])
        return digest_of(splits)


def load_samples(
    root: str | None,
    csv_file: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    use_val_as: str = "val",
    folders: Mapping[str, str | None] = MappingProxyType({}),
    links: str = "follow",
    columns: str | None = None,
    folds: int | None = None,
    fold: int = 0,
    groups: str | None = None,
) -> DataSet:
    """Find the images under `root`, or those a CSV names, and split them.

    Args:
        root: A folder of class folders, or one with `train/` and perhaps `val/` and `test/` that hold them.
        csv_file: A table with a line an image instead; paths in it are relative to `root`, else to the file.
        val_fraction: Share of the training images that become validation where none is given, 0..1.
        split_seed: Which of them; together with labels and fraction it decides the split, and nothing else does.
        use_val_as: `test` makes the given validation images the test set and splits validation off the training set.
        folders: By split, its folder in `root`, where its name does not say which it is.
        links: `follow` or `refuse` links below `root`.
        columns: Which column of the CSV is what, as `path:filename,label:diagnosis`.
        folds: Split the training images into so many parts, of which one validates, instead of by `val_fraction`.
        fold: Which of them, from 0 on.
        groups: Which images belong together, and so into one split: a column of the CSV, or a regular expression on
            their names.

    Raises:
        Refused: no such folder, no images, a class without images, fewer than two classes, or a class that only
            validation or test has; the message names it.
    """
    group_of: Mapping[Path, str] = {}
    if csv_file is not None:
        listed = from_csv(Path(csv_file).expanduser(), root, columns, groups)
        images, warnings, group_of = listed.images, listed.notes, listed.groups
    elif root is not None:
        images, warnings = from_folder(Path(root).expanduser(), folders, links)
    else:
        raise Refused("data.root is not set; give data.root=FOLDER of class folders, or experiment=embedded")

    if use_val_as == "test":
        if "val" not in images:
            raise Refused("data.use_val_as=test, but there is no val/ folder or split; leave the key at val")
        images["test"] = images.pop("val")

    where = str(csv_file or root)
    classes = tuple(sorted({label for _, label in images.get("train", [])}))
    if len(classes) < 2:
        names = f" ({classes[0]})" if classes else ""
        hint = table_hint(Path(root).expanduser()) if csv_file is None and root is not None else ""
        raise Refused(f"{where}: found {len(classes)} class{names} to train on; at least two are needed{hint}")

    if groups is not None and not group_of:
        group_of = groups_in_names(_paths(images), groups)
    splits = {name: _indexed(name, images[name], classes, where, group_of) for name in SPLITS if name in images}
    warnings += [*_on_case(where, classes), *_on_absent_classes(where, classes, splits)]
    folded = None
    if folds is not None:
        if "val" in splits:
            raise Refused(
                f"{where} has validation images, so data.folds={folds} would split nothing; leave the key out, or set "
                "data.use_val_as=test to make them the test set"
            )
        folded = splits["train"]
    if "val" not in splits:
        train = splits["train"]
        if folds is None:
            chosen = choose_part(train.labels, train.groups, val_fraction, split_seed, classes, where)
        else:
            chosen = choose_fold(train.labels, train.groups, folds, fold, split_seed, classes, where)
        splits |= _split_off_val(train, chosen)
    ordered = {name: splits[name] for name in SPLITS if name in splits}
    return DataSet(classes, ordered, tuple(warnings), folded)


def _split_off_val(train: Samples, chosen: Sequence[int] | NDArray[np.int64]) -> dict[str, Samples]:
    """`train` without the chosen images, which become those of validation."""
    rest = sorted(set(range(len(train))) - set(chosen))
    return {"train": train.pick(rest), "val": train.pick(chosen)}


def _on_absent_classes(where: str, classes: Sequence[str], splits: Mapping[str, Samples]) -> list[str]:
    """A sentence for each split that lacks classes of the training split."""
    warnings = []
    for name in splits.keys() - {"train"}:
        present = set(splits[name].labels)
        absent = [label for i, label in enumerate(classes) if i not in present]
        if absent:
            warnings.append(f"{where}: {name} has no image of {', '.join(absent)}")
    return warnings


def _on_case(where: str, classes: Sequence[str]) -> list[str]:
    """A sentence for each two classes that differ in case only, as typing errors do."""
    seen: dict[str, str] = {}
    warnings = []
    for name in classes:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            warnings.append(f"{where}: classes {other} and {name} differ in case only; are they one?")
    return warnings


def _paths(images: LabelledImages) -> list[Path]:
    return [path for pairs in images.values() for path, _ in pairs]


def _indexed(
    split: str,
    images: list[tuple[Path, str]],
    classes: tuple[str, ...],
    where: str,
    group_of: Mapping[Path, str] = MappingProxyType({}),
) -> Samples:
    """The images with their labels as indices, sorted by path; accents of labels may be written in two ways."""
    index = {unicodedata.normalize("NFC", label): i for i, label in enumerate(classes)}
    ordered = sorted(images, key=lambda image: os.fsencode(image[0]))
    labels = [index.get(unicodedata.normalize("NFC", label)) for _, label in ordered]

    unknown = sorted(label for (_, label), i in zip(ordered, labels, strict=True) if i is None)
    if unknown:
        raise Refused(
            f"{where}: {split} has class {unknown[0]!r}, which training lacks; remove it or add images to train"
        )
    paths = tuple(path for path, _ in ordered)
    groups = tuple(group_of[path] for path in paths) if group_of else ()
    return Samples(paths, tuple(label for label in labels if label is not None), groups)
