"""A look at a data set before anyone trains on it: what is in it, and what will hurt. Imports no torch."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from finetune.data.decode import decode
from finetune.data.files import WITHOUT_LEAKS, contents, equal_files, misnamed, too_kind
from finetune.data.samples import DataSet
from finetune.errors import counted

_ALSO = {"MPO": "JPEG"}
"""A camera's JPEG with a second picture behind the first."""


@dataclass(frozen=True)
class Look:
    """One image."""

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
class Checkup:
    """What a data set holds."""

    data: DataSet
    looks: dict[Path, Look]
    """Every image, by path."""
    same: tuple[tuple[Path, ...], ...]
    """Groups of files with the same bytes, of two or more."""

    @property
    def unreadable(self) -> dict[Path, str]:
        """Why files cannot be read, by path."""
        return {path: look.why for path, look in self.looks.items() if look.why}

    @property
    def misnamed(self) -> str:
        """A sentence on readable files whose name says another format than they have; empty without any."""
        return misnamed({p: _ALSO.get(look.format, look.format) for p, look in self.looks.items() if not look.why})

    @property
    def counts(self) -> dict[str, list[int]]:
        """Images of each class, in label order, by split."""
        return {
            split: [Counter(samples.labels)[label] for label in range(len(self.data.classes))]
            for split, samples in self.data.splits.items()
        }

    @property
    def shared(self) -> list[tuple[Path, ...]]:
        """Groups of equal files that lie in more than one split."""
        return self._with_several((path, split) for split, s in self.data.splits.items() for path in s.paths)

    @property
    def contradicting(self) -> list[tuple[Path, ...]]:
        """Groups of equal files that are labelled differently."""
        splits = self.data.splits.values()
        return self._with_several(pair for s in splits for pair in zip(s.paths, s.labels, strict=True))

    def _with_several(self, known: Iterable[tuple[Path, object]]) -> list[tuple[Path, ...]]:
        """The groups of equal files of which more than one thing is said; a table may name a file twice."""
        said = defaultdict[Path, set[object]](set)
        for path, what in known:
            said[path].add(what)
        return [group for group in self.same if len(set[object]().union(*(said[path] for path in group))) > 1]

    @property
    def modes(self) -> Counter[str]:
        """Readable images by kind of pixels."""
        return Counter(look.mode for look in self.looks.values() if not look.why)

    def refusals(self, on_bad: str, on_leak: str = "warn") -> list[str]:
        """Why training would be refused, one sentence each; `on_bad` is `data.on_bad`, `on_leak` `data.on_leak`."""
        bad = self.unreadable
        leaks = [f"{too_kind(self.shared)}; {WITHOUT_LEAKS}"] if self.shared and on_leak == "refuse" else []
        if bad and on_bad == "refuse":
            found = counted(len(bad), "unreadable image")
            return [f"{found}; mend or remove them, or train with data.on_bad=skip", *leaks]
        return leaks + [
            f"every image of {split} is unreadable; give others"
            for split, samples in self.data.splits.items()
            if all(path in bad for path in samples.paths)
        ]

    def doubts(self, size: int) -> list[str]:
        """What training would accept and its owner may regret, one sentence each; `size` is `data.size`."""
        train, val = self.counts["train"], self.counts["val"]
        found = list(self.data.warnings)
        if self.shared:
            found.append(too_kind(self.shared))
        if self.contradicting:
            have = counted(len(self.contradicting), "image", ("has", "have"))
            found.append(f"{have} two labels: {equal_files(self.contradicting)}")
        copies = sum(len(group) - 1 for group in self.same) - len(self.shared)
        if copies > 0:
            are = counted(copies, "more file", ("is a copy", "are copies"))
            again = [group for group in self.same if len(group) > 2 or group not in self.shared]
            found.append(f"{are} of others: {equal_files(again)}")
        if self.misnamed:
            found.append(self.misnamed)
        if max(train) > 3 * min(train):
            least, most = (self.data.classes[train.index(pick(train))] for pick in (min, max))
            found.append(
                f"classes differ in size: {most} has {max(train)} training images, {least} {min(train)}; always saying "
                f"the largest class would be right for {max(val) / sum(val):.0%} of validation"
            )
        if min(train) < 10:
            few = [name for name, n in zip(self.data.classes, train, strict=True) if n < 10]
            found.append(f"fewer than 10 training images of {', '.join(few[:5])}{' …' if len(few) > 5 else ''}")
        if sum(val) < 100:
            are = counted(sum(val), "validation image")
            found.append(f"{are}: one of them is {1 / sum(val):.1%} of accuracy; repeat with seeds")
        small = [path for path, look in self.looks.items() if not look.why and max(look.width, look.height) < size]
        if small:
            are = counted(len(small), "image", ("is", "are"))
            found.append(f"{are} smaller than data.size={size} and enlarged, such as {small[0]}")
        return found


def look_at(data: DataSet, progress: Callable[[int, int], None] = lambda done, total: None) -> Checkup:
    """Read every image of `data` whole, and compare their bytes.

    Raises:
        Refused: a file is gone or may not be read.
    """
    paths = [path for samples in data.splits.values() for path in samples.paths]
    looks: dict[Path, Look] = {}
    with ThreadPoolExecutor() as pool:
        for path, look in zip(paths, pool.map(_look, paths), strict=True):
            looks[path] = look
            progress(len(looks), len(paths))
    groups = defaultdict[str, list[Path]](list)
    for path, content in zip(paths, contents(paths), strict=True):
        groups[content.digest].append(path)
    return Checkup(data, looks, tuple(tuple(group) for group in groups.values() if len(group) > 1))


def middle(values: list[int]) -> str:
    """`32 to 640, median 500`."""
    return f"{min(values)} to {max(values)}, median {statistics.median(values):.0f}" if values else "none"


def _look(path: Path) -> Look:
    try:
        image = decode(path)
        with Image.open(path) as file:
            return Look(*image.size, str(file.format), file.mode)
    except (ValueError, OSError) as error:
        return Look(0, 0, "", "", str(error))
