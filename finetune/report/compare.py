"""Two sweeps side by side: the best of each, what differs between them, and whether that is more than noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune.errors import counted
from finetune.records.ranking import ACCURACY, Objective
from finetune.records.result import Result
from finetune.report.stats import ALPHA, Difference, corrected, difference, rounding_step
from finetune.report.table import Group, score_text, short, tabulate
from finetune.report.verdict import duration


@dataclass(frozen=True)
class Row:
    """The best configurations of one freeze depth."""

    freeze_depth: float
    network: str
    """Whose; empty where each sweep has one network, whichever."""
    a: Group | None
    b: Group | None
    ahead: Difference | None
    """How far B is ahead of A; None where one has too few seeds."""
    p: float | None
    """Corrected for the number of depths compared."""


def compare(a: Sequence[Result], b: Sequence[Result], objective: Objective = ACCURACY) -> list[Row]:
    """A row for each freeze depth that either sweep has; where one of them has several networks, of each of these.

    >>> from pathlib import Path
    >>> from finetune.records.read import read_records
    >>> records = read_records(Path("runs/local"))
    >>> [(row.freeze_depth, row.ahead.mean) for row in compare(records, records)]
    [(0, 0.0), (11, 0.0), (17, 0.0)]
    """
    tables = tabulate(a, objective), tabulate(b, objective)
    several = any(table.networks for table in tables)
    ours, theirs = (
        {(group.network if several else "", group.freeze_depth): group for group in table.best_per_depth}
        for table in tables
    )

    step = rounding_step([*tables[0].scores, *tables[1].scores])
    ahead = {where: difference(theirs[where].scores, ours[where].scores, step) for where in ours.keys() & theirs}
    p = corrected(ahead)
    return [
        Row(where[1], where[0], ours.get(where), theirs.get(where), ahead.get(where), p.get(where))
        for where in sorted(ours.keys() | theirs)
    ]


def conclusions(
    names: tuple[str, str], a: Sequence[Result], b: Sequence[Result], objective: Objective = ACCURACY
) -> Iterator[str]:
    """The comparison in sentences: first the winners, then the cost, then what speaks against comparing at all."""
    tables = tabulate(a, objective), tabulate(b, objective)
    for name, table in zip(names, tables, strict=True):
        if table.winner is None:
            yield f"{name} has no complete trial yet."
            return

    ours, theirs = tables[0].winner, tables[1].winner
    assert ours is not None
    assert theirs is not None
    step = rounding_step([*tables[0].scores, *tables[1].scores])
    winners = zip(tables, (ours, theirs), strict=True)
    best = [f"{table.name(winner)} {score_text(winner, objective)}" for table, winner in winners]
    yield f"Best of {names[0]}: {best[0]}; best of {names[1]}: {best[1]}. {_who_leads(names, ours, theirs, step)}."

    spent = [duration(sum(record.total_seconds for record in records)) for records in (a, b)]
    yield f"Cost: {spent[0]} in {counted(len(a), 'trial')} against {spent[1]} in {len(b)}."

    if any(_digests(a, name) != _digests(b, name) for name in ("dataset", "split")):
        yield "The two did not train and validate on the same images as stored: read the difference with care."


def _who_leads(names: tuple[str, str], ours: Group, theirs: Group, step: float) -> str:
    gap = theirs.score - ours.score
    if not gap:
        return "Neither is ahead"

    ahead = difference(theirs.scores, ours.scores, step)
    if ahead is None:
        certainty = "with too few seeds to say whether that is noise"
    else:
        test = "paired over seeds" if ahead.paired else "Welch"
        more = "more" if ahead.p < ALPHA else "not more"
        certainty = f"{more} than the noise of seeds (p={ahead.p:.2g}, {test})"
    return f"{names[1] if gap > 0 else names[0]} is {abs(gap):.3f} ahead, {certainty}"


def other_settings(a: Sequence[Result], b: Sequence[Result]) -> dict[str, tuple[str, str]]:
    """Settings that are one value throughout each sweep, and not the same in both; the images, if those differ."""
    ours, theirs = _constant(a), _constant(b)
    return {key: (ours[key], theirs[key]) for key in sorted(ours.keys() & theirs) if ours[key] != theirs[key]}


def setting_lines(a: Sequence[Result], b: Sequence[Result]) -> list[str]:
    """`data.size: 64 → 96`, one a line."""
    return [f"{short(key)}: {ours} → {theirs}" for key, (ours, theirs) in other_settings(a, b).items()]


def _constant(records: Sequence[Result]) -> dict[str, str]:
    """What is the same in all trials of a sweep, as text."""
    keys = {key for record in records for key in record.config} - {"out", "cache.dir"}
    values = {key: {repr(record.config.get(key)) for record in records if record.config} for key in keys}
    for name in ("dataset", "split", "weights"):
        values[f"digest of {name}"] = _digests(records, name)
    return {key: next(iter(texts)) for key, texts in values.items() if len(texts) == 1}


def _digests(records: Sequence[Result], name: str) -> set[str]:
    return {record.digests[name] for record in records if name in record.digests}
