"""The winner of a sweep, and which file holds the model that a folder stands for. Imports no torch."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import Refused
from finetune.records.layout import CHECKPOINT, RECORD, TRIALS
from finetune.records.read import read_records
from finetune.records.result import Result
from finetune.report.table import Group, Table, tabulate, verdict

EXPORTED = "model.safetensors"
"""The weights in an exported folder."""


@dataclass(frozen=True)
class Winner:
    """The best configuration of a sweep, by mean accuracy over seeds."""

    group: Group
    trials: tuple[Result, ...]
    """One a seed, in the order of seeds."""
    table: Table

    @property
    def best(self) -> Result:
        """Its best seed."""
        return max(self.trials, key=lambda result: result.val_acc_best or 0)

    @property
    def epochs(self) -> int:
        """Epochs after which its seeds were best: their median, the larger of two."""
        best = sorted((result.best_epoch or 0) + 1 for result in self.trials)
        return best[len(best) // 2]


def find_winner(folder: Path) -> Winner:
    """The winner of the sweep in `folder`.

    Raises:
        Refused: no sweep is there, or none of its trials is complete.
    """
    records = read_records(folder)
    table = tabulate(records)
    if table.winner is None:
        raise Refused(f"{folder}: no trial is complete yet; run the sweep, or see `finetune status {folder}`")
    by_key = {record.key: record for record in records}
    return Winner(table.winner, tuple(by_key[key] for key in table.winner.keys), table)


def model_file(model: Path) -> tuple[Path, str]:
    """The file with the weights that `model` stands for, and a sentence about the choice, or an empty text.

    Args:
        model: A checkpoint, or the folder of a trial, of an export, or of a sweep, which stands for its winner.

    Raises:
        Refused: none of these, or a sweep that kept no checkpoint.
    """
    if model.is_file():
        return model, ""
    for name in (EXPORTED, CHECKPOINT):
        if (model / name).is_file():
            return model / name, ""
    if (model / TRIALS).is_dir():
        return _of_sweep(model)
    if (model / RECORD).is_file():
        raise Refused(
            f"{model}: this trial kept no {CHECKPOINT}; a sweep keeps that of its best trial, so give the sweep"
        )
    if not model.exists() and model.parent.is_dir():
        close = difflib.get_close_matches(model.name, [entry.name for entry in model.parent.iterdir()], n=1)
        if close:
            raise Refused(f"{model}: there is no such file or folder; did you mean {model.parent / close[0]}?")
    raise Refused(f"{model} is no model; give a {CHECKPOINT}, or the folder of a trial, a sweep or an export")


def _of_sweep(folder: Path) -> tuple[Path, str]:
    winner = find_winner(folder)
    for trial in sorted(winner.trials, key=lambda result: -(result.val_acc_best or 0)):
        if (folder / TRIALS / trial.key / CHECKPOINT).is_file():
            return folder / TRIALS / trial.key / CHECKPOINT, ""
    kept = sorted((folder / TRIALS).glob(f"*/{CHECKPOINT}"))
    if not kept:
        raise Refused(f"{folder} kept no {CHECKPOINT}; `finetune best {folder} --refit` trains its winner")
    depth = Result.load(kept[0].parent).freeze_depth
    return kept[0], (
        f"the winner by the mean of its seeds has no checkpoint; this is the single best trial (freeze_depth={depth}); "
        f"`finetune best {folder} --refit` trains the winner"
    )


def sweep_verdict(trial: Path) -> str:
    """What the sweep around a trial, or around a refit, says of its winner; empty where there is none."""
    for folder in (trial.parent.parent, trial.parent):
        if (folder / TRIALS).is_dir():
            return verdict(tabulate(read_records(folder)))
    return ""
