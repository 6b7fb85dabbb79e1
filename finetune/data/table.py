"""Labelled images that a table names."""

import csv
from pathlib import Path

from finetune.data.folders import LabelledImages
from finetune.data.splits import SPLITS
from finetune.errors import Refused, counted


def from_csv(file: Path, root: str | None) -> tuple[LabelledImages, list[str]]:
    """The images that lines of `path,label[,split]` name, relative to `root` or else to the file.

    Raises:
        Refused: the file is no such CSV, or an image is not there; the message names the line.
    """
    base = Path(root).expanduser() if root is not None else file.parent
    found: LabelledImages = {}
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
        gone = counted(len(missing), "file", ("that does", "that do"))
        raise Refused(f"data.csv={file} names {gone} not exist, first {missing[0]}; correct it")
    return found, []
