"""The verdict in words, where only seeds judge: for records of versions that did not note which images were right."""

from collections.abc import Iterator, Sequence

from finetune.errors import counted
from finetune.report.standing import Depth
from finetune.report.stats import MANY, REPEATS, runs_to_settle


def by_seeds(depths: Sequence[Depth], will_repeat: bool) -> Iterator[str]:
    """What t tests over seeds say of the depths, most important first.

    Args:
        depths: All that were compared.
        will_repeat: Whether the sweep is one that repeats by itself what decides, once it has explored.
    """
    worse = [depth for depth in depths if depth.standing == "worse"]
    undecided = [depth for depth in depths if depth.standing == "open"]
    few = [depth for depth in depths if depth.standing == "few"]
    compared = len(worse) + len(undecided)
    if not compared:
        one = all(len(depth.group.seeds) == 1 for depth in depths)
        few_say = "one seed says" if one else f"fewer than {REPEATS} seeds say"
        why = f"{few_say} too little, for accuracies differ by luck as well."
        if will_repeat:
            yield (
                f"No verdict yet: {why} The sweep repeats what decides once it has explored; where it was ended before "
                "that, the same command goes on."
            )
        else:
            yield (
                f"No verdict: {why} `finetune sweep` repeats what decides and ends with a verdict, unless it is given "
                "--no-repeats."
            )
        return

    yield "These records do not tell which images were right: the comparison is over seeds, and not for new images."
    best = next(depth for depth in depths if depth.standing == "best")
    yield _worse_sentence(worse, best, compared)
    for depth in undecided:
        yield f"{depth.name} cannot be told from the best: {_what_settles(depth, compared)}."
    if few:
        yield f"No verdict on {', '.join(depth.name for depth in few)}: fewer than {REPEATS} seeds."


def _worse_sentence(worse: Sequence[Depth], best: Depth, compared: int) -> str:
    if not worse:
        return f"None is distinguishably worse than {best.name}; which does not prove that none is."

    each = "; ".join(f"{depth.name} by {_size(depth)}" for depth in worse)
    tests = {"paired over seeds" if depth.behind and depth.behind.paired else "Welch" for depth in worse}
    test = " or ".join(sorted(tests, reverse=True))
    return (
        f"Worse than {best.name} beyond the noise of seeds {'is' if len(worse) == 1 else 'are'} {each} "
        f"({test}, corrected for {counted(compared, 'comparison')})."
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
