"""What a sweep optimises, read off the epochs of a trial."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


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


def metric_values(metric: str, history: Sequence[dict[str, float]]) -> list[float]:
    """A metric after each epoch that has it; `val/acc_best` is the best `val/acc` so far."""
    if metric != "val/acc_best":
        return [epoch[metric] for epoch in history if metric in epoch]
    return list(itertools.accumulate(metric_values("val/acc", history), max))
