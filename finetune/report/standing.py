"""How each freeze depth stands against the best: judged by seeds and images, or by seeds alone as before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.records.ranking import ACCURACY, Objective, depth_name
from finetune.records.result import Result
from finetune.report.bits import Columns, columns_of, values_of
from finetune.report.judge import Comparison, compare, half_widths
from finetune.report.stats import ALPHA, Difference, any_difference, corrected, difference, rounding_step
from finetune.report.table import Group, Table, best_of_each

STANDINGS = {
    "best": "the best",
    "worse": "worse",
    "within": "not better by the margin",
    "behind": "not better",
    "images": "too few images to tell",
    "open": "undecided",
    "few": "too few seeds",
}
"""How one compares with the best of all, and what a table says of it. One that is `behind` is not surely worse, but is
surely no better at all; one that is `within` may be better, by less than the margin."""


@dataclass(frozen=True)
class Depth:
    """The best configuration of one freeze depth of a network against the best of all; or one of a single depth."""

    name: str
    """`k=9`; of several networks `resnet50 k=0.5`; or its settings."""
    group: Group
    standing: str
    """One of `STANDINGS`."""
    comparison: Comparison | None = None
    """Of the best with this one, over seeds and images; None for the best itself, and where records do not tell."""
    behind: Difference | None = None
    """Where records do not tell which images were right: the best minus this one, over seeds; None for the best itself,
    and where there are too few seeds."""
    p: float | None = None
    """Of that, corrected for the number of depths compared."""
    half_width: float | None = None
    """Half of the 95 % interval of its own value, by the error that judges it: over seeds alone where that is no mean
    over images. None for a single seed that records tell nothing else of."""


@dataclass(frozen=True)
class Standings:
    """What a verdict rests on."""

    depths: tuple[Depth, ...]
    """In order of network and depth."""
    judged: bool
    """Whether by the error that holds for new seeds, and with `by_image` for new images."""
    columns: Columns | None
    """Of the images that judge; None where seeds alone do."""

    @property
    def by_image(self) -> bool:
        """Whether images judge, too."""
        return self.columns is not None


def compare_depths(records: Sequence[Result], table: Table, best: Group) -> Standings:
    """The best configuration of each depth against the best of all; of one depth alone, its best configurations."""
    entrants = best_of_each(table)
    trials = {record.key: record for record in records}
    chosen = {name: [trials[key] for key in group.keys] for name, group in entrants.items()}
    columns = columns_of(chosen.values(), table.objective)
    new_enough = columns is not None or all(trial.correct for group in chosen.values() for trial in group)

    if new_enough and len(best.seeds) > 1:
        return Standings(_judged(entrants, chosen, table.objective, best, columns), True, columns)
    return Standings(_over_seeds(entrants, table, best), False, columns)


def _judged(
    entrants: Mapping[float | str, Group],
    trials: Mapping[float | str, Sequence[Result]],
    objective: Objective,
    best: Group,
    columns: Columns | None,
) -> tuple[Depth, ...]:
    values = {name: values_of(trials[name], objective, columns) for name in entrants}
    leader = next(name for name, group in entrants.items() if group == best)
    rows = compare(values, leader, objective.margin)
    by_error = columns is not None or objective == ACCURACY
    widths = half_widths(values) if by_error else {name: g.half_width for name, g in entrants.items()}
    return tuple(
        Depth(
            name_of(name),
            group,
            standing_of(rows.get(name)),
            rows.get(name),
            half_width=widths[name],
        )
        for name, group in entrants.items()
    )


def standing_of(row: Comparison | None) -> str:
    """Which of `STANDINGS` a comparison with the best shows; without one, it is the best itself."""
    if row is None:
        return "best"
    return "behind" if row.standing == "within" and row.loss <= 0 else row.standing


def _over_seeds(entrants: Mapping[float | str, Group], table: Table, best: Group) -> tuple[Depth, ...]:
    """By t tests.

    Depth matters only if an analysis of variance over all depths says so at 5 %; then each depth is worse than the best
    if its own test says so at 5 % after Holm's correction.
    """
    step = rounding_step(table.scores)
    others = {name: group for name, group in entrants.items() if group != best}
    behind = {name: difference(best.scores, group.scores, step) for name, group in others.items()}
    p = corrected(behind)

    # One test of all depths comes first: where it finds nothing, no single depth is called worse.
    overall = any_difference([group.scores for name, group in entrants.items() if group == best or name in p], step)
    depth_matters = overall is not None and overall < ALPHA

    def standing(name: float | str, group: Group) -> str:
        if group == best:
            return "best"
        if name not in p:
            return "few"
        return "worse" if depth_matters and p[name] < ALPHA else "open"

    return tuple(
        Depth(name_of(name), group, standing(name, group), None, behind.get(name), p.get(name), group.half_width)
        for name, group in entrants.items()
    )


def name_of(contender: float | str) -> str:
    """A freeze depth as `k=9`, what is in words as it is."""
    return contender if isinstance(contender, str) else depth_name(("", contender))
