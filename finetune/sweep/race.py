"""Which trials of an exploration can hardly become the best of their depth. Knows curves and settings, no records.

Of several networks, each has a race of its own.

A trial is compared with whole ones of its own depth, for what is best at one depth says little of another: shallow cuts
start slowly and end high. So do large learning rates, so of one head these come first; and small heads before others,
for these are what trials of all rates can be compared with soonest. A trial is granted what a whole one with a rate no
smaller than its own gained: with a schedule that decays, a larger rate gains its accuracy later.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune.sweep.search import DEPTH

_ERRORS = 1.5
"""Standard errors of the difference of two accuracies that a trial may be behind."""
_SHARE_OF_GAIN = 0.8
"""Of what a whole trial gained, granted to one that is behind: it rarely gains all of it (docs/log.md)."""
_LOST_BY = 0.3
"""Standard errors of the difference by which a learning rate loses to a smaller one, at the least: by less it may have
been chance, and the next cut would be left without it (docs/log.md)."""
RATE = "optim.lr"
_HEAD = "model.head.hidden"


class Behind(NamedTuple):
    """Where a trial fell behind."""

    epoch: int
    """Counted from 1."""
    value: float
    """Its accuracy then, with what it may still gain."""
    threshold: float
    """What it should have reached."""


def race_order(params: dict[str, Any]) -> tuple[int, float]:
    """A key that sorts the trials of one depth: the smallest head first, and of one head the largest learning rate.

    >>> race_order({"optim.lr": 0.03, "model.head.hidden": [128]})
    (128, -0.03)
    """
    return _head_size(params), -rate_of(params)


def needed_order(params: dict[str, Any]) -> tuple[int, float]:
    """A key that sorts the trials of one depth: those first that are the least likely to turn out not to be needed."""
    return _head_size(params), rate_of(params)


def _head_size(params: dict[str, Any]) -> int:
    hidden = params.get(_HEAD, [])
    return sum(hidden) if isinstance(hidden, list) else 0


def rate_of(params: dict[str, Any]) -> float:
    """A trial's learning rate; 0 for all where it is not swept."""
    return float(params.get(RATE, 0))


def fell_behind(
    own: Sequence[float], rate: float, whole: Sequence[tuple[float, Sequence[float]]], images: int
) -> Behind | None:
    """The first epoch after which a trial can hardly become the best of its depth; None while it may.

    It is granted most of the gain that a whole trial of its depth made from the same epoch on: one with the same
    learning rate, or the next larger one, and of several the largest gain. Where there is none, nothing is known of it.

    >>> behind = fell_behind([0.40, 0.45], 0.01, whole=[(0.03, [0.70, 0.80])], images=500)
    >>> behind.epoch, round(behind.value, 2), round(behind.threshold, 2)
    (1, 0.48, 0.76)
    >>> fell_behind([0.40, 0.45], 0.1, whole=[(0.03, [0.70, 0.80])], images=500)

    Args:
        own: Its accuracy after each epoch, 0..1, but for the last of all: who has run that may as well stay.
        rate: Its learning rate.
        whole: The trials of its depth that ran to their end: the rate of each, and its accuracy after each epoch.
        images: Validation images.
    """
    best = max((curve[-1] for _, curve in whole), default=0.0)
    nearest = min((other for other, _ in whole if other >= rate), default=None)
    alike = [curve for other, curve in whole if other == nearest]
    for epoch, value in enumerate(own):
        gains = [curve[-1] - curve[epoch] for curve in alike if len(curve) > epoch]
        if not gains or images == 0:
            break

        reach = min(1.0, value + _SHARE_OF_GAIN * max(gains))
        threshold = best - _ERRORS * _error_between(reach, best, images)
        if reach < threshold:
            return Behind(epoch + 1, reach, threshold)
    return None


def _error_between(first: float, second: float, images: int) -> float:
    """The standard error of the difference of two accuracies."""
    return math.sqrt((first * (1 - first) + second * (1 - second)) / images)


@dataclass(frozen=True)
class Ended:
    """A trial of the exploration that ended."""

    depth: float
    """Freeze depth; `all` is infinite."""
    params: dict[str, Any]
    """The swept settings."""
    curve: Sequence[float]
    """Its accuracy after each epoch."""
    whole: bool
    """Whether it ran to its end."""
    stopped: bool
    """Whether the race stopped it, or did not start it."""
    images: int
    """Validation images; 0 where it is not known how many, as of older records."""


def lost_deeper(depth: float, params: dict[str, Any], ended: Sequence[Ended]) -> str:
    """What a trial's settings lost to at the next deeper freeze depth, in words; empty where they did not.

    The more is trained, the smaller is the learning rate that suits it, and the less a larger head adds. So what was
    too large for a deeper cut is too large for this one; what was too small there may be right here. The same settings
    must have been tried there, as in a grid; otherwise a depth might be left without any trial.

    Args:
        depth: The trial's.
        params: Its swept settings.
        ended: All trials of deeper cuts of the same network.
    """
    deeper = min((trial.depth for trial in ended if trial.depth > depth), default=None)
    trials = [trial for trial in ended if trial.depth == deeper]
    same = [trial for trial in trials if but_depth(trial.params) == but_depth(params)]
    whole = [trial for trial in trials if trial.whole]
    if not whole or not any(trial.whole or trial.stopped for trial in same):
        return ""

    best = max(whole, key=lambda trial: trial.curve[-1])
    if _lost(params, best, whole, rate_of, _LOST_BY):
        return f"at freeze depth {deeper:g} this learning rate lost to a smaller one"
    if _lost(params, best, whole, _head_size, 0.0):  # of two that are as good, the smaller head will do
        return f"at freeze depth {deeper:g} this head lost to a smaller one"
    return ""


def _lost(
    params: dict[str, Any],
    best: Ended,
    whole: Sequence[Ended],
    size_of: Callable[[dict[str, Any]], float],
    errors: float,
) -> bool:
    """Whether the best has a smaller rate, or head, and none with this one's came as near as so many errors."""
    if size_of(best.params) >= size_of(params):
        return False

    top = best.curve[-1]
    for trial in whole:
        last = trial.curve[-1]
        error = _error_between(last, top, best.images) if best.images else 0.0
        if size_of(trial.params) == size_of(params) and last > top - errors * error:
            return False
    return True


def but_depth(params: dict[str, Any]) -> dict[str, Any]:
    """A trial's settings but for its freeze depth."""
    return {key: value for key, value in params.items() if key != DEPTH}
