"""The verdict in words, where seeds and images judge: what is decided, how surely, and what would decide the rest."""

import math
from collections.abc import Iterator, Sequence

from finetune.records.ranking import Objective
from finetune.report.judge import LAST_LOOK, Expectation
from finetune.report.standing import Depth


def decision(depths: Sequence[Depth], objective: Objective, images: int, seeds_alone: str) -> Iterator[str]:
    """What is decided and what is not, most important first.

    Args:
        depths: All that were compared, the best among them.
        objective: The difference that is worth having, and whether the sweep repeats by itself.
        images: Validation images.
        seeds_alone: Why the error holds for new seeds alone; empty where it holds for new images, too.
    """
    best = next(depth for depth in depths if depth.standing == "best")
    worse, behind, within, images_tell, undecided = (
        [depth for depth in depths if depth.standing == standing]
        for standing in ("worse", "behind", "within", "images", "open")
    )
    margin = points(objective.margin)
    if seeds_alone:
        yield f"Only seeds judge here, for {seeds_alone}: the intervals hold for new seeds, and not for new images."

    # 1. What to do
    if not (behind or within or images_tell or undecided):
        if worse:
            yield f"Decided: take {best.name}. Every other is worse: {_leads(worse)}."
        return

    loss = max(0.0, *(_loss(depth) for depth in depths if depth.standing not in ("best", "worse")))
    if not (images_tell or undecided):
        yield f"Decided within the margin of {margin}: take {best.name}."
    most = f"{points(loss)} at most" if loss else "nothing"
    yield f"Taking {best.name} loses {most} against any other that was tried."

    # 2. How the others stand
    if worse:
        yield f"Worse than {best.name}: {_leads(worse)}."
    if behind:
        yield f"Not better: {', '.join(depth.name for depth in behind)}."
    if within:
        each = ", ".join(f"{depth.name} by {points(_loss(depth))}" for depth in within)
        yield f"Better by no more than the margin of {margin}, if at all: {each} at most."
    if images_tell:
        yield _what_images_would_tell(best, images_tell, 0 if seeds_alone else images)
    if undecided:
        names = ", ".join(f"{depth.name} ({_seeds(depth)})" for depth in undecided)
        why = "the budget was spent, or they would have made more repeats than trials before them"
        yield f"Undecided: {names}. More seeds would tell{f'; {why}' if objective.explored_by is not None else ''}."


def _leads(worse: Sequence[Depth]) -> str:
    """`k=0 by 20.1 points (at least 15.2)`, the nearest first."""
    rows = sorted(((depth.name, depth.comparison) for depth in worse if depth.comparison), key=lambda row: row[1].lead)
    return ", ".join(f"{name} by {points(row.lead)} (at least {100 * row.low:.1f})" for name, row in rows)


def _what_images_would_tell(best: Depth, depths: Sequence[Depth], images: int) -> str:
    names = ", ".join(depth.name for depth in depths)
    if not images:
        return f"{names} and {best.name} cannot be told apart by {LAST_LOOK} seeds."

    needed = max(depth.comparison.images_needed for depth in depths if depth.comparison)
    if math.isinf(needed):
        would = f"nor by {LAST_LOOK} seeds; it takes more images, and more seeds"
    else:
        would = f"nor by more seeds; about {_rounded(needed):,} images would tell"
    return f"{names} and {best.name} cannot be told apart on {images:,} validation images, {would}."


def _rounded(count: float) -> int:
    """To two digits: it is an estimate."""
    digits = max(0, len(str(int(count))) - 2)
    return int(round(count, -digits))


def _loss(depth: Depth) -> float:
    return depth.comparison.loss if depth.comparison else 0.0


def _seeds(depth: Depth) -> str:
    count = len(depth.group.seeds)
    return f"{count} seed" if count == 1 else f"{count} seeds"


def expectation(name: str, expected: Expectation, explored: bool, metric: str = "") -> str:
    """The accuracy that people may promise.

    Args:
        name: What it is of.
        expected: The accuracy.
        explored: Whether other seeds than these chose the configuration.
        metric: What it is, where it is no accuracy.
    """
    chose = "that did not choose it" if explored else "which also chose it"
    what = f"{metric} {expected.accuracy:.3f}".strip()
    return f"Expect {what} ± {expected.half_width:.3f} from {name} on new images ({expected.seeds} seeds {chose})."


def points(difference: float) -> str:
    """A difference of accuracies, 0..1, as people say it.

    >>> points(0.0214), points(0.01)
    ('2.1 points', '1 point')
    """
    number = f"{100 * difference:.1f}".removesuffix(".0")
    return f"{number} point" if number == "1" else f"{number} points"
