"""Records to what they say: per freeze depth the best configuration, its mean and interval. Imports no torch."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.config import digest_of, is_meaningful
from finetune.records.result import STATUSES, Result
from finetune.report.stats import half_width

_APART = {"seed", "model.freeze_depth"}
"""Settings that have a column of their own."""


@dataclass(frozen=True)
class Group:
    """Trials that differ in their seed alone, or in settings that change no result."""

    freeze_depth: int
    params: dict[str, Any]
    """Their overrides without the seed."""
    accuracies: tuple[float, ...]
    """Best val/acc of each seed, 0..1."""
    seconds: float
    """Mean per trial."""
    seeds: tuple[int, ...] = ()
    """Of each accuracy, ascending."""
    keys: tuple[str, ...] = ()
    """Of each trial."""

    @property
    def scores(self) -> dict[int, float]:
        """Accuracy by seed."""
        return dict(zip(self.seeds, self.accuracies, strict=True))

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval of the mean (Student's t over seeds); None for a single seed."""
        return half_width(self.accuracies)


@dataclass(frozen=True)
class Table:
    """What the records of one sweep say."""

    groups: tuple[Group, ...]
    """Sorted by freeze depth, best first within one."""
    swept: tuple[str, ...]
    """Keys whose values differ between trials, the seed and freeze depth left out."""
    counts: dict[str, int]
    """Trials by status."""

    @property
    def best_per_depth(self) -> tuple[Group, ...]:
        """The best configuration of each freeze depth, by mean accuracy, in order of depth."""
        first: dict[int, Group] = {}
        for group in self.groups:
            first.setdefault(group.freeze_depth, group)
        return tuple(first.values())

    @property
    def winner(self) -> Group | None:
        """The configuration with the highest mean accuracy; of equals, the deepest frozen, which is the cheapest."""
        return max(self.groups, key=lambda group: (group.mean, group.freeze_depth), default=None)


def tabulate(records: Sequence[Result]) -> Table:
    """Group complete trials by configuration and rank them."""
    complete = [r for r in records if r.status == "complete" and r.val_acc_best is not None]
    by_config: dict[str, list[Result]] = {}
    for record in complete:
        others = {key: value for key, value in record.params.items() if key not in _APART and is_meaningful(key)}
        by_config.setdefault(digest_of([record.freeze_depth, others]), []).append(record)
    groups = [_group(sorted(members, key=lambda r: (r.seed, r.key))) for members in by_config.values()]
    tried = [*complete, *(record for record in records if record.status == "pruned")]
    keys = sorted({key for record in tried for key in record.params} - _APART)
    told = [key for key in keys if is_meaningful(key)]
    swept = [key for key in told if len({repr(record.params.get(key)) for record in tried}) > 1]
    statuses = [record.status for record in records]
    counts = {status: statuses.count(status) for status in STATUSES if status in statuses}
    ranked = sorted(groups, key=lambda group: (group.freeze_depth, -group.mean, repr(group.params)))
    return Table(tuple(ranked), tuple(swept), counts)


def _group(members: Sequence[Result]) -> Group:
    return Group(
        freeze_depth=int(members[0].freeze_depth or 0),
        params=_without_seed(members[0].params),
        accuracies=tuple(float(r.val_acc_best or 0) for r in members),
        seconds=statistics.fmean(r.seconds.get("total", 0.0) for r in members),
        seeds=tuple(r.seed for r in members),
        keys=tuple(r.key for r in members),
    )


def short(key: str) -> str:
    """A dotted key's last name: `optim.lr` is `lr`; `model.head.hidden` keeps `head.hidden`."""
    return key.removeprefix("model.").removeprefix("optim.").removeprefix("trainer.")


def label(params: dict[str, Any], keys: Sequence[str]) -> str:
    """`lr=0.001 head.hidden=[]` for the `keys` there are."""
    return " ".join(f"{short(key)}={_brief(params[key])}" for key in keys if key in params)


def accuracy_text(group: Group) -> str:
    """`0.812 ± 0.021` or `0.812`."""
    width = group.half_width
    return f"{group.mean:.3f}" if width is None else f"{group.mean:.3f} ± {width:.3f}"


def verdict(table: Table) -> str:
    """The winner in one sentence."""
    winner = table.winner
    if winner is None:
        return "No trial is complete yet."
    how = label(winner.params, table.swept)
    seeds = len(winner.accuracies)
    over = f", mean of {seeds} seeds with its 95 % interval" if seeds > 1 else ", one seed: no interval"
    where = " ".join(part for part in (f"freeze_depth={winner.freeze_depth}", how) if part)
    return f"Best: {where} with val/acc {accuracy_text(winner)}{over}."


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _without_seed(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key != "seed"}
