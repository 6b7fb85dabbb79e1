"""How much each swept setting decides, as Optuna measures it. Imports no torch."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.records.ranking import ACCURACY, Objective
from finetune.records.result import Result

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_MINIMUM = 5
"""Complete trials below which an importance would be noise."""


def importance(records: Sequence[Result], keys: Sequence[str], objective: Objective = ACCURACY) -> dict[str, float]:
    """How much each of the `keys` decides whether a trial is among the better ones, most first, together 1.

    Optuna's PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) over the complete trials; empty for fewer than five.

    >>> from pathlib import Path
    >>> from finetune.records.read import read_records
    >>> importance(read_records(Path("runs/local")), ["model.freeze_depth", "optim.lr"])
    {'optim.lr': 0.7..., 'model.freeze_depth': 0.2...}
    """
    complete = [r for r in records if objective.value(r) is not None and all(key in r.params for key in keys)]
    varied = [key for key in keys if len({repr(r.params[key]) for r in complete}) > 1]
    if len(complete) < _MINIMUM or not varied:
        return {}

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = {key: _axis([r.params[key] for r in complete]) for key in varied}
    study = optuna.create_study(direction="maximize")
    for record in sorted(complete, key=lambda r: r.key):
        params = {key: _value(record.params[key], axis) for key, axis in axes.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=axes, value=objective.score_of(record)))

    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _axis(values: Sequence[Any]) -> "BaseDistribution":
    """Whole numbers and numbers as ranges, logarithmic where they span a factor of ten; everything else by name."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return IntDistribution(min(values), max(values))

    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=low > 0 and high / low >= 10)

    return CategoricalDistribution(sorted({_name(value) for value in values}))


def _value(value: Any, axis: "BaseDistribution") -> Any:
    from optuna.distributions import CategoricalDistribution

    return _name(value) if isinstance(axis, CategoricalDistribution) else value


def _name(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
