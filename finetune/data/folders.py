"""The images below folders: where links lead, and what is passed over. Looks at names and first bytes."""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from finetune.data.contents import first_few, folders_above
from finetune.data.formats import has_image_name, is_image, is_system, unread_kind
from finetune.data.names import SPLITS
from finetune.data.splits import find_layout
from finetune.errors import Refused, counted

LabelledImages = dict[str, list[tuple[Path, str]]]
"""By split: images with the names of their classes."""


@dataclass
class Search:
    """How folders are searched, and what was passed over so far."""

    ignored: Counter[str] = field(default_factory=Counter)
    """Files that are no images, and what systems leave, by name."""
    unread: Counter[str] = field(default_factory=Counter)
    """Pictures of kinds that are not read, by the ending of their name."""
    remedies: dict[str, str] = field(default_factory=dict)
    """What to do with those, by the same ending."""
    loose: list[Path] = field(default_factory=list)
    """Images that lie beside class folders, in no class."""
    empty: list[Path] = field(default_factory=list)
    """Class folders without images, where there may be some."""

    def class_images(
        self, folder: Path, leave_out: Collection[Path] = (), may_be_empty: bool = False
    ) -> Iterator[tuple[Path, str]]:
        """The images in each folder of `folder`, with its name: a class. Sorted by class, then by path.

        Args:
            folder: Holds a folder for each class, which may hold folders itself.
            leave_out: Folders in it that are no classes.
            may_be_empty: Whether a class may be without images.

        Raises:
            Refused: there is no class folder, a class has no image, or something cannot be read; the message names it.
        """
        _refuse_loop(folder)
        entries = list(self._entries(folder))
        folders = [Path(entry) for entry in entries if entry.is_dir()]
        classes = [entry for entry in folders if entry not in leave_out]
        self.loose += _images_among(entries)
        if not classes:
            raise Refused(f"{folder} holds no class folders; put the images of each class in a folder named after it")

        _refuse_detection_set(folder, {entry.name.lower() for entry in classes})
        _refuse_equal_names(classes)
        for entry in classes:
            unread_before = self.unread.copy()
            _refuse_loop(entry)
            images = sorted(self.images(entry), key=lambda image: image.parts)
            if images:
                yield from ((image, entry.name) for image in images)
            elif may_be_empty:
                self.empty.append(entry)
            else:
                unread = "".join(f" but {text}" for text in self._unread_kinds(self.unread - unread_before))
                raise Refused(f"{entry} holds no images{unread}; add some or remove the folder")

    def images(self, folder: Path) -> Iterator[Path]:
        """The images in `folder` and in the folders below it, links followed.

        Raises:
            Refused: a link leads nowhere or back, or what has the name of an image is no file; the message names it.
        """
        for entry in self._entries(folder):
            path = Path(entry)
            if entry.is_dir():
                if has_image_name(path):
                    raise Refused(f"{path} is a folder with the name of an image; rename or remove it")
                _refuse_loop(path)
                yield from self.images(path)
            elif not entry.is_file():
                if has_image_name(path):  # reading a pipe would wait for ever
                    raise Refused(f"{path} is no ordinary file; remove it")
                self.ignored[path.name] += 1
            elif is_image(path):
                yield path
            elif kind := unread_kind(path):
                suffix, remedy = kind
                self.unread[suffix] += 1
                self.remedies[suffix] = remedy
            else:
                self.ignored[path.name] += 1

    def notes(self, where: Path) -> list[str]:
        """What was passed over, one sentence for each kind; `where` is the folder that was searched."""
        notes = []
        if self.ignored:
            files = counted(self.ignored.total(), "file", ("that is no image", "that are no images"))
            names = [name for name, _ in self.ignored.most_common()]
            notes.append(f"{where}: ignored {files} ({first_few(names)})")

        notes += [f"{where}: left out {kind}" for kind in self._unread_kinds(self.unread)]
        if self.loose:
            images = counted(len(self.loose), "image", ("lies", "lie"))
            names = [path.name for path in self.loose]
            notes.append(f"{where}: {images} beside the class folders, in no class ({first_few(names)})")

        if self.empty:
            folders = counted(len(self.empty), "class folder", ("holds", "hold"))
            notes.append(f"{where}: {folders} no images ({first_few([str(path) for path in self.empty])})")
        return notes

    def look_beside(self, root: Path) -> None:
        """Take note of images that lie in `root` beside its splits.

        Raises:
            Refused: a link in it leads nowhere.
        """
        self.loose += _images_among(self._entries(root, count=False))

    def _entries(self, folder: Path, count: bool = True) -> Iterator["os.DirEntry[str]"]:
        """What `folder` holds, sorted, without what systems leave, which is counted.

        Most file systems say of an entry what it is, so that it need not be looked at by itself.

        Raises:
            Refused: it cannot be listed, or a link in it leads nowhere.
        """
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            raise Refused(f"{folder} cannot be listed ({error.strerror}); check its permissions") from error

        for entry in entries:
            if is_system(entry.name):
                self.ignored[entry.name] += count
                continue
            if entry.is_symlink():
                _refuse_dangling(Path(entry))
            yield entry

    def _unread_kinds(self, unread: Counter[str]) -> list[str]:
        return [
            f"{counted(count, f'{suffix} file')}, {self.remedies[suffix]}" for suffix, count in sorted(unread.items())
        ]


def _images_among(entries: Iterable["os.DirEntry[str]"]) -> list[Path]:
    return [Path(entry) for entry in entries if entry.is_file() and is_image(Path(entry))]


def _refuse_detection_set(folder: Path, names: Collection[str]) -> None:
    """Refuse images/ beside labels/, which hold where things are in images, and no classes of images."""
    if "images" in names and set(names) & {"labels", "annotations"}:
        raise Refused(
            f"{folder} holds images/ and labels/, as sets for detection do; put the images of each class in a folder "
            "named after it, or list them in a table (data.csv=FILE)"
        )


def _refuse_equal_names(folders: Collection[Path]) -> None:
    """Refuse two class folders whose names look the same and differ in how Unicode writes them.

    A Mac takes accents apart (NFD) and others do not (NFC), so archives of both unpacked in one place have two.
    """
    seen: dict[str, Path] = {}
    for folder in folders:
        other = seen.setdefault(unicodedata.normalize("NFC", folder.name), folder)
        if other is not folder:
            raise Refused(
                f"{folder.parent} holds two folders called {folder.name}, whose accents are written in two ways (as on "
                "a Mac, and elsewhere); put the images of both into one"
            )


def _refuse_links(root: Path) -> None:
    """Make sure that there is no link below `root`, before anything that one may lead to is looked at.

    Raises:
        Refused: there is one.
    """
    for folder, folders, files in os.walk(root):
        for name in sorted((*folders, *files)):
            if Path(folder, name).is_symlink() and not is_system(name):
                link = Path(folder, name)
                raise Refused(
                    f"{link} is a link, and data.links=refuse takes none; copy in what it leads to, or set it to follow"
                )
        folders[:] = [name for name in folders if not is_system(name)]


def _refuse_dangling(link: Path) -> None:
    try:
        is_there = link.exists()
    except OSError as error:
        raise Refused(f"{link} leads where nothing can be read ({error.strerror}); check permissions") from error
    if not is_there:
        raise Refused(f"{link} links to nothing or to itself; restore what it leads to, or remove the link")


def _refuse_loop(folder: Path) -> None:
    """Make sure that `folder`, once its links are followed, does not lead back to a folder that it lies in.

    Raises:
        Refused: it does; the search would go round for ever.
    """
    real = folder.resolve()
    if real == folder.absolute():  # no link on the way
        return

    if real in folders_above(folder):
        raise Refused(f"{folder} links back to {real}, which it lies in: a loop; remove the link")


def from_folder(
    root: Path, chosen: Mapping[str, str | None] = MappingProxyType({}), links: str = "follow"
) -> tuple[LabelledImages, list[str]]:
    """The images of a folder of class folders, or of splits that hold them, and what is odd but usable.

    Args:
        root: The folder.
        chosen: The folder of each split as far as it was set, as in `data.train_dir`.
        links: `follow` or `refuse`, as in `data.links`.

    Raises:
        Refused: there is none, a class is empty, or something in it is no file of its own; the message names it.
    """
    if root.is_file():
        raise Refused(f"data.root={root} is not a folder but a file; a table of images is given as data.csv={root}")
    if not root.is_dir():
        raise Refused(f"data.root={root} is not a folder; give a folder that holds one folder of images per class")

    if links == "refuse":
        _refuse_links(root)
    search = Search()
    layout = find_layout(root, chosen)
    if root not in layout.folders.values():  # whose entries are looked at as classes
        search.look_beside(root)
    images = {
        split: list(search.class_images(folder, layout.others, may_be_empty=split != "train"))
        for split, folder in layout.folders.items()
    }
    return images, [*layout.notes, *search.notes(root)]


def labelled_images(root: Path, split: str | None = None) -> tuple[str | None, list[tuple[Path, str]], list[str]]:
    """The images of one split with their class names, to measure a model on.

    Args:
        root: A folder of class folders, or of splits that hold them.
        split: `train`, `val` or `test`; by default `test` where there is one, else `val`, else `train`.

    Returns:
        The split's name, None where `root` has no splits; the images in order of their paths; and what was passed over.

    Raises:
        Refused: no such folder or split, or no images in it.
    """
    if split is not None and split not in SPLITS:
        raise Refused(f"--split {split} is not known; use one of {', '.join(SPLITS)}")
    if not root.is_dir():
        raise Refused(f"{root} is not a folder; give a folder that holds one folder of images per class")

    layout = find_layout(root, {}, need_train=False)
    splits = layout.folders if layout.has_splits else {}
    if split is not None and split not in splits:
        raise Refused(f"{root} has no {split}/ folder; it has {', '.join(splits) or 'no splits'}")

    name = split or next((name for name in ("test", "val", "train") if name in splits), None)
    search = Search()
    folder = splits[name] if name else layout.folders["train"]
    images = list(search.class_images(folder, layout.others, may_be_empty=True))
    if not images:
        raise Refused(f"{folder} holds no images; give a folder that holds some")
    return name, sorted(images, key=lambda pair: os.fsencode(pair[0])), search.notes(folder)


def image_files(paths: Collection[Path]) -> tuple[list[Path], list[str]]:
    """The files among `paths` as they are, and the images below its folders, sorted; and what was passed over.

    Raises:
        Refused: one of them does not exist, or there is no image; or a link leads nowhere or back.
    """
    files: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if path.is_dir():
            search = Search()
            files += sorted(search.images(path))
            notes += search.notes(path)
        elif path.exists():
            files.append(path)
        else:
            raise Refused(f"{path}: there is no such file or folder; give images, or folders that hold some")
    if not files:
        raise Refused("; ".join([f"{', '.join(map(str, paths))}: no image here", *notes]))
    return files, notes
