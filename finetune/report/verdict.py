"""Records to conclusions in words: what is best, what is worse beyond the noise of seeds, what is cheap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.records.result import Result
from finetune.report.depths import deepest
from finetune.report.stats import (
    ALPHA,
    MANY,
    REPEATS,
    Difference,
    any_difference,
    difference,
    holm,
    rounding_step,
    runs_to_settle,
)
from finetune.report.table import Group, Table, accuracy_text, label, verdict


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
    """
    best = table.winner
    if best is None:
        return Conclusions((verdict(table), *_cost(records)), (), None)
    depths = compare_depths(table, best)
    cheapest = _cheapest(depths, best)
    words = [verdict(table), *_about_depth(depths), *_about_cheapest(cheapest, best, depths, table.swept)]
    return Conclusions((*words, *_about_head(records, depths, best), *_cost(records)), depths, cheapest)


def compare_depths(table: Table, best: Group) -> tuple[Depth, ...]:
    """Each depth's best configuration against the best of all."""
    groups = table.best_per_depth
    step = rounding_step([accuracy for group in table.groups for accuracy in group.accuracies])
    found = {g.freeze_depth: difference(best.scores, g.scores, step) for g in groups if g != best}
    known = {depth: behind for depth, behind in found.items() if behind is not None}
    corrected = dict(zip(known, holm([behind.p for behind in known.values()]), strict=True))
    overall = any_difference([g.scores for g in groups if g == best or g.freeze_depth in known], step)

    def standing(group: Group) -> str:
        p = corrected.get(group.freeze_depth)
        if group == best:
            return "best"
        if p is None:
            return "few"
        return "worse" if overall is not None and overall < ALPHA and p < ALPHA else "open"

    return tuple(
        Depth(g, found.get(g.freeze_depth), corrected.get(g.freeze_depth), standing(g)) for g in table.best_per_depth
    )


def missing_runs(depths: Sequence[Depth]) -> int:
    """Trials that would give the best configuration of each depth enough seeds for a verdict."""
    return sum(max(0, REPEATS - len(depth.group.seeds)) for depth in depths)


def _about_depth(depths: Sequence[Depth]) -> list[str]:
    if len(depths) < 2:
        return ["One freeze depth was tried, so nothing is said about depth."]
    by = {standing: [d for d in depths if d.standing == standing] for standing in ("worse", "open", "few")}
    compared = len(by["worse"]) + len(by["open"])
    best = next(d.group for d in depths if d.standing == "best")
    missing = missing_runs(depths)
    seeds = f"{REPEATS} seeds for the best configuration of each depth are {missing} more run{'s' * (missing != 1)}"
    if not compared:
        return [f"No verdict on depth: too few repeats to tell a difference from the noise of seeds. {seeds}."]
    words = []
    if by["worse"]:
        each = "; ".join(f"k={d.group.freeze_depth} by {_size(d)}" for d in by["worse"])
        words.append(
            f"Depth matters: worse than k={best.freeze_depth} beyond the noise of seeds {_are(by['worse'])} {each} "
            f"({_test(by['worse'])}, corrected for {compared} depths)."
        )
    else:
        words.append(
            f"No depth is distinguishably worse than k={best.freeze_depth}; which does not prove that none is."
        )
    words += [f"k={d.group.freeze_depth} cannot be told from the best: {_open(d, compared)}." for d in by["open"]]
    if by["few"]:
        names = ", ".join(f"k={d.group.freeze_depth}" for d in by["few"])
        words.append(f"No verdict on {names}: fewer than {REPEATS} seeds. {seeds}.")
    return words


def _size(depth: Depth) -> str:
    assert depth.behind is not None
    return f"{depth.behind.mean:.3f} [{depth.behind.low:.3f}..{depth.behind.high:.3f}], {_p(depth.p)}"


def _open(depth: Depth, compared: int) -> str:
    assert depth.behind is not None
    more = runs_to_settle(depth.behind, compared)
    if depth.behind.mean == 0:
        advice = "no number of runs tells equals apart"
    elif more is None:
        advice = f"more than {MANY} seeds would be needed to settle that"
    else:
        advice = f"{more} more seed{'s' * (more > 1)} at both would probably settle it"
    return f"{_size(depth)}; {advice}"


def _p(p: float | None) -> str:
    return "" if p is None else "p<0.001" if p < 0.001 else f"p={p:.2g}"


def _are(depths: Sequence[Depth]) -> str:
    return "is" if len(depths) == 1 else "are"


def _test(depths: Sequence[Depth]) -> str:
    kinds = {"paired over seeds" if d.behind and d.behind.paired else "Welch" for d in depths}
    return " or ".join(sorted(kinds, reverse=True))


def _cheapest(depths: Sequence[Depth], best: Group) -> Group | None:
    equal = [d.group for d in depths if d.standing == "open"]
    if not equal and not any(d.standing == "worse" for d in depths):
        return None
    return min([best, *equal], key=lambda group: (group.seconds, -group.freeze_depth))


def _about_cheapest(cheapest: Group | None, best: Group, depths: Sequence[Depth], swept: Sequence[str]) -> list[str]:
    if cheapest is None:
        return []
    if cheapest == best:
        return ["The best is also the cheapest of the depths that are not distinguishably worse."]
    behind = next(d.behind for d in depths if d.group == cheapest)
    assert behind is not None
    return [
        f"The cheapest depth not distinguishably worse is k={cheapest.freeze_depth} "
        f"({label(cheapest.params, swept)}: {accuracy_text(cheapest)}) in {_share(cheapest, best)} of the best's time; "
        f"a loss of up to {max(0.0, behind.high):.3f} is not ruled out."
    ]


def _share(group: Group, best: Group) -> str:
    return f"{group.seconds / best.seconds:.0%}" if best.seconds else "an unknown share"


def _about_head(records: Sequence[Result], depths: Sequence[Depth], best: Group) -> list[str]:
    every = head_only_depth(records)
    found = [d for d in depths if d.group.freeze_depth == every]
    if not found:
        return []
    (head,) = found
    if head.standing == "best":
        return [f"The best trains the head alone (k={every})."]
    gap = best.mean - head.group.mean
    sure = {
        "worse": "more than the noise of seeds",
        "open": "not more than the noise of seeds",
        "few": "with too few seeds to say whether that is noise",
    }[head.standing]
    time = _share(head.group, best)
    return [f"The head alone (k={every}) is {gap:.3f} behind, {sure}, in {time} of the best's time."]


def head_only_depth(records: Sequence[Result]) -> int | None:
    """The freeze depth that leaves the head alone to train; None where the records do not tell."""
    depths = {_deepest(record) for record in records if record.status == "complete"}
    return depths.pop() if len(depths) == 1 else None


def _deepest(record: Result) -> int | None:
    if record.config.get("model.freeze_depth") == "all":
        return record.freeze_depth
    return deepest(str(record.config.get("model.backbone")), record.freeze_unit)


def _cost(records: Sequence[Result]) -> list[str]:
    spent = sum(record.seconds.get("total", 0.0) for record in records)
    words = f"It cost {duration(spent)} of trial time in {len(records)} trial{'s' if len(records) != 1 else ''}"
    saved = sum(float(_number(record.cache, "saved_seconds")) for record in records)
    shared = sum(1 for record in records if _number(record.cache, "saved_seconds") > 0)
    if shared:
        words += f"; sharing the frozen layers' work saved {duration(saved)} in {shared} of them"
    return [f"{words}."]


def _number(values: Mapping[str, object], name: str) -> float:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def duration(seconds: float) -> str:
    """`48 s`, `12 min` or `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
