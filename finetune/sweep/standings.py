"""How a sweep's trials stand to each other after each epoch, and so which need not go on. Imports no torch."""

import math
from collections.abc import Sequence

from finetune.config import digest_of
from finetune.records.metric import metric_values
from finetune.records.result import Result
from finetune.sweep.search import DEPTH, Params
from finetune.sweep.spec import SweepSpec
from finetune.sweep.state import Running
from finetune.sweep.stopping import Race, Stopped


class Standings:
    """Of one sweep: the metric of its trials by epoch, under the sweep's rule for stopping them."""

    def __init__(self, spec: SweepSpec):
        self._spec = spec
        self._sign = 1 if spec.goal == "maximize" else -1
        self._curves: list[list[float]] = []
        """The metric of every finished trial after each epoch; larger is better."""
        self._ended: list[Stopped] = []

    def add(self, params: Params, result: Result) -> None:
        """Count a finished trial."""
        curve = self._curve(result.history)
        self._curves.append(curve)
        self._ended.append(Stopped(*_place(params), curve[-1] if curve else 0.0, result.status == "pruned"))

    def behind(self, trial: Running, running: Sequence[Running]) -> str:
        """Why `trial`, one of the `running`, need not go on; empty when it should, or is done anyway."""
        rule = self._spec.stopping
        if rule is None or len(trial.history) == trial.epochs:
            return ""
        own = self._curve(trial.history)
        found = rule.verdict(own, [*self._curves, *(self._curve(one.history) for one in running)], trial.images)
        if found is None:
            return ""
        value, threshold = (self._sign * number for number in found)
        return f"stopped at epoch {len(own)}: {value:.4g} {'below' if self._sign > 0 else 'above'} {threshold:.4g}"

    def lost_before(self, params: Params) -> str:
        """Why a trial of a race need not start; empty when it should."""
        rule = self._spec.stopping
        lost = rule.lost_before(*_place(params), self._ended) if isinstance(rule, Race) else None
        if lost is None:
            return ""
        return f"not started: the same settings fell behind at freeze depths {lost[0]:g} and {lost[1]:g}"

    def _curve(self, history: list[dict[str, float]]) -> list[float]:
        return [self._sign * value for value in metric_values(self._spec.metric, history)]


def _place(params: Params) -> tuple[float, str, str]:
    """A trial's depth, its other settings and its seed."""
    depth = params.get(DEPTH, 0)
    others = {key: value for key, value in params.items() if key != DEPTH}
    return math.inf if depth == "all" else float(depth), digest_of(others), digest_of(params.get("seed"))
