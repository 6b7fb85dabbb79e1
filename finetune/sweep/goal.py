"""What a sweep optimises: the metric of its file, or what its trials follow instead. Imports no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.config import METRICS as FOLLOWABLE
from finetune.errors import Refused
from finetune.records.metric import FOLLOWED, PLAIN, of_an_epoch, sign_of
from finetune.sweep.distribution import Distribution, number

METRICS = (
    *("val/acc_best", "val/acc", "val/loss", "train/acc", "train/loss"),
    *("val/loss_best", "val/balanced_acc_best", "val/balanced_acc"),
    *("val/f1_best", "val/f1", "val/auroc_best", "val/auroc"),
)
"""What a sweep can optimise. Every trial reports accuracy and losses, and of the others the one that it follows."""
_METRIC = {"name", "goal", "target", "impute", "impute_while_running"}


def read_metric(path: Path, entry: Any, method: str) -> tuple[str, str, float | None]:
    """Name, goal and target of a sweep file's `metric`.

    Raises:
        Refused: it is none, or cannot be honoured.
    """
    if not isinstance(entry, dict) or not set(entry) <= _METRIC or "name" not in entry:
        raise Refused(f"{path}: metric must be {{name: …, goal: maximize | minimize, target: NUMBER}} and nothing else")

    name, goal = entry["name"], entry.get("goal", "minimize")  # W&B's default
    if goal not in ("maximize", "minimize"):
        raise Refused(f"{path}: metric.goal {goal!r} is not known; use maximize or minimize")
    if name not in METRICS:
        raise Refused(f"{path}: metric.name {name!r} is not reported; choose from {', '.join(METRICS)}")
    refuse_wrong_goal(str(path), entry)

    for key in ("impute", "impute_while_running"):
        if method == "bayes" and entry.get(key, "false") != "false":
            raise Refused(
                f"{path}: metric.{key} {entry[key]!r} is not supported; remove it: method bayes learns from the trials "
                "that reported a value"
            )

    target = entry.get("target")
    return name, goal, None if target is None else number(f"{path}: metric", "target", target)


def followed_metric(
    path: Path,
    metric: str,
    goal: str,
    target: float | None,
    fixed: Sequence[str],
    parameters: Mapping[str, Distribution],
) -> tuple[str, str]:
    """The metric and its goal, once trials follow `trainer.metric`: a sweep for accuracy is for that then.

    Raises:
        Refused: trials would follow several metrics, or would not report the one that the file optimises.
    """
    swept = parameters[FOLLOWED].values if FOLLOWED in parameters else ()
    if len(swept) > 1:
        raise Refused(
            f"{path}: {FOLLOWED} cannot be swept, for one metric compares all trials; give it beside the file"
        )

    fixed_metric = [
        word.partition("=")[2].strip("'\"") for word in fixed if word.lstrip("+").startswith(f"{FOLLOWED}=")
    ]
    followed = str([*fixed_metric, *swept, FOLLOWABLE[0]][0] if swept else [FOLLOWABLE[0], *fixed_metric][-1])
    if metric == "val/acc_best" and followed in FOLLOWABLE[1:]:
        if target is not None:
            raise Refused(
                f"{path}: metric.target {target:g} is of val/acc, but {FOLLOWED}={followed}; write metric: {{name: "
                f"{followed}_best, goal: …, target: …}}"
            )
        return f"{followed}_best", "maximize" if sign_of(followed) > 0 else "minimize"

    name = of_an_epoch(metric)
    if name in FOLLOWABLE and name not in (*PLAIN, followed):
        raise Refused(
            f"{path}: metric.name {metric!r} is reported by trials that follow it; add {FOLLOWED}={name} to the "
            "command, or give it beside the file"
        )
    return metric, goal


def refuse_wrong_goal(where: str, metric: Mapping[str, Any]) -> None:
    """Make sure that a sweep does not look for its worst trial.

    Args:
        where: The file or the sweep, for the message.
        metric: Its `metric`; a name that no trial of ours reports may have any goal.

    Raises:
        Refused: an accuracy is to be minimized, as W&B means it where no goal is given, or a loss maximized.
    """
    name, goal = metric.get("name"), metric.get("goal")
    if name not in METRICS:
        return

    meant = "maximize" if sign_of(name) > 0 else "minimize"
    if (goal or "minimize") != meant:
        without = "" if goal else "without a goal "
        raise Refused(
            f"{where}: metric {name} {without}would be {goal or 'minimize'}d, which keeps the worst trial; "
            f"write metric: {{name: {name}, goal: {meant}}}"
        )
