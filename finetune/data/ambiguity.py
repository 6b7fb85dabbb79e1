"""Folders that could be splits or classes, and cannot be told: refused with the key that decides."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.data.contents import Contents, are_dates, first_few, table_hint
from finetune.data.names import ALIASES, Group
from finetune.errors import Refused

_PARTS = re.compile(
    r"(.*[\s_-])?(fold|split|part|partition|batch|subset|shard|chunk|set|cv|k)[\s_-]?\d+", re.IGNORECASE
)
"""Names of numbered parts of a set."""
_LAY_OUT = (
    "put the images of each class in a folder named after it, or list them in a table (data.csv=FILE); "
    "or set data.train_dir=. if they are classes"
)


class Ambiguous(Exception):
    """What cannot be told; the remedy is apart, for those who can set a key."""

    def __init__(self, message: str, remedy: str):
        super().__init__(message)
        self.remedy = remedy


def refuse_ambiguous(root: Path, groups: Sequence[Group], contents: Mapping[Path, Contents]) -> None:
    """Make sure that the folders of `root` are classes.

    Args:
        root: The folder.
        groups: Folders in it whose names say that they are splits.
        contents: What each folder in it holds.

    Raises:
        Ambiguous: they could be splits, of which none can be trained on.
        Refused: they are splits without class folders.
    """
    full = [folder for folder in contents if not contents[folder].is_empty]
    for group in groups:
        _refuse_named_like_splits(root, group, full, contents)
    if len(full) > 1 and not any(contents[folder].has_images for folder in full):
        _refuse_splits_inside(root, full, contents)
        _refuse_repeated_folders(root, full, contents)
    _refuse_parts(root, full)


def _refuse_named_like_splits(
    root: Path, group: Group, full: Sequence[Path], contents: Mapping[Path, Contents]
) -> None:
    """Refuse folders whose names say that they are splits, and that cannot be read as such."""
    named = {split: [folder for folder in folders if folder in full] for split, folders in group.items()}
    folders = [folder for of_split in named.values() for folder in of_split]
    several = sum(map(bool, named.values())) > 1
    if not several and not any(folder.name.lower() in ALIASES for folder in folders):  # train_station
        return

    names = f"{_listed(folders)} {'looks like a split' if len(folders) == 1 else 'look like splits'}"
    if any(contents[folder].folders for folder in folders):
        raise Ambiguous(
            f"{root}: {names}, but none that holds class folders is named train",
            "set data.train_dir=FOLDER, or data.train_dir=. if they are classes",
        )
    if several:
        raise Ambiguous(f"{root}: {names}, and {folders[0]} holds no class folders", _LAY_OUT)
    if folders == full:
        hint = table_hint(root, folders[0])
        raise Refused(
            f"{folders[0]} holds no class folders; put the images of each class in a folder named after it{hint}"
        )


def _refuse_splits_inside(root: Path, full: Sequence[Path], contents: Mapping[Path, Contents]) -> None:
    """Refuse classes that hold their splits: cat/train, cat/test."""
    splits_inside = [{ALIASES.get(name.lower()) for name in contents[folder].folders} - {None} for folder in full]
    if all(splits_inside) and any(len(splits) > 1 for splits in splits_inside):
        first = full[0]
        raise Ambiguous(
            f"{root}: every folder holds splits of its own ({first_few(contents[first].folders)} in {first.name})",
            f"move them to train/{first.name} and so on, or set data.train_dir=. to take all of it as the classes "
            f"{_listed(full)}",
        )


def _refuse_repeated_folders(root: Path, full: Sequence[Path], contents: Mapping[Path, Contents]) -> None:
    """Refuse folders that all hold the same folders: are those the classes, or these?"""
    first = full[0]
    inner = contents[first].folders
    if len(inner) < 2 or any(contents[folder].folders != inner for folder in full):
        return
    if are_dates(inner) and not _are_parts(full):
        return
    raise Ambiguous(
        f"{root}: {_listed(full)} all hold the same folders ({first_few(inner)}), as splits do",
        f"set data.train_dir={first.name} (and data.val_dir, data.test_dir), or data.train_dir=. if {_listed(full)} "
        "are the classes",
    )


def _refuse_parts(root: Path, full: Sequence[Path]) -> None:
    """Refuse folders that are numbered parts of one set: images_part_1, images_part_2."""
    if len(full) > 1 and _are_parts(full) and len({re.sub(r"\d+$", "", folder.name) for folder in full}) == 1:
        raise Ambiguous(f"{root}: {_listed(full)} look like parts of one set, and no class folders", _LAY_OUT)


def _are_parts(folders: Sequence[Path]) -> bool:
    return all(_PARTS.fullmatch(folder.name) for folder in folders)


def _listed(folders: Sequence[Path]) -> str:
    return first_few([folder.name for folder in folders])
