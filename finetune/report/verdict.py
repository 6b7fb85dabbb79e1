"""Records to conclusions, in words: what is best, what is worse beyond the noise of seeds, what is cheap."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.config import freeze_depth_number
from finetune.errors import counted
from finetune.records.ranking import ACCURACY
from finetune.records.result import Result
from finetune.report.bits import best_bits
from finetune.report.depths import deepest
from finetune.report.judge import compare, expect
from finetune.report.stats import (
    ALPHA,
    MANY,
    REPEATS,
    Difference,
    any_difference,
    corrected,
    difference,
    rounding_step,
    runs_to_settle,
)
from finetune.report.table import Group, Table, label, score_text, winner_sentence

STANDINGS = {"best": "the best", "few": "too few seeds", "open": "no", "worse": "yes"}
"""How a depth compares with the best of all, and what a table says in its column "beyond noise?"."""


@dataclass(frozen=True)
class Depth:
    """The best configuration of one freeze depth against the best of all."""

    group: Group
    behind: Difference | None
    """The best of all minus this one; None for the best itself, and where there are too few seeds."""
    p: float | None
    """Corrected for the number of depths compared."""
    standing: str
    """`best`, `worse` beyond the noise of seeds, `open`, or `few`: too few seeds to say."""


@dataclass(frozen=True)
class Conclusions:
    """What the records of a sweep say."""

    sentences: tuple[str, ...]
    """The verdict, most important first."""
    depths: tuple[Depth, ...]
    """In order of depth."""
    cheapest: Group | None
    """The cheapest configuration that is not distinguishably worse than the best; None without enough seeds."""


def conclude(records: Sequence[Result], table: Table) -> Conclusions:
    """Compare the depths of a sweep and put it into words.

    Depth matters only if an analysis of variance over all depths says so at 5 %; then each depth is worse than the
    best if its own test says so at 5 % after Holm's correction.

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
        return Conclusions((winner_sentence(table), *_cost(records)), (), None)

    depths = compare_depths(table, best)
    cheapest = _cheapest(depths, best)
    sentences = [
        winner_sentence(table),
        *_about_objective(table),
        *_about_depth(depths),
        *_about_new_images(records, table, best),
        *_about_cheapest(cheapest, best, depths, table),
        *_about_head(records, depths, best),
        *_cost(records),
    ]
    return Conclusions(tuple(sentences), depths, cheapest)


def compare_depths(table: Table, best: Group) -> tuple[Depth, ...]:
    """Each depth's best configuration against the best of all, in order of depth."""
    groups = table.best_per_depth
    step = rounding_step(table.scores)
    behind = {group.freeze_depth: difference(best.scores, group.scores, step) for group in groups if group != best}
    p = corrected(behind)

    # One test of all depths comes first: where it finds nothing, no single depth is called worse.
    tested = [group.scores for group in groups if group == best or group.freeze_depth in p]
    overall = any_difference(tested, step)
    depth_matters = overall is not None and overall < ALPHA

    def standing(group: Group) -> str:
        if group == best:
            return "best"
        if group.freeze_depth not in p:
            return "few"
        return "worse" if depth_matters and p[group.freeze_depth] < ALPHA else "open"

    return tuple(
        Depth(group, behind.get(group.freeze_depth), p.get(group.freeze_depth), standing(group)) for group in groups
    )


def missing_runs(depths: Sequence[Depth]) -> int:
    """Trials that would give the best configuration of each depth enough seeds for a verdict."""
    return sum(max(0, REPEATS - len(depth.group.seeds)) for depth in depths)


def _about_objective(table: Table) -> list[str]:
    if table.objective == ACCURACY:
        return []
    return [f"Trials are compared by {table.objective.metric}, which the sweep was to {table.objective.goal}."]


def _about_depth(depths: Sequence[Depth]) -> list[str]:
    if len(depths) < 2:
        return ["One freeze depth was tried, so nothing is said about depth."]

    worse = [depth for depth in depths if depth.standing == "worse"]
    undecided = [depth for depth in depths if depth.standing == "open"]
    few = [depth for depth in depths if depth.standing == "few"]
    compared = len(worse) + len(undecided)
    missing = counted(missing_runs(depths), "more run")
    seeds = f"{REPEATS} seeds for the best configuration of each depth are {missing}"
    if not compared:
        return [f"No verdict on depth: too few repeats to tell a difference from the noise of seeds. {seeds}."]

    best = next(depth.group for depth in depths if depth.standing == "best")
    sentences = [_worse_sentence(worse, best, compared)]
    sentences += [
        f"k={depth.group.freeze_depth} cannot be told from the best: {_what_settles(depth, compared)}."
        for depth in undecided
    ]
    if few:
        names = ", ".join(f"k={depth.group.freeze_depth}" for depth in few)
        sentences.append(f"No verdict on {names}: fewer than {REPEATS} seeds. {seeds}.")
    return sentences


def _worse_sentence(worse: Sequence[Depth], best: Group, compared: int) -> str:
    if not worse:
        return f"No depth is distinguishably worse than k={best.freeze_depth}; which does not prove that none is."

    each = "; ".join(f"k={depth.group.freeze_depth} by {_size(depth)}" for depth in worse)
    tests = {"paired over seeds" if depth.behind and depth.behind.paired else "Welch" for depth in worse}
    test = " or ".join(sorted(tests, reverse=True))
    depths = counted(compared, "depth")
    return (
        f"Depth matters: worse than k={best.freeze_depth} beyond the noise of seeds "
        f"{'is' if len(worse) == 1 else 'are'} {each} ({test}, corrected for {depths})."
    )


def _size(depth: Depth) -> str:
    assert depth.behind is not None
    return f"{depth.behind.mean:.3f} [{depth.behind.low:.3f}..{depth.behind.high:.3f}], {p_text(depth.p)}"


def _what_settles(depth: Depth, compared: int) -> str:
    """How far a depth is behind, and how many seeds would show whether it is."""
    assert depth.behind is not None
    more = runs_to_settle(depth.behind, compared)
    if depth.behind.mean == 0:
        advice = "no number of runs tells equals apart"
    elif more is None:
        advice = f"more than {MANY} seeds would be needed to settle that"
    else:
        advice = f"{counted(more, 'more seed')} at both would probably settle it"
    return f"{_size(depth)}; {advice}"


def p_text(p: float | None) -> str:
    """`p=0.02`, `p<0.001`, or nothing."""
    if p is None:
        return ""
    return "p<0.001" if p < 0.001 else f"p={p:.2g}"


def _about_new_images(records: Sequence[Result], table: Table, best: Group) -> list[str]:
    """What taking the best can lose, and what to expect of it, on images and with seeds that are not these."""
    bits = best_bits(records, table) if table.objective == ACCURACY else {}
    if not bits or len(best.seeds) < 2:  # one seed that also chose the best says too little
        return []

    sentences = []
    k = best.freeze_depth
    if len(bits) > 1:
        at_best_epoch = {
            depth: np.stack([epochs[epochs.mean(1).argmax()] for epochs in seeds]) for depth, seeds in bits.items()
        }
        loss = max(row.loss for row in compare(at_best_epoch, k).values())
        sentences.append(
            f"With new seeds, on new images, taking k={k} loses at most {max(0.0, loss):.3f} against any other depth."
        )
    expected = expect(bits[k])
    sentences.append(
        f"Expect {expected.accuracy:.3f} ± {expected.half_width:.3f} from it on new images ({expected.seeds} seeds, "
        "which also chose it; each half of the images in the epoch that was best on the other half)."
    )
    return sentences


def _cheapest(depths: Sequence[Depth], best: Group) -> Group | None:
    """The one with the least time a trial; of equals, the deepest frozen."""
    equal = [depth.group for depth in depths if depth.standing == "open"]
    if not equal and not any(depth.standing == "worse" for depth in depths):
        return None
    return min([best, *equal], key=lambda group: (group.seconds, -group.freeze_depth))


def _about_cheapest(cheapest: Group | None, best: Group, depths: Sequence[Depth], table: Table) -> list[str]:
    if cheapest is None:
        return []
    if cheapest == best:
        return ["The best is also the cheapest of the depths that are not distinguishably worse."]

    behind = next(depth.behind for depth in depths if depth.group == cheapest)
    assert behind is not None
    result = f"{label(cheapest.params, table.swept)}: {score_text(cheapest, table.objective)}"
    return [
        f"The cheapest depth not distinguishably worse is k={cheapest.freeze_depth} "
        f"({result}) in {_share_of_time(cheapest, best)} of the best's time; "
        f"a loss of up to {max(0.0, behind.high):.3f} is not ruled out."
    ]


def _share_of_time(group: Group, best: Group) -> str:
    return f"{group.seconds / best.seconds:.0%}" if best.seconds else "an unknown share"


def _about_head(records: Sequence[Result], depths: Sequence[Depth], best: Group) -> list[str]:
    """How the head alone fares, which needs the least training; nothing where it was not tried."""
    deepest_depth = head_only_depth(records)
    head = next((depth for depth in depths if depth.group.freeze_depth == deepest_depth), None)
    if head is None:
        return []
    if head.standing == "best":
        return [f"The best trains the head alone (k={deepest_depth})."]

    gap = best.score - head.group.score
    certainty = {
        "worse": "more than the noise of seeds",
        "open": "not more than the noise of seeds",
        "few": "with too few seeds to say whether that is noise",
    }[head.standing]
    time = _share_of_time(head.group, best)
    return [f"The head alone (k={deepest_depth}) is {gap:.3f} behind, {certainty}, in {time} of the best's time."]


def head_only_depth(records: Sequence[Result]) -> int | None:
    """The freeze depth that leaves only the head to train; None where the records do not tell."""
    depths = {_deepest(record) for record in records if record.status == "complete"}
    return depths.pop() if len(depths) == 1 else None


def _deepest(record: Result) -> int | None:
    if freeze_depth_number(record.config.get("model.freeze_depth") or 0) == math.inf:
        return record.freeze_depth
    return deepest(str(record.config.get("model.backbone")), record.freeze_unit)


def _cost(records: Sequence[Result]) -> list[str]:
    spent = duration(sum(record.total_seconds for record in records))
    sentence = f"It cost {spent} of trial time in {counted(len(records), 'trial')}"

    saved = [seconds for record in records if (seconds := _number(record.cache, "saved_seconds")) > 0]
    if saved:
        sentence += f"; sharing the frozen layers' work saved {duration(sum(saved))} in {len(saved)} of them"
    return [f"{sentence}."]


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
