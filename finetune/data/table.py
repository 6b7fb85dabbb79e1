"""Labelled images that a table names: CSV as spreadsheets, pandas and other people's scripts write it."""

import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.folders import LabelledImages
from finetune.data.formats import FORMATS, is_system
from finetune.data.names import ALIASES, SPLITS
from finetune.errors import Refused, counted

_COLUMNS = {
    "path": (
        *("path", "filepath", "file_path", "image_path", "img_path", "filename", "file_name", "image_name"),
        *("image", "img", "file", "image_id", "id"),
    ),
    "label": ("label", "class", "category", "target", "class_name", "label_name", "class_label"),
    "split": ("split", "subset", "partition", "set"),
}
"""What the columns are called, in lower case and with `_` between words; the first that is there counts."""
_DELIMITERS = (",", ";", "\t", "|")
_SHOWN = 8
"""Columns that a message names."""
_ELSEWHERE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
"""How a path begins on Windows, with a drive or a computer's name."""


@dataclass(frozen=True)
class _Row:
    """One image, as the table has it."""

    path: str
    label: str
    split: str
    group: str
    """What the column of groups says; empty without one."""


@dataclass(frozen=True)
class Listed:
    """The images that a table names."""

    images: LabelledImages
    groups: dict[Path, str]
    """The group of each, where the table has a column of them; else empty."""
    notes: list[str]
    """What is odd but usable, one sentence each."""


@dataclass
class _Images:
    """Finds the files that a table names."""

    base: Path
    """What their paths are relative to."""
    by_search: int = 0
    """How many had to be looked for below `base`."""
    _below: dict[str, list[Path]] | None = None
    """Every file below `base`, by its name and by its name without ending; None until it is needed."""

    def find(self, text: str) -> Path | None:
        """The file that `text` names: as it is, with other slashes or accents, or without the ending of its name.

        A name alone, and that in a path of another computer, is looked for in the folders below, and must be the only
        one there.
        """
        plain = text.replace("\\", "/")
        spellings = (text, plain, unicodedata.normalize("NFC", plain), unicodedata.normalize("NFD", plain))
        for spelling in dict.fromkeys(spellings):
            place = self.base / spelling
            if _is_file(place):
                return place

            endings = () if place.suffix.lower() in FORMATS else (*FORMATS, *map(str.upper, FORMATS))
            for ending in endings:
                named = Path(f"{place}{ending}")
                if _is_file(named):
                    return named

        is_elsewhere = Path(plain).is_absolute() or _ELSEWHERE.match(text) is not None
        if len(Path(plain).parts) != 1 and not is_elsewhere:
            return None
        if self._below is None:
            self._below = _files_below(self.base)
        places = self._below.get(Path(plain).name, [])
        if len(places) != 1:
            return None
        self.by_search += 1
        return places[0]


def is_table(data: Path) -> bool:
    """Whether what is given as images is a table of them.

    >>> is_table(Path("images.CSV")), is_table(Path("images"))
    (True, False)
    """
    return data.is_file() or (data.suffix.lower() in (".csv", ".tsv") and not data.is_dir())


def from_csv(file: Path, root: str | None, columns: str | None = None, groups: str | None = None) -> Listed:
    """The images that the lines of a table name, relative to `root` or else to the file.

    Args:
        file: A header, then a line an image; its cells are parted by commas, semicolons, tabs or bars.
        root: A folder.
        columns: Which column is what, as `path:filename,label:diagnosis`; by default by their usual names.
        groups: The column that says which images belong together, if the table has one of this name.

    Raises:
        Refused: the file is no such table, or an image is not there; the message names the line.
    """
    rows, notes = _rows(file, columns, groups)
    images = _Images(Path(root).expanduser() if root is not None else file.parent)
    names: dict[str, str] = {}
    of_split: dict[str, dict[tuple[Path, str], None]] = defaultdict(dict)
    group_of: dict[Path, str] = {}
    missing = []
    repeated = 0
    for row in rows:
        path = images.find(row.path)
        if path is None:
            missing.append(row.path)
            continue
        label = names.setdefault(unicodedata.normalize("NFC", row.label), row.label)
        repeated += (path, label) in of_split[row.split]
        of_split[row.split][path, label] = None
        if row.group and group_of.setdefault(path, row.group) != row.group:
            raise Refused(f"data.csv={file}: {row.path} is in group {group_of[path]} and in {row.group}; correct one")

    if missing:
        gone = counted(len(missing), "file", ("that does", "that do"))
        raise Refused(f"data.csv={file} names {gone} not exist, first {_missing(images.base, missing[0])}; correct it")
    if images.by_search:
        named = counted(images.by_search, "image", ("was", "were"))
        notes.append(f"{file}: {named} found by their names in the folders below {images.base}")
    if repeated:
        notes.append(f"{file}: {counted(repeated, 'line', ('is', 'are'))} there twice, and counts once")
    return Listed({split: list(pairs) for split, pairs in of_split.items()}, group_of, notes)


def labelled_rows(file: Path, split: str | None = None) -> tuple[str | None, list[tuple[Path, str]], list[str]]:
    """The images of one split of a table with their class names, to measure a model on.

    Args:
        file: The table.
        split: `train`, `val` or `test`; by default `test` where there is one, else `val`, else `train`.

    Returns:
        The split's name, None where the table has no splits; the images in order of their paths; and what is odd.

    Raises:
        Refused: no such table or split, or an image is not there.
    """
    if split is not None and split not in SPLITS:
        raise Refused(f"--split {split} is not known; use one of {', '.join(SPLITS)}")

    listed = from_csv(file, None)
    images = listed.images
    name = split or next((name for name in ("test", "val", "train") if name in images), None)
    if name is None or name not in images:
        raise Refused(f"{file} has no image of {name or 'any split'}; it has {', '.join(images) or 'none'}")
    labelled = sorted(images[name], key=lambda pair: os.fsencode(pair[0]))
    return (None if images.keys() == {"train"} else name), labelled, listed.notes


def _rows(file: Path, columns: str | None, groups: str | None) -> tuple[list[_Row], list[str]]:
    try:
        text = _text(file)
        lines = _parsed(text, _delimiter(text))
        header = next(lines, (0, []))[1]
        places, notes = _places(file, header, columns)
        names = [name.strip() for name in header]
        if groups in names:
            places = {**places, "group": names.index(groups)}
        rows = []
        for line, cells in lines:
            if any(cell.strip() for cell in cells):
                rows.append(_row(file, line, cells, places))
    except (OSError, UnicodeError, csv.Error) as error:
        raise Refused(f"data.csv={file} cannot be read: {error}; give a UTF-8 CSV file") from error
    return rows, notes


def _text(file: Path) -> str:
    data = file.read_bytes()
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"  # Excel's "Unicode text"
    text = data.decode(encoding)
    first, newline, rest = text.partition("\n")
    return rest if newline and re.fullmatch(r"sep=.\r?", first) else text  # Excel's note to itself


def _delimiter(text: str) -> str:
    """What parts the cells: with it the header has the columns that are needed, or at least the most columns."""

    def fitness(delimiter: str) -> tuple[bool, int]:
        header = next(_parsed(text, delimiter), (0, []))[1]
        return {"path", "label"} <= _by_name(header).keys(), len(header)

    return max(_DELIMITERS, key=fitness)


def _parsed(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    for cells in reader:
        if cells:
            yield reader.line_num, cells


def _places(file: Path, header: Sequence[str], columns: str | None) -> tuple[Mapping[str, int], list[str]]:
    """Which cell is what; and a sentence on it where the names are not ours."""
    names = [name.strip() for name in header]
    shown = ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
    if columns is not None:
        return _set_places(file, names, columns, shown), []

    places = _by_name(header)
    if not {"path", "label"} <= places.keys():
        path = names[places["path"]] if "path" in places else "COLUMN"
        label = names[places["label"]] if "label" in places else "COLUMN"
        raise Refused(
            f"data.csv={file}: the first line must name the columns: path,label or path,label,split; it has "
            f"{shown or 'nothing'}; set data.csv_columns=path:{path},label:{label}"
        )

    taken = {what: names[i] for what, i in places.items()}
    if all(what == name for what, name in taken.items()):
        return places, []
    unused = [name for i, name in enumerate(names) if i not in places.values()]
    left = f"; not used: {', '.join(unused[:_SHOWN])}" if unused else ""
    return places, [f"{file}: the columns are {', '.join(f'{what} {name}' for what, name in taken.items())}{left}"]


def _by_name(header: Sequence[str]) -> dict[str, int]:
    names = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in header]
    return {
        what: names.index(alias)
        for what, aliases in _COLUMNS.items()
        for alias in [next((alias for alias in aliases if alias in names), None)]
        if alias is not None
    }


def _set_places(file: Path, names: Sequence[str], columns: str, shown: str) -> dict[str, int]:
    places: dict[str, int] = {}
    for part in columns.split(","):
        what, _, name = (word.strip() for word in part.partition(":"))
        if what not in _COLUMNS or not name:
            raise Refused(f"data.csv_columns={columns}: {part!r} is not path:NAME, label:NAME or split:NAME")
        if name not in names:
            raise Refused(f"data.csv_columns={columns}: {file} has no column {name!r}; it has {shown}")
        places[what] = names.index(name)
    if not {"path", "label"} <= places.keys():
        raise Refused(f"data.csv_columns={columns} must name path and label; {file} has {shown}")
    return places


def _row(file: Path, line: int, cells: Sequence[str], places: Mapping[str, int]) -> _Row:
    path, label, split, group = (
        cells[places[what]].strip() if what in places and places[what] < len(cells) else ""
        for what in ("path", "label", "split", "group")
    )
    known = ALIASES.get(split.lower() or "train")
    if known is None:
        raise Refused(f"{file}:{line}: split {split!r} is not known; use {', '.join(SPLITS)}")
    if not path or not label:
        raise Refused(f"{file}:{line}: path or label is empty; fill it in or remove the line")
    if "group" in places and not group:
        raise Refused(f"{file}:{line}: the group (data.groups) is empty; fill it in or remove the line")
    return _Row(path, label, known, group)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or a folder that may not be looked into
        return False


def _missing(base: Path, text: str) -> str:
    """A path that leads to no file, and why that may be."""
    if re.match(r"\w+://", text):
        return f"{text} (a web address; download the images)"
    if _ELSEWHERE.match(text):
        return f"{text} (of another computer; give paths relative to the table, or to data.root)"
    return str(base / text)


def _files_below(base: Path) -> dict[str, list[Path]]:
    """Every file below a folder, by its name, and by its name without ending."""
    places = defaultdict[str, list[Path]](list)
    for folder, folders, files in os.walk(base):
        folders[:] = sorted(name for name in folders if not is_system(name))
        for name in files:
            path = Path(folder, name)
            places[name].append(path)
            if path.suffix.lower() in FORMATS:
                places[path.stem].append(path)
    return places
