"""Which folders are the splits, and which are classes: train/ants, or ants alone. Looks at names."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from finetune.data.formats import is_image, is_system
from finetune.errors import Refused, counted

SPLITS = ("train", "val", "test")
ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "eval": "val",
    "evaluation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Which split a name means, in lower case."""
_SPLIT_WORD = re.compile(rf"({'|'.join(ALIASES)})(set|data|images|imgs|folder|dir)?")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")
_PARTS = re.compile(
    r"(.*[\s_-])?(fold|split|part|partition|batch|subset|shard|chunk|set|cv|k)[\s_-]?\d+", re.IGNORECASE
)
"""Names of numbered parts of a set."""
_SIDE_FOLDERS = frozenset(
    {"annotation", "annotations", "labels", "masks", "metadata", "meta", "docs", "json", "xml", "csv"}
)
"""Folders without images that people keep beside their classes."""
_DEPTH = 3
"""Folders within folders that are looked through for the one that holds several."""
_NAMED = 5
"""Folders that a sentence names."""


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
    contents = {folder: _contents(folder) for folder in _folders(place)}
    groups = _named_like_splits(contents)
    split_groups = [group for group in groups if _is_a_set_of_splits(group, contents, need_train)]
    if len(split_groups) > 1:
        _refuse_undecided(place, "train", [path for group in split_groups for path in group.get("train", [])])
    if split_groups:
        return _layout_of(place, split_groups[0], contents)

    try:
        _refuse_splits_without_classes(place, groups, contents)
        _refuse_repeated_folders(place, contents)
        _refuse_parts(place, contents)
    except _Undecided as undecided:
        remedy = undecided.remedy if need_train else "give the folder that holds the class folders itself"
        raise Refused(f"{undecided}; {remedy}") from None

    side = [folder for folder in contents if folder.name.lower() in _SIDE_FOLDERS and contents[folder].is_empty]
    notes = _unused(place, side, contents)
    if place != root:
        notes = (f"{root} holds one folder: the folders in {place} are the classes", *notes)
    return Layout({"train": place}, frozenset(side), notes, has_splits=False)


class _Undecided(Exception):
    """Folders could be splits or classes; what to set is added to the message for those who can set something."""

    def __init__(self, message: str, remedy: str):
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class _Contents:
    """What a folder holds."""

    has_images: bool
    """Directly in it."""
    folders: tuple[str, ...]
    """Names of the folders in it that hold images, at any depth."""

    @property
    def is_empty(self) -> bool:
        return not self.has_images and not self.folders


Group = dict[str, list[Path]]
"""By split, the folders whose names say so, and that have the same addition to it."""


def split_named(name: str) -> tuple[str, str] | None:
    """The split that a folder's name says, and what else it says; None where it names no split.

    >>> split_named("Training"), split_named("seg_test"), split_named("bees")
    (('train', ''), ('test', 'seg'), None)
    """
    if name.lower() in ALIASES:
        return ALIASES[name.lower()], ""

    split = None
    rest = []
    for word in _WORDS.findall(name):  # digits are no part of it: train2017, test1
        match = _SPLIT_WORD.fullmatch(word.lower())
        if match is None:
            rest.append(word.lower())
        elif split is not None:  # train_test_images
            return None
        else:
            split = ALIASES[match[1]]
            rest += [match[2]] if match[2] else []
    return None if split is None else (split, " ".join(rest))


def _named_like_splits(folders: Iterable[Path]) -> list[Group]:
    groups = defaultdict[str, Group](dict)
    for folder in folders:
        named = split_named(folder.name)
        if named is not None:
            split, rest = named
            groups[rest].setdefault(split, []).append(folder)
    return [groups[rest] for rest in sorted(groups)]


def _is_a_set_of_splits(group: Group, contents: Mapping[Path, _Contents], need_train: bool) -> bool:
    """Whether these are splits with class folders in them; `train` alone is, `train_images` alone may be a class."""
    names = [folder.name.lower() for folders in group.values() for folder in folders]
    if len(group) < 2 and not any(name in ALIASES for name in names):
        return False

    nested = {split for split, folders in group.items() if any(contents[folder].folders for folder in folders)}
    return "train" in nested or (bool(nested) and not need_train)


def _layout_of(root: Path, group: Group, contents: Mapping[Path, _Contents]) -> Layout:
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

    contents = {folder: _contents(folder) for folder in _folders(root) if folder not in others}
    for split in SPLITS:
        named = [folder for group in _named_like_splits(contents) for folder in group.get(split, [])]
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


def _refuse_splits_without_classes(root: Path, groups: Sequence[Group], contents: Mapping[Path, _Contents]) -> None:
    """Refuse folders whose names say that they are splits, and that cannot be read as such."""
    full = [folder for folder in contents if not contents[folder].is_empty]
    for group in groups:
        named = {split: [folder for folder in folders if folder in full] for split, folders in group.items()}
        folders = [folder for of_split in named.values() for folder in of_split]
        several = sum(map(bool, named.values())) > 1
        is_plain = any(folder.name.lower() in ALIASES for folder in folders)
        if not several and not is_plain:  # train_station
            continue

        names = f"{_listed(folders)} {'looks like a split' if len(folders) == 1 else 'look like splits'}"
        nested = [folder for folder in folders if contents[folder].folders]
        if nested:
            raise _Undecided(
                f"{root}: {names}, but none that holds class folders is named train",
                "set data.train_dir=FOLDER, or data.train_dir=. if they are classes",
            )
        if several:
            raise _Undecided(
                f"{root}: {names}, and {folders[0]} holds no class folders",
                "put the images of each class in a folder named after it, or list them in a table (data.csv=FILE); "
                "or set data.train_dir=. if they are classes",
            )
        if folders == full:
            raise Refused(
                f"{folders[0]} holds no class folders; put the images of each class in a folder named after it"
                f"{table_hint(root, folders[0])}"
            )


def _refuse_repeated_folders(root: Path, contents: Mapping[Path, _Contents]) -> None:
    """Refuse folders that all hold the same folders: are those the classes, or these?"""
    full = [folder for folder in contents if not contents[folder].is_empty]
    if len(full) < 2 or any(contents[folder].has_images for folder in full):
        return

    first = full[0]
    splits_inside = [{ALIASES.get(name.lower()) for name in contents[folder].folders} - {None} for folder in full]
    if all(splits_inside) and any(len(splits) > 1 for splits in splits_inside):
        raise _Undecided(
            f"{root}: every folder holds splits of its own ({_first_few(contents[first].folders)} in {first.name})",
            f"move them to train/{first.name} and so on, or set data.train_dir=. to take all of it as the classes "
            f"{_listed(full)}",
        )

    inner = contents[first].folders
    if len(inner) < 2 or any(contents[folder].folders != inner for folder in full):
        return
    if not _have_letters(inner) and not _are_parts(full):  # folders by date in each class
        return
    raise _Undecided(
        f"{root}: {_listed(full)} all hold the same folders ({_first_few(inner)}), as splits do",
        f"set data.train_dir={first.name} (and data.val_dir, data.test_dir), or data.train_dir=. if {_listed(full)} "
        "are the classes",
    )


def _refuse_parts(root: Path, contents: Mapping[Path, _Contents]) -> None:
    """Refuse folders that are numbered parts of one set: images_part_1, images_part_2."""
    full = [folder for folder in contents if not contents[folder].is_empty]
    if len(full) > 1 and _are_parts(full) and len({re.sub(r"\d+$", "", folder.name) for folder in full}) == 1:
        raise _Undecided(
            f"{root}: {_listed(full)} look like parts of one set, and no class folders",
            "put the images of each class in a folder named after it, or list them in a table (data.csv=FILE); "
            "or set data.train_dir=. if they are classes",
        )


def _are_parts(folders: Sequence[Path]) -> bool:
    return all(_PARTS.fullmatch(folder.name) for folder in folders)


def _refuse_undecided(root: Path, split: str, folders: Sequence[Path]) -> NoReturn:
    names = " and ".join(folder.name for folder in folders)
    key = f"data.{split}_dir"
    raise Refused(f"{root}: {names} could each be the {split} split; set {key}={folders[0].name}, or another")


def _unused(root: Path, folders: Sequence[Path], contents: Mapping[Path, _Contents]) -> tuple[str, ...]:
    """One sentence on the folders beside those that are used, and what they hold."""
    if not folders:
        return ()

    described = [f"{folder.name} ({_description(folder, contents[folder])})" for folder in folders[:_NAMED]]
    more = f" and {len(folders) - _NAMED} more" if len(folders) > _NAMED else ""
    return (f"{root}: not used: {', '.join(described)}{more}",)


def _description(folder: Path, contents: _Contents) -> str:
    if contents.is_empty:
        return "no images"
    if contents.folders:
        return f"{counted(len(contents.folders), 'folder')} with images"
    images = sum(not entry.is_dir() and is_image(Path(entry)) for entry in _visible(folder))
    return f"{counted(images, 'image')} in no class folder"


def _unwrapped(root: Path) -> Path:
    """The folder in which something is to be chosen: that below `root` where each holds nothing but the next.

    It is `root` where there is nothing to choose below: where images or folders by date come first, a class's.
    """
    place = root
    for _ in range(_DEPTH + 1):
        contents = _contents(place)
        if contents.has_images or not contents.folders:
            return root
        if len(contents.folders) > 1:
            return place if _have_letters(contents.folders) else root

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
    contents = _contents(folder)
    if contents.has_images or len(contents.folders) != 1:
        return folder

    only = folder / contents.folders[0]
    inner = _contents(only)
    if inner.has_images or not _have_letters(inner.folders):  # one class, perhaps with folders by date
        return folder
    if train is not None and only.name in {path.name for path in _folders(train)}:
        return folder
    return only


def _have_letters(names: Sequence[str]) -> bool:
    """Whether these are names of classes or splits; dates and numbers are not."""
    return any(character.isalpha() for name in names for character in name)


def _folders(root: Path) -> list[Path]:
    return sorted(Path(entry) for entry in _visible(root) if entry.is_dir())


def _contents(folder: Path) -> _Contents:
    has_images = False
    subfolders = []
    for entry in _visible(folder):
        if entry.is_dir():
            if _holds_images(Path(entry), {folder.resolve()}):
                subfolders.append(entry.name)
        elif not has_images and entry.is_file():
            has_images = is_image(Path(entry))
    return _Contents(has_images, tuple(sorted(subfolders)))


def _holds_images(folder: Path, above: set[Path]) -> bool:
    """Whether there is an image at any depth."""
    real = folder.resolve()
    if real in above:  # a link that leads back, which the search for images will refuse
        return False

    subfolders = []
    for entry in _visible(folder):
        if entry.is_dir():
            subfolders.append(Path(entry))
        elif entry.is_file() and is_image(Path(entry)):
            return True
    return any(_holds_images(subfolder, {*above, real}) for subfolder in subfolders)


def _visible(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """The entries of a folder without what systems leave; none where it cannot be listed, which is refused later."""
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


def table_hint(*folders: Path) -> str:
    """What to add to a refusal where a table lies in one of these folders."""
    tables = [path for folder in folders for path in folder.glob("*.[ct]sv")]
    return f"; is {tables[0]} a table of their classes? then set data.csv={tables[0]}" if tables else ""


def _listed(folders: Sequence[Path]) -> str:
    return _first_few([folder.name for folder in folders])


def _first_few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
