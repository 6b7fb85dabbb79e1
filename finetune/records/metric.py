"""What a trial follows and a sweep optimises, read off the epochs of a trial. Imports no torch."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FOLLOWED = "trainer.metric"
"""The setting that says by which metric a trial chooses its epoch."""
PLAIN = ("val/acc", "val/loss")
"""What every trial measures: means in which each image counts as one."""
_BEST = "_best"
"""How the name of a metric ends that is the best of the epochs so far."""


@dataclass(frozen=True)
class Incumbent:
    """The value of the best trial that a sweep has so far."""

    metric: str
    goal: str
    """`maximize` or `minimize`."""
    value: float

    def matched_by(self, history: Sequence[dict[str, float]]) -> bool:
        """Whether a trial with these epochs is at least as good; one that never reported the metric is not.

        Of equals the sweep decides which model to keep, so a trial that is as good leaves its model too.
        """
        values = metric_values(self.metric, history)
        if not values:
            return False

        return values[-1] >= self.value if self.goal == "maximize" else values[-1] <= self.value


def sign_of(metric: str) -> int:
    """What makes more of a metric better: -1 for a loss, else 1.

    >>> sign_of("val/loss_best"), sign_of("val/f1")
    (-1, 1)
    """
    return -1 if of_an_epoch(metric).endswith("loss") else 1


def of_an_epoch(metric: str) -> str:
    """The metric as one epoch has it.

    >>> of_an_epoch("val/acc_best"), of_an_epoch("val/loss")
    ('val/acc', 'val/loss')
    """
    return metric.removesuffix(_BEST)


def followed_by(config: Mapping[str, Any]) -> str:
    """By which metric a trial with these flat settings chose its epoch; older versions knew accuracy alone."""
    return str(config.get(FOLLOWED, "val/acc"))


def metric_values(metric: str, history: Sequence[dict[str, float]]) -> list[float]:
    """A metric after each epoch that has it; `val/acc_best` is the best `val/acc` so far, and so on."""
    name, sign = of_an_epoch(metric), sign_of(metric)
    values = [epoch[name] for epoch in history if name in epoch]
    if not metric.endswith(_BEST):
        return values
    return list(itertools.accumulate(values, max if sign > 0 else min))


def with_best(history: Sequence[dict[str, float]], metric: str) -> Iterator[dict[str, float]]:
    """Each epoch with what the best epoch so far has of the followed `metric` and of accuracy.

    >>> [epoch["val/acc_best"] for epoch in with_best([{"val/acc": 0.7}, {"val/acc": 0.6}], "val/acc")]
    [0.7, 0.7]
    """
    best: dict[str, float] | None = None
    for epoch in history:
        if best is None or sign_of(metric) * epoch[metric] > sign_of(metric) * best[metric]:
            best = epoch
        yield {**epoch, "val/acc_best": best["val/acc"], f"{metric}{_BEST}": best[metric]}
