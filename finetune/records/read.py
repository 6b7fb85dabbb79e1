"""The records of a sweep, read from its folder. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

from finetune import __version__
from finetune.errors import Refused
from finetune.records.layout import RECORD, SWEEP, TRIALS
from finetune.records.result import Result
from finetune.storage.durable import unsealed
from finetune.version import is_newer


def refuse_newer(folder: Path) -> None:
    """Make sure that no newer release has written the sweep in `folder`: what it means by a setting is not known here.

    Raises:
        Refused: one has; the message names both.
    """
    try:
        release = str(unsealed((folder / SWEEP).read_bytes()).get("finetune", ""))
    except (OSError, ValueError):
        return  # no sweep, or a file that its readers complain of

    if is_newer(release):
        raise Refused(
            f"{folder} was written by finetune {release}, and this is {__version__}; update this one, or give another "
            "folder"
        )


def finished_record(trial: Path) -> Result | None:
    """The record of a trial that need not run again: complete, pruned or failed."""
    try:
        result = Result.load(trial)
    except (FileNotFoundError, ValueError):
        return None
    return None if result.status == "interrupted" else result


def records_by_age(folder: Path) -> list[Result]:
    """The finished records of a sweep, oldest first."""
    files = sorted((folder / TRIALS).glob(f"*/{RECORD}"), key=lambda file: file.stat().st_mtime_ns)
    return [result for file in files if (result := finished_record(file.parent)) is not None]


def read_records(folder: Path) -> list[Result]:
    """Every record under `folder/trials`, of whatever status, in order of their keys.

    Raises:
        Refused: there is none, or a newer release has written them.
    """
    refuse_newer(folder)
    records = []
    for file in sorted((folder / TRIALS).glob(f"*/{RECORD}")):
        try:
            records.append(Result.load(file.parent))
        except ValueError:
            continue
    if not records:
        raise Refused(f"{folder} holds no trial records; give the folder of a sweep, such as runs/local")
    return records


def read_all(folders: Sequence[Path]) -> list[Result]:
    """The records of several sweeps as of one; a trial that is in two of them counts once.

    Raises:
        Refused: a folder holds none.
    """
    return list({record.key: record for folder in reversed(folders) for record in read_records(folder)}.values())
