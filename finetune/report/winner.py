"""The winner of a sweep, and which file holds the model that a folder stands for. Imports no torch."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import Refused
from finetune.records.layout import CHECKPOINT, EXPORTED, RECORD, TRIALS
from finetune.records.ranking import best_trial, read_objective
from finetune.records.read import read_records
from finetune.records.result import Result
from finetune.report.table import Group, Table, tabulate, winner_sentence

_PICKLED = "weights saved with torch.save, which tell neither the classes nor how images are prepared"
_OTHER_FILES = {
    ".onnx": "a program for ONNX Runtime",
    ".pt2": "a program for torch.export.load",
    ".ckpt": "a state to go on training from",
    **dict.fromkeys((".pth", ".pt", ".bin", ".pkl", ".tar"), _PICKLED),
}
"""Files that people take for the model, by ending, and what they are."""


@dataclass(frozen=True)
class Winner:
    """The best configuration of a sweep, by the mean over seeds of what the sweep optimises."""

    group: Group
    trials: tuple[Result, ...]
    """One a seed, in the order of seeds."""
    table: Table

    @property
    def best(self) -> Result:
        """The trial of its best seed."""
        return best_trial(self.trials, self.table.objective)

    @property
    def epochs(self) -> int:
        """Epochs after which its seeds were best: their median, the larger of two."""
        epochs = sorted((trial.best_epoch or 0) + 1 for trial in self.trials)
        return epochs[len(epochs) // 2]


def find_winner(folder: Path) -> Winner:
    """The winner of the sweep in `folder`.

    Raises:
        Refused: no sweep is there, or none of its trials is complete.

    >>> winner = find_winner(Path("runs/local"))
    >>> winner.group.freeze_depth, [trial.seed for trial in winner.trials]
    (11, [0, 1, 2])
    """
    records = read_records(folder)
    table = tabulate(records, read_objective([folder]))
    if table.winner is None and "complete" in table.counts:
        raise Refused(
            f"{folder} has no winner: its trials trained on the validation images too (trainer.refit=true), so none "
            "has an accuracy; sweep without it, then `finetune best DIR --refit`, or give the folder of a trial"
        )
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
        if model.suffix.lower() in _OTHER_FILES:
            raise Refused(f"{model} is {_OTHER_FILES[model.suffix.lower()]}; {_what_to_give(model)}")
        return model, ""

    for name in (EXPORTED, CHECKPOINT):
        if (model / name).is_file():
            return model / name, ""

    if (model / TRIALS).is_dir():
        return _winners_file(model)

    if (model / RECORD).is_file():
        raise Refused(
            f"{model}: this trial kept no {CHECKPOINT}; a sweep keeps that of its best trial, so give the sweep"
        )
    raise Refused(_nothing_there(model))


def _winners_file(sweep: Path) -> tuple[Path, str]:
    """The checkpoint of the winner, of its best seed first; another trial's where it has none."""
    winner = find_winner(sweep)
    for trial in sorted(winner.trials, key=winner.table.objective.score_of, reverse=True):
        file = sweep / TRIALS / trial.key / CHECKPOINT
        if file.is_file():
            return file, ""

    # Earlier versions kept the model of the single best trial, whatever its other seeds came to.
    kept = [Result.load(file.parent) for file in sorted((sweep / TRIALS).glob(f"*/{CHECKPOINT}"))]
    if not kept:
        raise Refused(f"{sweep} kept no {CHECKPOINT}; `finetune best {sweep} --refit` trains its winner")

    best = max(kept, key=winner.table.objective.score_of)
    return sweep / TRIALS / best.key / CHECKPOINT, (
        "the winner by the mean of its seeds has no checkpoint; this is the single best trial "
        f"(freeze_depth={best.freeze_depth}); "
        f"`finetune best {sweep} --refit` trains the winner"
    )


def _what_to_give(file: Path) -> str:
    """The model that lies beside a file which is none, or what could be one."""
    for name in (EXPORTED, CHECKPOINT):
        if (file.parent / name).is_file():
            return f"give the folder that it lies in, {file.parent}"
    hint = f", or train from it with model.weights={file}" if _OTHER_FILES[file.suffix.lower()] == _PICKLED else ""
    return f"give a {CHECKPOINT}, or the folder of a trial, a sweep or an export{hint}"


def _nothing_there(model: Path) -> str:
    if not model.exists() and model.parent.is_dir():
        neighbours = [entry.name for entry in model.parent.iterdir()]
        if close := difflib.get_close_matches(model.name, neighbours, n=1):
            return f"{model}: there is no such file or folder; did you mean {model.parent / close[0]}?"
    return f"{model} is no model; give a {CHECKPOINT}, or the folder of a trial, a sweep or an export"


def sweep_verdict(trial: Path) -> str:
    """What the sweep around a trial, or around a refit, says of its winner; empty where there is none."""
    for folder in (trial.parent.parent, trial.parent):
        if (folder / TRIALS).is_dir():
            return winner_sentence(tabulate(read_records(folder), read_objective([folder])))
    return ""
