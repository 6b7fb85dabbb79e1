"""A look at a data set before anyone trains on it: what is in it, and what will hurt. Imports no torch."""

import functools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL
from PIL import Image

from finetune.data.decode import decode
from finetune.data.extremes import find_extremes
from finetune.data.files import LEAKAGE_REMEDY, contents, equal_files, leakage_warning, misnamed
from finetune.data.formats import HEIF_VERSION
from finetune.data.levels import DEFAULT_LEVELS, Levels
from finetune.data.remembered import remembered
from finetune.data.samples import DataSet
from finetune.errors import counted

_SAME_AS = {"MPO": "JPEG"}
"""Formats that are read as others: MPO is a camera's JPEG with a second picture behind the first."""
BALANCED_METRIC = "trainer.metric=val/balanced_acc"
"""The metric to take where classes differ in size."""
VERSION = 1
"""Changes when `ImageSummary` comes to hold something else."""


@dataclass(frozen=True)
class ImageSummary:
    """What reading one file showed."""

    width: int
    """Pixels, upright."""
    height: int
    format: str
    """Pillow's name for what the file is, whatever it is called."""
    mode: str
    """Pillow's name for the kind of pixels: `RGB`, `L`, `CMYK` …"""
    why: str = ""
    """Why it cannot be read; empty when it can."""


@dataclass(frozen=True)
class Inspection:
    """What a data set holds."""

    data: DataSet
    summaries: dict[Path, ImageSummary]
    """Every image, by path."""
    copies: tuple[tuple[Path, ...], ...]
    """Groups of files with the same bytes, of two or more."""
    levels_note: str = ""
    """A sentence on how pixels of more than 8 bits are scaled, where that is not from 0 to 65535."""
    levels: Levels = DEFAULT_LEVELS
    """How they are scaled."""

    @property
    def readable(self) -> dict[Path, ImageSummary]:
        """The images that can be read, by path."""
        return {path: summary for path, summary in self.summaries.items() if not summary.why}

    @property
    def unreadable(self) -> dict[Path, str]:
        """Why files cannot be read, by path."""
        return {path: summary.why for path, summary in self.summaries.items() if summary.why}

    @property
    def misnamed(self) -> str:
        """A sentence on readable files whose name says another format than they have; empty without any."""
        return misnamed({path: _SAME_AS.get(image.format, image.format) for path, image in self.readable.items()})

    @property
    def counts(self) -> dict[str, list[int]]:
        """Images of each class, in label order, by split."""
        counts = {}
        for split, samples in self.data.splits.items():
            by_label = Counter(samples.labels)
            counts[split] = [by_label[label] for label in range(len(self.data.classes))]
        return counts

    @property
    def unbalanced(self) -> bool:
        """Whether one class has over three times the training images of another."""
        train = self.counts["train"]
        return max(train) > 3 * min(train)

    @property
    def leaked(self) -> list[tuple[Path, ...]]:
        """Groups of equal files that lie in more than one split."""
        splits = self.data.splits.items()
        return self._differing((path, split) for split, samples in splits for path in samples.paths)

    @property
    def contradicting(self) -> list[tuple[Path, ...]]:
        """Groups of equal files that are labelled differently."""
        splits = self.data.splits.values()
        return self._differing(pair for samples in splits for pair in zip(samples.paths, samples.labels, strict=True))

    def _differing(self, properties: Iterable[tuple[Path, object]]) -> list[tuple[Path, ...]]:
        """The groups of equal files that have more than one of these properties; a table may name a file twice."""
        by_path = defaultdict[Path, set[object]](set)
        for path, value in properties:
            by_path[path].add(value)

        differing = []
        for group in self.copies:
            values = set[object]().union(*(by_path[path] for path in group))
            if len(values) > 1:
                differing.append(group)
        return differing

    @property
    def modes(self) -> Counter[str]:
        """Readable images by kind of pixels."""
        return Counter(image.mode for image in self.readable.values())

    def refusals(self, on_bad: str, on_leak: str = "warn") -> list[str]:
        """Why training would be refused, one sentence each; `on_bad` is `data.on_bad`, `on_leak` `data.on_leak`."""
        refusals = []
        unreadable = self.unreadable
        if unreadable and on_bad == "refuse":
            images = counted(len(unreadable), "unreadable image")
            refusals.append(f"{images}; mend or remove them, or train with data.on_bad=skip")

        leakages = [leakage_warning(self.leaked) if self.leaked else "", self.data.group_leakage]
        if on_leak == "refuse":
            refusals += [f"{sentence}; {LEAKAGE_REMEDY}" for sentence in leakages if sentence]

        if on_bad != "refuse":
            for split, samples in self.data.splits.items():
                if all(path in unreadable for path in samples.paths):
                    refusals.append(f"every image of {split} is unreadable; give others")
            refusals += [f"every image of class {name} is unreadable; give others" for name in self._lost_classes]
        return refusals

    @property
    def _lost_classes(self) -> list[str]:
        """Classes of whose training images none can be read."""
        train = self.data.splits["train"]
        left = train.without(frozenset(self.unreadable))
        return [name for label, name in enumerate(self.data.classes) if label not in left.labels and left.labels]

    def caveats(self, size: int) -> list[str]:
        """What training would accept and its owner may regret, one sentence each; `size` is `data.size`."""
        return [
            *self.data.warnings,
            *([self.data.group_leakage] if self.data.group_leakage else []),
            *self._on_copies(),
            *([self.misnamed] if self.misnamed else []),
            *([self.levels_note] if self.levels_note else []),
            *self._on_counts(),
            *self._on_small_images(size),
        ]

    def _on_copies(self) -> Iterator[str]:
        if self.leaked:
            yield leakage_warning(self.leaked)

        if self.contradicting:
            have = counted(len(self.contradicting), "image", ("has", "have"))
            yield f"{have} two labels: {equal_files(self.contradicting)}"

        # a pair across two splits is leakage, and was named already
        more = sum(len(group) - 1 for group in self.copies) - len(self.leaked)
        if more > 0:
            are = counted(more, "more file", ("is a copy", "are copies"))
            groups = [group for group in self.copies if len(group) > 2 or group not in self.leaked]
            yield f"{are} of others: {equal_files(groups)}"

    def _on_counts(self) -> Iterator[str]:
        train = self.counts["train"]
        val = self.counts["val"]
        if self.unbalanced:
            largest = train.index(max(train))
            smallest = train.index(min(train))
            yield (
                f"classes differ in size: {self.data.classes[largest]} has {max(train)} training images, "
                f"{self.data.classes[smallest]} {min(train)}; always saying the largest class would be right for "
                f"{max(val) / sum(val):.0%} of validation; {BALANCED_METRIC} makes the classes count alike in "
                "what is compared, and data.class_weights=balanced in the loss"
            )

        if min(train) < 10:
            few = [name for name, count in zip(self.data.classes, train, strict=True) if count < 10]
            yield f"fewer than 10 training images of {', '.join(few[:5])}{' …' if len(few) > 5 else ''}"

        if sum(val) < 100:
            images = counted(sum(val), "validation image")
            yield f"{images}: one of them is {1 / sum(val):.1%} of accuracy; repeat with seeds"

    def _on_small_images(self, size: int) -> Iterator[str]:
        small = [path for path, image in self.readable.items() if max(image.width, image.height) < size]
        if small:
            are = counted(len(small), "image", ("is", "are"))
            yield f"{are} smaller than data.size={size} and enlarged, such as {small[0]}"


def inspect_images(
    data: DataSet, cache: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Inspection:
    """Read every image of `data` whole, and compare their bytes; a second look reads what has changed since the first.

    Args:
        data: The images.
        cache: Folder of all stores.
        progress: Called with images read and their total.

    Raises:
        Refused: a file is gone, or reading it fails; or others could have written to the cache.
    """
    paths = [path for samples in data.splits.values() for path in samples.paths]
    files = contents(paths, cache)
    extremes = find_extremes(files, cache)
    levels = DEFAULT_LEVELS if extremes is None else extremes.levels

    what = f"summaries {VERSION}, Pillow {PIL.__version__} {HEIF_VERSION}, {levels}"
    summarise = functools.partial(_summary, levels=levels)
    of_files = remembered(summarise, paths, cache, what, lasts=lambda summary: summary[-1] == "", progress=progress)
    summaries = {path: ImageSummary(*summary) for path, (_, summary) in of_files.items()}

    by_digest = defaultdict[str, list[Path]](list)
    for path in paths:
        if files[path].digest:
            by_digest[files[path].digest].append(path)
    copies = tuple(tuple(group) for group in by_digest.values() if len(group) > 1)
    return Inspection(data, summaries, copies, extremes.note if extremes is not None else "", levels)


def range_and_median(values: list[int]) -> str:
    """The extent of some numbers in words.

    >>> range_and_median([32, 640, 500])
    '32 to 640, median 500'
    """
    if not values:
        return "none"
    return f"{min(values)} to {max(values)}, median {statistics.median(values):.0f}"


def _summary(path: Path, levels: Levels) -> tuple[int, int, str, str, str]:
    """The fields of an `ImageSummary`."""
    try:
        image = decode(path, levels)
        with Image.open(path) as file:
            return *image.size, str(file.format), file.mode, ""
    except (ValueError, OSError) as error:
        return 0, 0, "", "", str(error)
