"""What a folder holds, at a glance: images, or folders that hold some. Refuses nothing."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.formats import is_image, is_system
from finetune.errors import counted

NAMED = 5
"""Folders that a sentence names."""
_DATE = re.compile(r"(19|20)\d\d([-_. ]?\d\d?)*|0[1-9]|[12]\d|3[01]")
"""Names of folders that cameras and people sort images into: a year, a month, a day."""


@dataclass(frozen=True)
class Contents:
    """What a folder holds."""

    has_images: bool
    """Directly in it."""
    folders: tuple[str, ...]
    """Names of the folders in it that hold images, at any depth."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no image at any depth."""
        return not self.has_images and not self.folders

    @property
    def is_one_class(self) -> bool:
        """Whether the images belong together: directly in the folder, or in folders by date."""
        return self.has_images or are_dates(self.folders)


def contents_of(folder: Path) -> Contents:
    """What `folder` holds, links followed; nothing where it cannot be listed, which whoever reads it refuses."""
    real = folder.resolve()
    above = folders_above(folder)
    if real in above:  # a link that leads back, perhaps to /, which the search for images will refuse
        return Contents(False, ())

    has_images = False
    subfolders = []
    for entry in _visible(folder):
        if entry.is_dir():
            if _holds_images(Path(entry), {*above, real}):
                subfolders.append(entry.name)
        elif not has_images and entry.is_file():
            has_images = is_image(Path(entry))
    return Contents(has_images, tuple(sorted(subfolders)))


def folders_above(folder: Path) -> set[Path]:
    """All that `folder` lies in: by its path, and once links are followed."""
    return {*folder.resolve().parents, *(parent.resolve() for parent in folder.absolute().parents)}


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without what systems leave."""
    return sorted(Path(entry) for entry in _visible(folder) if entry.is_dir())


def are_dates(names: Sequence[str]) -> bool:
    """Whether folders are named by dates, and not by classes or splits.

    >>> are_dates(["2023", "2024-05"]), are_dates(["0", "1"]), are_dates(["cat", "dog"])
    (True, False, False)
    """
    return all(_DATE.fullmatch(name) for name in names)


def description(folder: Path, contents: Contents) -> str:
    """A few words on what a folder holds."""
    if contents.is_empty:
        return "no images"
    if contents.folders:
        return f"{counted(len(contents.folders), 'folder')} with images"
    images = sum(not entry.is_dir() and is_image(Path(entry)) for entry in _visible(folder))
    return f"{counted(images, 'image')} in no class folder"


def first_few(names: Sequence[str]) -> str:
    """Names for a sentence.

    >>> first_few("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def table_hint(*folders: Path) -> str:
    """What to add to a refusal where a table lies in one of these folders."""
    tables = [path for folder in folders for path in folder.glob("*.[ct]sv")]
    return f"; is {tables[0]} a table of their classes? then set data.csv={tables[0]}" if tables else ""


def _holds_images(folder: Path, above: set[Path]) -> bool:
    """Whether there is an image at any depth."""
    real = folder.resolve()
    if real in above:
        return False

    below = []
    for entry in _visible(folder):
        if entry.is_dir():
            below.append(Path(entry))
        elif entry.is_file() and is_image(Path(entry)):
            return True
    return any(_holds_images(subfolder, {*above, real}) for subfolder in below)


def _visible(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """The entries of a folder without what systems leave, and without links that lead nowhere."""
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError:
        return

    for entry in listed:
        if not is_system(entry.name) and not (entry.is_symlink() and _leads_nowhere(entry)):
            yield entry


def _leads_nowhere(link: "os.DirEntry[str]") -> bool:
    try:
        link.stat()
    except OSError:
        return True
    return False
