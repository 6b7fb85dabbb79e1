"""Records to a table: the configurations of each freeze depth with their means and intervals. Imports no torch."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetune.config import is_meaningful
from finetune.errors import counted
from finetune.records.ranking import (
    ACCURACY,
    OWN_COLUMNS,
    REPEATED,
    NetworkDepth,
    Objective,
    configurations,
    depth_name,
    exploring_seed,
    fold_of,
    network_of,
)
from finetune.records.result import STATUSES, Result
from finetune.report.stats import half_width
from finetune.report.strategy import strategy_of


@dataclass(frozen=True)
class Group:
    """The trials of one configuration: they differ in their seed alone, or in settings that change no result."""

    freeze_depth: float
    params: dict[str, Any]
    """Their overrides without the seed and the fold."""
    accuracies: tuple[float, ...]
    """Best val/acc of each seed, 0..1."""
    seconds: float
    """Mean per trial."""
    seeds: tuple[int, ...] = ()
    """The seed of each accuracy, ascending."""
    keys: tuple[str, ...] = ()
    """The key of each trial."""
    other_scores: tuple[float, ...] = ()
    """What the sweep optimises, of each seed, so that more is better; empty where that is the accuracy."""
    folds: tuple[int, ...] = ()
    """The fold that judged each accuracy; empty where there are no folds."""
    explored_only: bool = False
    """Whether nothing but the seed that explored tells of it, while others were repeated with new ones."""
    network: str = ""
    """The network's name; empty where records do not tell."""

    @property
    def scores(self) -> dict[str, float]:
        """What the sweep optimises by repeat, so that more is better: the accuracy, or a loss with its sign turned."""
        names = [f"seed {seed}" for seed in self.seeds]
        if self.folds:
            names = [f"{name}, fold {fold}" for name, fold in zip(names, self.folds, strict=True)]
        return dict(zip(names, self.other_scores or self.accuracies, strict=True))

    @property
    def rank(self) -> tuple[bool, int, float, float]:
        """Less is better: the order of `ranking.configurations`."""
        return self.explored_only, -len(self.folds), -self.score, -self.freeze_depth

    @property
    def score(self) -> float:
        """The mean of the scores, by which configurations are ranked."""
        return statistics.fmean(self.other_scores or self.accuracies)

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of the mean score (Student's t over seeds); None for a single seed."""
        return half_width(self.other_scores or self.accuracies)


@dataclass(frozen=True)
class Table:
    """The configurations of a sweep."""

    groups: tuple[Group, ...]
    """Sorted by network and freeze depth, best first within one."""
    swept: tuple[str, ...]
    """Keys whose values differ between trials; seed, freeze depth and network left out."""
    counts: dict[str, int]
    """Trials by status."""
    objective: Objective = ACCURACY
    """What the configurations are ranked by."""
    complete_at: Mapping[NetworkDepth, int] = field(default_factory=dict)
    """By network and freeze depth, its complete trials: also of the seed that explored, where new ones judge."""
    networks: tuple[str, ...] = ()
    """The networks of the complete trials, where these are several; else empty."""

    @property
    def best_per_depth(self) -> tuple[Group, ...]:
        """The best configuration of each freeze depth of each network, by its score, in order of these."""
        first: dict[NetworkDepth, Group] = {}
        for group in self.groups:
            first.setdefault(self.at(group), group)
        return tuple(first.values())

    def at(self, trial: Group | Result) -> NetworkDepth:
        """The freeze depth of a configuration, or of a trial, and its network where there are several."""
        network = trial.network if isinstance(trial, Group) else network_of(trial)
        return (network if self.networks else ""), trial.freeze_depth or 0

    def name(self, trial: Group | Result) -> str:
        """The same as people read it: `k=9`, or `resnet50 k=0.5`."""
        return depth_name((self.at(trial)[0], trial.freeze_depth))

    @property
    def winner(self) -> Group | None:
        """The best configuration: the first in the order of `ranking.configurations`."""
        return min(self.groups, key=lambda group: group.rank, default=None)

    def mean_of(self, group: Group) -> float:
        """The mean over a group's seeds of what the sweep optimises."""
        return self.objective.score(group.score)

    @property
    def scores(self) -> list[float]:
        """The score of every trial that is compared."""
        return [score for group in self.groups for score in group.scores.values()]

    def trials_at(self, group: Group) -> int:
        """How many complete trials have the network and freeze depth of a configuration."""
        return self.complete_at.get(self.at(group), 0)


def tabulate(records: Sequence[Result], objective: Objective = ACCURACY) -> Table:
    """Group the complete trials by configuration and rank the groups.

    >>> from pathlib import Path
    >>> from finetune.records.read import read_records
    >>> table = tabulate(read_records(Path("runs/local")))
    >>> [(group.freeze_depth, round(group.mean, 2)) for group in table.best_per_depth]
    [(0, 0.55), (11, 0.84), (17, 0.64)]
    >>> table.winner.params
    {'model.freeze_depth': 11, 'optim.lr': 0.01}
    """
    explored_by = exploring_seed(records, objective)
    best_first = [_group(trials, objective, explored_by) for trials in configurations(records, objective)]
    statuses = [record.status for record in records]
    networks = tuple(sorted({network_of(record) for record in ranked(records)}))
    table = Table(
        groups=tuple(sorted(best_first, key=lambda g: (g.network, g.freeze_depth))),  # which keeps the best first
        swept=_swept(records),
        counts={status: statuses.count(status) for status in STATUSES if status in statuses},
        objective=objective,
        networks=networks if len(networks) > 1 else (),
    )
    return replace(table, complete_at=Counter(map(table.at, ranked(records))))


_MOST_CONFIGURATIONS = 8
"""So many are compared where freeze depth is not swept."""


def best_of_each(table: Table) -> dict[float | str, Group]:
    """What a verdict compares: the best configuration of each freeze depth; of one depth alone, the best few.

    Of several networks, it is the best at each depth of each of them. Where a sweep holds other strategies than
    freezing, it is the best of each of these as well. The name is the freeze depth, the network with it, the strategy,
    or the settings in words.
    """
    best: dict[float | str, Group] = {}
    for group in sorted(table.groups, key=lambda group: group.rank):
        best.setdefault(contender_of(table, group), group)
    in_order = sorted(
        best.items(),
        key=lambda item: (bool(strategy_in(table, item[1])), *table.at(item[1]), str(item[0])),
    )
    if len(best) != 1:
        return dict(in_order)

    best_first = sorted(table.groups, key=lambda group: group.rank)
    return {
        label(group.params, table.swept) or "the configuration": group for group in best_first[:_MOST_CONFIGURATIONS]
    }


def contender_of(table: Table, trial: Group | Result) -> float | str:
    """What `best_of_each` compares a configuration, or a trial, as."""
    network, depth = table.at(trial)
    strategy = strategy_in(table, trial)
    if strategy:
        return f"{network} {strategy}".strip()
    return depth_name((network, depth)) if network else depth


def strategy_in(table: Table, group: Group | Result) -> str:
    """The strategy of a configuration, as far as those of the sweep differ; empty for freezing alone."""
    return strategy_of({key: value for key, value in group.params.items() if key in table.swept})


def ranked(records: Sequence[Result]) -> list[Result]:
    """The trials that can be compared: complete ones; a refit has no accuracy, for it trains on all images."""
    return [record for record in records if record.status == "complete" and record.val_acc_best is not None]


def _group(trials: Sequence[Result], objective: Objective, explored_by: int | None) -> Group:
    params = trials[0].params
    return Group(
        freeze_depth=_plain(trials[0].freeze_depth or 0),
        params={key: value for key, value in params.items() if key not in REPEATED},
        accuracies=tuple(trial.accuracy for trial in trials),
        seconds=statistics.fmean(trial.total_seconds for trial in trials),
        seeds=tuple(trial.seed for trial in trials),
        keys=tuple(trial.key for trial in trials),
        other_scores=() if objective == ACCURACY else tuple(objective.score_of(trial) for trial in trials),
        folds=tuple(fold for trial in trials if (fold := fold_of(trial)) is not None),
        explored_only=explored_by is not None and trials[0].seed == explored_by,
        network=network_of(trials[0]),
    )


def _plain(depth: float) -> float:
    """A depth that is a whole number as one; a share stays what it is."""
    return int(depth) if depth == int(depth) else depth


def _swept(records: Sequence[Result]) -> tuple[str, ...]:
    # A trial that failed says nothing of what was searched: it may have died before its settings were known. Nor do
    # older records of trials that a race did not start, which lack the settings that all trials have.
    pruned = [record for record in records if record.status == "pruned" and (record.config or record.history)]
    trials = [*ranked(records), *pruned]
    keys = sorted({key for trial in trials for key in trial.params if key not in OWN_COLUMNS and is_meaningful(key)})
    values = {key: {(network_of(trial), repr(trial.params.get(key))) for trial in trials} for key in keys}
    networks = {network_of(trial) for trial in trials}
    return tuple(
        key
        for key in keys
        if len({value for _, value in values[key]}) > 1
        and not (key == "model.weights" and len(values[key]) == len(networks))  # each network has its own
    )


def setting(record: Result, key: str) -> Any:
    """A trial's value of a setting, whether it was an override or not; None where its record does not have it."""
    return record.config.get(key, record.params.get(key))


def short(key: str) -> str:
    """A dotted key without the group that everybody knows.

    >>> short("optim.lr"), short("model.head.hidden")
    ('lr', 'head.hidden')
    """
    return key.removeprefix("model.").removeprefix("optim.").removeprefix("trainer.")


def label(params: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Settings in a few words, as far as `params` has the `keys`.

    >>> label({"optim.lr": 0.001, "model.head.hidden": []}, ["optim.lr", "model.head.hidden"])
    'lr=0.001 head.hidden=[]'
    """
    return " ".join(f"{short(key)}={value_text(params[key])}" for key in keys if key in params)


def value_text(value: Any) -> str:
    """A setting's value, numbers to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def accuracy_text(group: Group) -> str:
    """`0.812 ± 0.021`, or `0.812` for a single seed."""
    width = half_width(group.accuracies)
    return f"{group.mean:.3f}" if width is None else f"{group.mean:.3f} ± {width:.3f}"


def _no_winner(table: Table) -> str:
    complete = table.counts.get("complete", 0)
    if not complete:
        return "No trial is complete yet."
    trials = counted(complete, "trial", ("is", "are"))
    reason = "but trained on the validation images too (trainer.refit), so there is no accuracy to compare"
    return f"{trials} complete, {reason}."


def score_text(group: Group, objective: Objective) -> str:
    """What the sweep optimises, as a table shows it: `0.412 ± 0.021`; `accuracy_text` where that is the accuracy."""
    if objective == ACCURACY:
        return accuracy_text(group)

    width = group.half_width
    value = objective.score(group.score)
    return f"{value:.3f}" if width is None else f"{value:.3f} ± {width:.3f}"


def winner_sentence(table: Table) -> str:
    """The winner: `Best: freeze_depth=11 lr=0.01 with val/acc 0.735 ± 0.015, mean of 3 seeds with …`."""
    winner = table.winner
    if winner is None:
        return _no_winner(table)

    settings = label(winner.params, table.swept)
    network = table.at(winner)[0]
    where = f"{network} freeze_depth={winner.freeze_depth} {settings}".strip()
    seeds = len(winner.accuracies)
    basis = f"mean of {seeds} seeds with its 95 % interval" if seeds > 1 else "one seed: no interval"
    result = f"{table.objective.name} {score_text(winner, table.objective)}"
    if table.objective != ACCURACY:
        result += f" (val/acc {accuracy_text(winner)})"
    return f"Best: {where} with {result}, {basis}."
