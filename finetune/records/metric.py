"""What a sweep optimises, read off the epochs of a trial."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Beat:
    """The best that a sweep has so far."""

    metric: str
    goal: str
    """`maximize` or `minimize`."""
    value: float

    def by(self, history: Sequence[dict[str, float]]) -> bool:
        """Whether a trial with these epochs is better."""
        values = metric_values(self.metric, history)
        return bool(values) and (values[-1] > self.value if self.goal == "maximize" else values[-1] < self.value)


def metric_values(metric: str, history: Sequence[dict[str, float]]) -> list[float]:
    """A metric after each epoch that has it; `val/acc_best` is the best `val/acc` so far."""
    if metric != "val/acc_best":
        return [epoch[metric] for epoch in history if metric in epoch]
    return list(itertools.accumulate(metric_values("val/acc", history), max))
