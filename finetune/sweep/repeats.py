"""Which configurations get more seeds once a sweep has explored: those between which it has to decide.

A pure function of what the trials came to, so a sweep that was killed goes on as if it had not been.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from finetune.report.judge import FIRST_LOOK, Comparison, compare, leader_of, next_looks
from finetune.report.stats import Name
from finetune.report.variance import Bits

Contender = float | str
"""A freeze depth; or in words: of which network, a strategy, or the settings where freeze depth is not swept."""


@dataclass(frozen=True)
class Repeats(Generic[Name]):
    """How far the repeats of a sweep are."""

    wanted: Mapping[Name, int]
    """New seeds that each configuration is to have."""
    done: bool
    """Whether these are all; otherwise some of the wanted ones have no record yet."""
    leader: Name
    comparisons: Mapping[Name, Comparison]
    """With the leader, before the wanted ones that have no record yet."""
    open: tuple[Name, ...]
    """Those that get more seeds now, to be told from the leader."""


def plan_repeats(
    explored: Mapping[Name, Bits],
    repeated: Mapping[Name, Sequence[Bits | None]],
    margin: float,
    most: int,
    tried: int,
) -> Repeats[Name]:
    """What to repeat next.

    First, three new seeds for every configuration that may be better than the best by more than the margin. Then one
    more at a time, up to eight, where more would decide. The seed that explored chose the configurations, so it does
    not judge those that have new ones; unless all that were tried are repeated, for then it chose none.

    >>> rng = np.random.default_rng(0)
    >>> explored = {k: rng.random((1, 400)) < share for k, share in ((4, 0.5), (9, 0.8), (14, 0.8))}
    >>> plan_repeats(explored, {}, margin=0.02, most=18, tried=18).wanted
    {9: 3, 14: 3}

    Args:
        explored: The best configuration of each depth as the first seed found it, 1 x images.
        repeated: Of these, each repeat in order of its seed, 1 x images; None for one that failed.
        margin: The difference that is worth having, 0..1.
        most: Repeats at the most, but for the first of each; those nearest to the best come first.
        tried: Configurations from which the best of each depth were chosen.
    """
    leader = leader_of(explored)
    comparisons = compare(explored, leader, margin)
    within_reach = [name for name, row in comparisons.items() if row.lead + margin <= row.half_width]
    wanted = {name: FIRST_LOOK for name in explored if name == leader or name in within_reach}
    looked_at: dict[Name, int] = {}

    while all(len(repeated.get(name, ())) >= seeds for name, seeds in wanted.items()):
        explorer_judges = len(wanted) == tried
        judged = {
            name: _judging(bits, repeated.get(name, ())[: wanted.get(name, 0)], explorer_judges)
            for name, bits in explored.items()
        }
        leader = leader_of(judged)
        comparisons = compare(judged, leader, margin)

        asked = next_looks({name: wanted.get(name, 0) for name in explored}, comparisons, leader)
        more = _nearest_first(wanted, asked, comparisons, leader, most)
        if more == wanted:
            return Repeats(wanted, True, leader, comparisons, ())
        looked_at, wanted = wanted, more

    grown = (name for name, seeds in wanted.items() if seeds > looked_at.get(name, 0) and name != leader)
    return Repeats(wanted, False, leader, comparisons, tuple(grown))


def _nearest_first(
    wanted: Mapping[Name, int],
    asked: Mapping[Name, int],
    comparisons: Mapping[Name, Comparison],
    leader: Name,
    most: int,
) -> dict[Name, int]:
    """What is wanted, with as many of those asked for as make no more than the `most` repeats."""
    granted = dict(wanted)
    for name in sorted(asked.keys() - {leader}, key=lambda name: comparisons[name].lead):
        more = {**granted, name: asked[name], leader: max(granted.get(leader, 0), asked[name])}
        if sum(more.values()) <= most:
            granted = more
    return granted


def _judging(explored: Bits, repeats: Sequence[Bits | None], explorer_judges: bool) -> Bits:
    """The new seeds where there are two or more, else the one that explored."""
    new = [bits for bits in repeats if bits is not None]
    if len(new) < 2:
        return explored
    return np.concatenate([explored, *new] if explorer_judges else new)
