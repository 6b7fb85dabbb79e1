"""The records as an Optuna study: its importance of parameters, and a database that optuna-dashboard opens."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.records.result import Result

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


_MINIMUM = 5
"""Complete trials below which an importance would be noise."""


def importance(records: Sequence[Result], keys: Sequence[str]) -> dict[str, float]:
    """How much each of the `keys` decides whether a trial is among the better ones, most first, together 1.

    Optuna's PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) over the complete trials; empty for fewer than five.
    """
    import optuna

    complete = [r for r in records if r.status == "complete" and all(key in r.params for key in keys)]
    varied = [key for key in keys if len({repr(r.params[key]) for r in complete}) > 1]
    if len(complete) < _MINIMUM or not varied:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials(_trials(complete, varied, {}))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def export(records: Sequence[Result], keys: Sequence[str], ended: Mapping[str, float], path: Path, name: str) -> None:
    """Write the trials as a study into a SQLite file at `path`, which is not there yet.

    Args:
        records: Of the sweep; failed trials keep their reason.
        keys: The swept ones.
        ended: When each trial ended, by its key, seconds since 1970.
        path: The database.
        name: Of the study.
    """
    import optuna

    path.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        study.set_user_attr("objective", "val/acc_best")
        study.add_trials(_trials(records, keys, ended))
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _trials(records: Sequence[Result], keys: Sequence[str], ended: Mapping[str, float]) -> list["FrozenTrial"]:
    from optuna.trial import FrozenTrial, TrialState

    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    axes = {key: _axis([r.params[key] for r in records if key in r.params]) for key in keys}
    trials = []
    for number, record in enumerate(sorted(records, key=lambda r: (ended.get(r.key, 0.0), r.key))):
        state = states.get(record.status, TrialState.FAIL)
        if state == TrialState.COMPLETE and record.val_acc_best is None:
            state = TrialState.FAIL
        own = [key for key in keys if key in record.params]
        end = ended.get(record.key, 0.0)
        trials.append(
            FrozenTrial(
                number=number,
                trial_id=number,
                state=state,
                value=record.val_acc_best if state == TrialState.COMPLETE else None,
                datetime_start=datetime.fromtimestamp(end - record.seconds.get("total", 0.0)),
                datetime_complete=datetime.fromtimestamp(end),
                params={key: _value(record.params[key], axes[key]) for key in own},
                distributions={key: axes[key] for key in own},
                user_attrs={"trial": record.key, "seed": record.seed, "reason": record.reason, **record.figures()},
                system_attrs={},
                intermediate_values={int(e["epoch"]): e["val/acc"] for e in record.history if "val/acc" in e},
            )
        )
    return trials


def _axis(values: Sequence[Any]) -> "BaseDistribution":
    """Whole numbers and numbers as ranges, logarithmic where they span a factor of ten; everything else by name."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if values and all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        return IntDistribution(min(values), max(values))
    if values and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=low > 0 and high / low >= 10)
    return CategoricalDistribution(sorted({_named(value) for value in values}))


def _value(value: Any, axis: "BaseDistribution") -> Any:
    return _named(value) if type(axis).__name__ == "CategoricalDistribution" else value


def _named(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
