"""Which trial of a sweep is the best, by whatever the sweep optimises. Imports no torch.

One rule for the model that a sweep keeps, for `finetune best`, exports and their cards, and for the report.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.config import digest_of, is_meaningful
from finetune.records.layout import SWEEP
from finetune.records.metric import metric_values, of_an_epoch
from finetune.records.result import Result
from finetune.storage.durable import unsealed

MARGIN = 0.02
"""A difference of accuracy that is worth having, where nobody says another: 2 points."""
REPEATED = ("seed", "data.fold")
"""Settings in which the repeats of a configuration differ."""
BACKBONE = "model.backbone"
OWN_COLUMNS = frozenset({*REPEATED, "model.freeze_depth", BACKBONE})
"""Settings that a table has a column for, or that make no other configuration."""

NetworkDepth = tuple[str, float]
"""A network's name, empty where all trials have the same, and a freeze depth of it: what a verdict compares."""


@dataclass(frozen=True)
class Objective:
    """What a sweep optimises.

    >>> loss = Objective("val/loss", "minimize")
    >>> loss.score(0.4) > loss.score(0.5)
    True
    """

    metric: str = "val/acc_best"
    goal: str = "maximize"
    """`maximize` or `minimize`."""
    margin: float = field(default=MARGIN, compare=False)
    """The difference that is worth having; decides no ranking."""
    explored_by: int | None = field(default=None, compare=False)
    """The seed that explored, where others repeat what it chose; None where the sweep itself says which seeds there
    are."""

    @property
    def name(self) -> str:
        """The metric as tables call it."""
        return of_an_epoch(self.metric)

    @property
    def words(self) -> str:
        """What axes and tables call it: `validation accuracy`, or the metric's own name."""
        return "validation accuracy" if self == ACCURACY else self.name

    def value(self, record: Result) -> float | None:
        """The metric of a trial that can be compared, else None.

        That is a complete one; but not a refit, which trains on the validation images too.
        """
        if record.status != "complete" or record.val_acc_best is None:
            return None
        if self.metric == "val/acc_best":
            return record.val_acc_best

        values = metric_values(self.metric, record.history)
        return values[-1] if values else None

    def shown(self, record: Result) -> float:
        """The value to sort and plot by: 0 where there is none."""
        return self.value(record) or 0.0

    def score(self, value: float) -> float:
        """A value of the metric so that more is better; and back from a score to the value."""
        return value if self.goal == "maximize" else -value

    def score_of(self, record: Result) -> float:
        """The score of a trial, and less than any for one that cannot be compared."""
        value = self.value(record)
        return float("-inf") if value is None else self.score(value)


ACCURACY = Objective()
"""The best validation accuracy of a trial's epochs."""


def read_objective(folders: Sequence[Path]) -> Objective:
    """What the sweeps in these folders optimise; the accuracy where that is unknown or not the same in all."""
    objectives = [_read_objective(folder) for folder in folders]
    first = objectives[0]
    if any(other != first for other in objectives):
        return ACCURACY
    if any(other.explored_by != first.explored_by for other in objectives):
        return replace(first, explored_by=None)  # what explored in one sweep repeats what another chose
    return first


def _read_objective(folder: Path) -> Objective:
    # `grid, maximize val/acc_best, target None, stopping none`: so every version has written it
    pattern = r"\w+, (?P<goal>maximize|minimize) (?P<metric>\S+), target "
    try:
        sweep = unsealed((folder / SWEEP).read_bytes())
        search, margin = re.match(pattern, sweep["search"]), float(sweep.get("margin", MARGIN))
        explored_by = sweep.get("explored_by")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ACCURACY
    return Objective(search["metric"], search["goal"], margin, explored_by) if search else ACCURACY


def configurations(records: Iterable[Result], objective: Objective = ACCURACY) -> list[list[Result]]:
    """The trials that judge each configuration, those of one together: the best configuration first.

    The trials of a configuration differ in their seed alone, or in settings that change no result; its score is their
    mean. Of equals, the deepest frozen comes first, which is the cheapest. Within a configuration, the trials are in
    order of seeds.

    Where one seed explored and others repeated what it had chosen, it is too kind to the chosen ones. So those with
    two new seeds or more are judged by these alone, and come before the others.
    """
    records = list(records)
    members: dict[str, list[Result]] = {}
    for record in records:
        if objective.value(record) is not None:
            members.setdefault(_configuration(record), []).append(record)

    explored_by = exploring_seed(records, objective)
    groups = [_judging(trials, explored_by) for trials in members.values()]

    def rank(trials: Sequence[Result]) -> tuple[bool, int, float, float, str]:
        explored_only = explored_by is not None and trials[0].seed == explored_by
        return explored_only, -folds_behind(trials), *_rank(trials, objective)

    return sorted(groups, key=rank)


def network_of(record: Result) -> str:
    """The name of a trial's network; empty where its record does not tell."""
    return str(record.config.get(BACKBONE) or record.params.get(BACKBONE) or "")


def depth_name(where: tuple[str, float | None]) -> str:
    """What a freeze depth is called.

    >>> depth_name(("", 9)), depth_name(("timm/vit_tiny_patch16_224", 0.5))
    ('k=9', 'timm/vit_tiny_patch16_224 k=0.5')
    """
    network, depth = where
    return f"{network} k={depth if depth is None else f'{depth:g}'}".strip()


def fold_of(record: Result) -> int | None:
    """Which fold of the images a trial was judged on; None where there are no folds."""
    return int(record.config["data.fold"]) if record.config.get("data.folds") else None


def next_fold(record: Result, repeat: int) -> dict[str, int]:
    """The settings that make the i-th repeat of a trial, from 1 on, another fold; none where there are no folds.

    The first has the fold of the trial itself, so that it can be compared with all that is not repeated.
    """
    fold = fold_of(record)
    return {} if fold is None else {"data.fold": (fold + repeat - 1) % int(record.config["data.folds"])}


def folds_behind(trials: Sequence[Result]) -> int:
    """How many trials each stand behind a mean over folds; 0 where there are no folds.

    Some folds are easier than others, so a mean over few of them is no match for one over many.
    """
    return 0 if fold_of(trials[0]) is None else len(trials)


def exploring_seed(records: Iterable[Result], objective: Objective) -> int | None:
    """The seed that chose which configurations were repeated, and so does not judge them.

    None where none did: where nothing says so, and where all that were tried were repeated.
    """
    if objective.explored_by is None:
        return None

    seeds: dict[str, set[int]] = {}
    for record in records:
        if record.status in ("complete", "pruned"):
            seeds.setdefault(_configuration(record), set()).add(record.seed)
    chose_none = all(len(own) > 1 for own in seeds.values())
    return None if chose_none else objective.explored_by


def _judging(trials: Sequence[Result], explored_by: int | None) -> list[Result]:
    """In order of seeds, the new ones where there are two or more."""
    new = [trial for trial in trials if trial.seed != explored_by]
    if explored_by is not None and len(new) < 2:
        new = [trial for trial in trials if trial.seed == explored_by] or new
    return sorted(new, key=lambda trial: (trial.seed, fold_of(trial) or 0, trial.key))


def best_trial(trials: Sequence[Result], objective: Objective = ACCURACY) -> Result:
    """The best of a configuration's trials; of equals, the first."""
    return max(trials, key=objective.score_of)


def _rank(trials: Sequence[Result], objective: Objective) -> tuple[float, float, str]:
    mean = sum(objective.score_of(trial) for trial in trials) / len(trials)
    return (-mean, -(trials[0].freeze_depth or 0), min(trial.key for trial in trials))


def _configuration(record: Result) -> str:
    """Equal for trials of one configuration."""
    settings = {key: value for key, value in record.params.items() if key not in OWN_COLUMNS and is_meaningful(key)}
    return digest_of([network_of(record), record.freeze_depth, settings])
