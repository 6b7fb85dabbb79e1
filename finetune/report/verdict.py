"""Records to conclusions, in words: what is best, how surely, what is cheap, and what it cost to know."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from finetune.config import freeze_depth_number
from finetune.errors import counted
from finetune.records.ranking import ACCURACY, NetworkDepth, exploring_seed, network_of
from finetune.records.result import Result
from finetune.report.bits import PER_IMAGE, values_by_epoch
from finetune.report.decision import decision, expectation, points
from finetune.report.depths import deepest, depths_of
from finetune.report.judge import expect, judged_by_halves
from finetune.report.seeds_only import by_seeds
from finetune.report.standing import Depth, Standings, compare_depths
from finetune.report.strategy import WINDOW
from finetune.report.table import Group, Table, label, score_text, strategy_in, winner_sentence
from finetune.report.variance import Bits


@dataclass(frozen=True)
class Conclusions:
    """What the records of a sweep say."""

    sentences: tuple[str, ...]
    """The verdict, most important first."""
    depths: tuple[Depth, ...]
    """In order of depth."""
    cheapest: Group | None
    """The cheapest configuration that is not worse than the best; None without enough seeds."""
    judged: bool = False
    """Whether the error that decides holds for new seeds and, with `by_image`, new images."""
    by_image: bool = False


def conclude(records: Sequence[Result], table: Table) -> Conclusions:
    """Compare the depths of a sweep and put it into words.

    >>> from pathlib import Path
    >>> from finetune.records.read import read_records
    >>> from finetune.report.table import tabulate
    >>> records = read_records(Path("runs/local"))
    >>> conclusions = conclude(records, tabulate(records))
    >>> [(depth.group.freeze_depth, depth.standing) for depth in conclusions.depths]
    [(0, 'worse'), (11, 'best'), (17, 'worse')]
    >>> conclusions.sentences[-1]
    'It cost 59 s of trial time in 19 trials.'
    """
    best = table.winner
    if best is None:
        return Conclusions((winner_sentence(table), *_cost(records, table)), (), None)

    standings = compare_depths(records, table, best)
    depths = standings.depths
    cheapest = _cheapest(depths, best)
    sentences = [
        winner_sentence(table),
        *_about_the_cut(records, best, table),
        *_about_objective(table),
        *_about_depths(records, standings, table),
        *_expected(records, standings, table, best),
        *_about_cheapest(cheapest, best, depths, table),
        *_about_networks(depths, table),
        *_about_strategies(depths, table),
        *_about_head(records, depths, best, table),
        *_cost(records, table),
    ]
    return Conclusions(tuple(sentences), depths, cheapest, standings.judged, standings.by_image)


def _about_the_cut(records: Sequence[Result], best: Group, table: Table) -> list[str]:
    """The last thing that the best depth freezes; nothing where that is none or all, or the network is not known."""
    trial = next(record for record in records if record.key in best.keys)
    known = depths_of(network_of(trial), trial.freeze_unit)
    place = known.place(best.freeze_depth) if known else None
    if not known or not place or place == len(known.names) - 1 or trial.config.get(WINDOW):
        return []
    return [f"{table.name(best)} freezes everything up to and including {known.names[place]}."]


def _about_objective(table: Table) -> list[str]:
    if table.objective == ACCURACY:
        return []
    return [f"Trials are compared by {table.objective.metric}, which the sweep was to {table.objective.goal}."]


def _about_depths(records: Sequence[Result], standings: Standings, table: Table) -> Iterator[str]:
    depths = standings.depths
    if len({depth.group.freeze_depth for depth in depths}) == 1:
        yield "One freeze depth was tried, so nothing is said about depth."
    if len(depths) < 2:
        return

    if standings.judged:
        images = standings.columns.judged if standings.columns else max(record.val_images for record in records)
        seeds_alone = ""
        if table.objective.metric not in PER_IMAGE:
            seeds_alone = "this metric is no mean over images"
        elif not standings.by_image:
            seeds_alone = "not all were validated on the same images"
        yield from decision(depths, table.objective, images, seeds_alone)
    else:
        yield from by_seeds(depths, will_repeat=table.objective.explored_by is not None)


def _expected(records: Sequence[Result], standings: Standings, table: Table, best: Group) -> Iterator[str]:
    """The accuracy to expect of the best on new images; nothing of one seed that also chose it."""
    if not standings.judged or standings.columns is None:
        return

    trials = {record.key: record for record in records}
    judged = {key: judged_by_halves(values_by_epoch(trials[key], table.objective)) for key in best.keys}
    rows = [standings.columns.row(trials[key], judged[key]) for key in best.keys]
    expected = expect(cast(Bits, np.stack(rows)))
    name = next(depth.name for depth in standings.depths if depth.standing == "best")
    metric = "" if table.objective.name == "val/acc" else table.objective.name
    explored = exploring_seed(records, table.objective) is not None
    yield expectation(name, expected, explored, metric)


def _cheapest(depths: Sequence[Depth], best: Group) -> Group | None:
    """The one with the least time a trial; of equals, the deepest frozen."""
    equal = [depth.group for depth in depths if depth.standing in ("open", "within", "images")]
    if not equal and not any(depth.standing in ("worse", "behind") for depth in depths):
        return None
    return min([best, *equal], key=lambda group: (group.seconds, -group.freeze_depth))


def _about_cheapest(cheapest: Group | None, best: Group, depths: Sequence[Depth], table: Table) -> list[str]:
    if cheapest is None or len(depths) < 2:
        return []
    if cheapest == best:
        return ["The best is also the cheapest of those that are not worse."]

    depth = next(depth for depth in depths if depth.group == cheapest)
    result = f"{label(cheapest.params, table.swept)}: {score_text(cheapest, table.objective)}"
    return [
        f"The cheapest that may be as good is {depth.name} ({result}) in {_share_of_time(cheapest, best)} of the "
        f"best's time; it is worse by {points(_most_behind(depth))} at most."
    ]


def _most_behind(depth: Depth) -> float:
    """The most that taking it instead of the best can lose."""
    if depth.comparison is not None:
        return max(0.0, 2 * depth.comparison.lead + depth.comparison.loss)  # as far above the lead as `loss` is below
    return max(0.0, depth.behind.high) if depth.behind else 0.0


def _share_of_time(group: Group, best: Group) -> str:
    if not best.seconds:
        return "an unknown share"

    share = group.seconds / best.seconds
    return "less than 1%" if share < 0.01 else f"{share:.0%}"


def _about_networks(depths: Sequence[Depth], table: Table) -> list[str]:
    """The best depth of each network, what it came to and what it cost, the best first; nothing of one network."""
    best: dict[str, Depth] = {}
    for depth in sorted(depths, key=lambda depth: depth.group.rank):
        best.setdefault(table.at(depth.group)[0], depth)
    if len(best) < 2:
        return []

    each = [
        f"{depth.name} {score_text(depth.group, table.objective)} in {depth.group.seconds:.1f} s a trial"
        for depth in best.values()
    ]
    return [f"The best of each network: {'; '.join(each)}."]


def _about_strategies(depths: Sequence[Depth], table: Table) -> list[str]:
    """What the best of each strategy came to, and what it cost; nothing where all trials froze and nothing else."""
    best: dict[str, Group] = {}
    for depth in sorted(depths, key=lambda depth: depth.group.rank):
        best.setdefault(strategy_in(table, depth.group) or "freezing alone", depth.group)
    if len(best) < 2:
        return []

    each = [
        f"{name} {score_text(group, table.objective)} in {group.seconds:.1f} s a trial ({table.name(group)} "
        f"{label(group.params, table.swept)})"
        for name, group in best.items()
    ]
    return [f"The best of each strategy, all trained for as many epochs: {'; '.join(each)}."]


def _about_head(records: Sequence[Result], depths: Sequence[Depth], best: Group, table: Table) -> list[str]:
    """How the best network's head alone fares, which needs the least training; nothing where it was not tried."""
    network = table.at(best)[0]
    deepest_depth = head_only_depth([record for record in records if network in ("", network_of(record))])
    own = [depth for depth in depths if table.at(depth.group)[0] == network]
    head = next((depth for depth in own if depth.group.freeze_depth == deepest_depth), None)
    if head is None or len({depth.group.freeze_depth for depth in own}) < 2:
        return []
    if head.standing == "best":
        return [f"The best trains the head alone ({table.name(head.group)})."]

    gap = points(best.score - head.group.score)
    certainty = {
        "worse": "surely worse",
        "behind": "surely not better",
        "few": "with too few seeds to say whether that is luck",
    }
    time = _share_of_time(head.group, best)
    how = certainty.get(head.standing, "which may be luck")
    return [f"The head alone ({table.name(head.group)}) is {gap} behind, {how}, in {time} of the best's time."]


def head_only_depth(records: Sequence[Result]) -> float | None:
    """The freeze depth that leaves only the head to train; None where the records do not tell."""
    freezing = [record for record in records if not record.config.get(WINDOW)]
    depths = {_deepest(record) for record in freezing if record.status == "complete"}
    return depths.pop() if len(depths) == 1 else None


def _deepest(record: Result) -> float | None:
    if freeze_depth_number(record.config.get("model.freeze_depth") or 0) == math.inf:
        return record.freeze_depth
    return deepest(str(record.config.get("model.backbone")), record.freeze_unit)


def _cost(records: Sequence[Result], table: Table) -> list[str]:
    spent = sum(record.total_seconds for record in records)
    sentence = f"It cost {duration(spent)} of trial time in {counted(len(records), 'trial')}"

    formats = {record.number_format for record in records if record.precision}
    if len(formats) == 1:  # of several a caveat tells
        sentence += f", computed in {''.join(formats)}"

    grid = _cost_of_grid(records, table)
    if grid:
        sentence += f"; all of its configurations, run whole with one seed, would have cost {duration(grid)}"

    saved = [seconds for record in records if (seconds := _number(record.cache, "saved_seconds")) > 0]
    if saved:
        sentence += f"; sharing the frozen layers' work saved {duration(sum(saved))} in {len(saved)} of them"
    return [f"{sentence}."]


def _cost_of_grid(records: Sequence[Result], table: Table) -> float:
    """Seconds that the configurations of a sweep with repeats would have cost in whole trials; 0 where not known.

    One that was stopped, or not started, costs what whole trials of its depth do.
    """
    explored_by = table.objective.explored_by
    explored = [record for record in records if record.seed == explored_by and record.status in ("complete", "pruned")]
    whole = [record for record in explored if record.status == "complete"]
    seconds: dict[NetworkDepth, list[float]] = {}
    for record in whole:
        seconds.setdefault(table.at(record), []).append(record.total_seconds)
    known = all(record.freeze_depth is not None and table.at(record) in seconds for record in explored)
    if explored_by is None or not known:
        return 0.0
    return sum(statistics.fmean(seconds[table.at(record)]) for record in explored)


def _number(values: Mapping[str, object], name: str) -> float:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(48.2), duration(700), duration(12345)
    ('48 s', '12 min', '3.4 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
