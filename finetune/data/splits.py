"""Which folders are the splits, and which are classes: train/ants, or ants alone. Looks at names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from finetune.data.ambiguity import Ambiguous, refuse_ambiguous
from finetune.data.contents import NAMED, Contents, contents_of, description, subfolders
from finetune.data.names import ALIASES, SPLITS, Group, named_like_splits, split_named
from finetune.errors import Refused

_SIDE_FOLDERS = frozenset(
    {"annotation", "annotations", "labels", "masks", "metadata", "meta", "docs", "json", "xml", "csv"}
)
"""Folders without images that people keep beside their classes."""
_DEPTH = 3
"""Folders within folders that are looked through for the one that holds several."""


@dataclass(frozen=True)
class Layout:
    """Where the class folders of each split are."""

    folders: dict[str, Path]
    """By split, a folder that holds a folder for each class."""
    others: frozenset[Path] = frozenset()
    """Folders in these that are no classes."""
    notes: tuple[str, ...] = field(default=())
    """What is beside them and not used, one sentence each."""
    has_splits: bool = True
    """Whether the folders are splits, or the one that holds all classes."""


def find_layout(root: Path, chosen: Mapping[str, str | None], need_train: bool = True) -> Layout:
    """Which folders of `root` are its splits; where none are, `root` itself holds the classes of `train`.

    Folders are known by the usual names in any case, alone or with the same addition: `seg_train` and `seg_test`. A
    folder that holds nothing but one folder is looked into, as archives in archives leave them.

    Args:
        root: A folder of class folders, or of splits that hold them.
        chosen: By split, the folder that was set in `data.train_dir` …, in `root` or absolute; `.` is `root` itself.
        need_train: Whether there must be training images.

    Raises:
        Refused: folders could be splits or classes, or two could be the same split; the message names the key.
    """
    set_folders = {split: folder for split, folder in chosen.items() if folder}
    if set_folders:
        return _chosen_layout(root, set_folders)

    place = _unwrapped(root)
    contents = {folder: contents_of(folder) for folder in subfolders(place)}
    groups = named_like_splits(contents)
    split_groups = [group for group in groups if _is_a_set_of_splits(group, contents, need_train)]
    if len(split_groups) > 1:
        _refuse_undecided(place, "train", [path for group in split_groups for path in group.get("train", [])])
    if split_groups:
        return _layout_of(place, split_groups[0], contents)

    try:
        refuse_ambiguous(place, groups, contents)
    except Ambiguous as ambiguous:
        remedy = ambiguous.remedy if need_train else "give the folder that holds the class folders itself"
        raise Refused(f"{ambiguous}; {remedy}") from None

    side = [folder for folder in contents if folder.name.lower() in _SIDE_FOLDERS and contents[folder].is_empty]
    notes = _unused(place, side, contents)
    if place != root:
        notes = (f"{root} holds one folder: the folders in {place} are the classes", *notes)
    return Layout({"train": place}, frozenset(side), notes, has_splits=False)


def _is_a_set_of_splits(group: Group, contents: Mapping[Path, Contents], need_train: bool) -> bool:
    """Whether these are splits with class folders in them; `train` alone is, `train_images` alone may be a class."""
    names = [folder.name.lower() for folders in group.values() for folder in folders]
    if len(group) < 2 and not any(name in ALIASES for name in names):
        return False

    nested = {split for split, folders in group.items() if any(contents[folder].folders for folder in folders)}
    return "train" in nested or (bool(nested) and not need_train)


def _layout_of(root: Path, group: Group, contents: Mapping[Path, Contents]) -> Layout:
    splits: dict[str, Path] = {}
    used = set[Path]()
    for split in SPLITS:
        nested = [folder for folder in group.get(split, []) if contents[folder].folders]
        if len(nested) > 1:
            _refuse_undecided(root, split, nested)
        if nested:
            splits[split] = _split_folder(nested[0], splits.get("train"))
            used.add(nested[0])

    unused = [folder for folder in contents if folder not in used]
    return Layout(splits, notes=_unused(root, unused, contents))


def _chosen_layout(root: Path, chosen: Mapping[str, str]) -> Layout:
    """The folders that were set, taken as they are; those of other splits by their names."""
    splits: dict[str, Path] = {}
    for split, name in chosen.items():
        folder = root / Path(name).expanduser()
        if not folder.is_dir():
            raise Refused(f"data.{split}_dir={name}: {folder} is not a folder; name one that is")
        splits[split] = folder

    others = frozenset(folder for folder in splits.values() if folder != root)
    if splits.get("train") == root:
        return Layout(splits, others)

    contents = {folder: contents_of(folder) for folder in subfolders(root) if folder not in others}
    for split in SPLITS:
        named = [folder for group in named_like_splits(contents) for folder in group.get(split, [])]
        nested = [folder for folder in named if contents[folder].folders]
        if split in splits or not nested:
            continue
        if len(nested) > 1:
            _refuse_undecided(root, split, nested)
        splits[split] = _split_folder(nested[0], splits.get("train"))

    if "train" not in splits:
        return Layout({"train": root, **splits}, frozenset(splits.values()))

    unused = [folder for folder in contents if not any(path.is_relative_to(folder) for path in splits.values())]
    return Layout(splits, notes=_unused(root, unused, contents))


def _refuse_undecided(root: Path, split: str, folders: Sequence[Path]) -> NoReturn:
    names = " and ".join(folder.name for folder in folders)
    key = f"data.{split}_dir"
    raise Refused(f"{root}: {names} could each be the {split} split; set {key}={folders[0].name}, or another")


def _unused(root: Path, folders: Sequence[Path], contents: Mapping[Path, Contents]) -> tuple[str, ...]:
    """One sentence on the folders beside those that are used, and what they hold."""
    if not folders:
        return ()

    described = [f"{folder.name} ({description(folder, contents[folder])})" for folder in folders[:NAMED]]
    more = f" and {len(folders) - NAMED} more" if len(folders) > NAMED else ""
    return (f"{root}: not used: {', '.join(described)}{more}",)


def _unwrapped(root: Path) -> Path:
    """The folder in which something is to be chosen: that below `root` where each holds nothing but the next.

    It is `root` where there is nothing to choose below: where images or folders by date come first, a class's.
    """
    place = root
    for _ in range(_DEPTH + 1):
        contents = contents_of(place)
        if contents.has_images or not contents.folders:
            return root
        if len(contents.folders) > 1:
            return root if contents.is_one_class else place

        only = contents.folders[0]
        split, rest = split_named(only) or ("", "")
        if split and not (split == "train" and rest):
            return place
        place /= only
    return root


def _split_folder(folder: Path, train: Path | None) -> Path:
    """The folder with the classes of a split: `folder`, or the only one in it where that is a split and no class.

    Args:
        folder: The split's.
        train: The training split's, once it is known, with whose classes others agree.
    """
    contents = contents_of(folder)
    if contents.has_images or len(contents.folders) != 1:
        return folder

    only = folder / contents.folders[0]
    if contents_of(only).is_one_class:
        return folder
    if train is not None and only.name in {path.name for path in subfolders(train)}:
        return folder
    return only
