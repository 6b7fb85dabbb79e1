"""Two sweeps side by side: what each found, what differs between them, and whether that is more than noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune.errors import counted
from finetune.records.result import Result
from finetune.report.stats import ALPHA, Difference, difference, holm, rounding_step
from finetune.report.table import Group, accuracy_text, short, tabulate
from finetune.report.verdict import duration


@dataclass(frozen=True)
class Row:
    """The best configurations of one freeze depth."""

    freeze_depth: int
    a: Group | None
    b: Group | None
    ahead: Difference | None
    """B minus A; None where one has too few seeds."""
    p: float | None
    """Corrected for the number of depths compared."""


def compare(a: Sequence[Result], b: Sequence[Result]) -> list[Row]:
    """A row for each freeze depth that either sweep has."""
    tables = tabulate(a), tabulate(b)
    best = [{group.freeze_depth: group for group in table.best_per_depth} for table in tables]
    step = rounding_step([value for table in tables for group in table.groups for value in group.accuracies])
    both = best[0].keys() & best[1].keys()
    found = {depth: difference(best[1][depth].scores, best[0][depth].scores, step) for depth in both}
    known = {depth: ahead for depth, ahead in found.items() if ahead is not None}
    corrected = dict(zip(known, holm([ahead.p for ahead in known.values()]), strict=True))
    return [
        Row(depth, best[0].get(depth), best[1].get(depth), found.get(depth), corrected.get(depth))
        for depth in sorted(best[0].keys() | best[1])
    ]


def other_settings(a: Sequence[Result], b: Sequence[Result]) -> dict[str, tuple[str, str]]:
    """Settings that are one value throughout each sweep, and not the same in both; the images, if those differ."""

    def fixed(records: Sequence[Result]) -> dict[str, str]:
        keys = {key for record in records for key in record.config} - {"out", "cache.dir"}
        values = {key: {repr(r.config.get(key)) for r in records if r.config} for key in keys}
        digests = {f"digest of {name}": _digests(records, name) for name in ("dataset", "split", "weights")}
        return {key: next(iter(found)) for key, found in {**values, **digests}.items() if len(found) == 1}

    ours, theirs = fixed(a), fixed(b)
    return {key: (ours[key], theirs[key]) for key in sorted(ours.keys() & theirs) if ours[key] != theirs[key]}


def conclusions(names: tuple[str, str], a: Sequence[Result], b: Sequence[Result]) -> Iterator[str]:
    """The comparison in words: first the winners."""
    tables = tabulate(a), tabulate(b)
    winners = [table.winner for table in tables]
    if winners[0] is None or winners[1] is None:
        yield f"{names[0] if winners[0] is None else names[1]} has no complete trial yet."
        return
    ours, theirs = winners[0], winners[1]
    step = rounding_step([value for table in tables for group in table.groups for value in group.accuracies])
    ahead = difference(theirs.scores, ours.scores, step)
    gap = theirs.mean - ours.mean
    leader = f"{names[1] if gap > 0 else names[0]} is {abs(gap):.3f} ahead, " if gap else "Neither is ahead"
    found = [f"k={g.freeze_depth} {accuracy_text(g)}" for g in (ours, theirs)]
    sure = "with too few seeds to say whether that is noise"
    if ahead is not None:
        test = "paired over seeds" if ahead.paired else "Welch"
        more = "more" if ahead.p < ALPHA else "not more"
        sure = f"{more} than the noise of seeds (p={ahead.p:.2g}, {test})"
    sure = sure if gap else ""
    yield f"Best of {names[0]}: {found[0]}; best of {names[1]}: {found[1]}. {leader}{sure}."
    spent = [sum(r.seconds.get("total", 0.0) for r in records) for records in (a, b)]
    yield f"Cost: {duration(spent[0])} in {counted(len(a), 'trial')} against {duration(spent[1])} in {len(b)}."
    if any({*_digests(a, name)} != {*_digests(b, name)} for name in ("dataset", "split")):
        yield "The two did not train and validate on the same images as stored: read the difference with care."


def _digests(records: Sequence[Result], name: str) -> set[str]:
    return {r.digests[name] for r in records if name in r.digests}


def setting_lines(a: Sequence[Result], b: Sequence[Result]) -> list[str]:
    """`data.size: 64 → 96`, one a line."""
    return [f"{short(key)}: {ours} → {theirs}" for key, (ours, theirs) in other_settings(a, b).items()]
