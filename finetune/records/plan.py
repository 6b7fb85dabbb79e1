"""What the folder of a sweep says of its plan. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

from finetune.records.layout import SWEEP
from finetune.records.result import Result
from finetune.storage.durable import unsealed


def planned(folder: Path) -> tuple[int, list[str]] | None:
    """How many trials the sweep in `folder` has, and the keys that it sweeps; None where no sweep ran."""
    try:
        values = unsealed((folder / SWEEP).read_bytes())
        return int(values["trials"]), list(values["space"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_through(folders: Sequence[Path], records: Sequence[Result]) -> bool:
    """Whether all that these sweeps were to try was tried; taken for so where their folders do not say.

    Repeats, which no plan counts, come after it.
    """
    plans = [plan[0] for folder in folders if (plan := planned(folder)) is not None]
    return len([record for record in records if record.status != "interrupted"]) >= sum(plans)
