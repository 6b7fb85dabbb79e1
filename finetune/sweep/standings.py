"""How a sweep's trials stand to each other after each epoch, and so which need not go on. Imports no torch."""

from typing import Any

from finetune.config import freeze_depth_number
from finetune.sweep.search import DEPTH, Params
from finetune.sweep.state import Running, Sweep
from finetune.sweep.stopping import EndedTrial, Race


def why_to_stop(trial: Running, sweep: Sweep) -> str:
    """Why a running trial of the sweep need not go on; empty when it should, or is done anyway."""
    spec, rule = sweep.spec, sweep.spec.stopping
    if rule is None or len(trial.history) == trial.epochs:
        return ""

    finished = [other.curve for other in sweep.finished]
    running = [spec.curve(other.history) for other in sweep.running]
    own = spec.curve(trial.history)
    verdict = rule.verdict(own, [*finished, *running], trial.images)
    if verdict is None:
        return ""

    value, threshold = (spec.sign * number for number in verdict)
    side = "below" if spec.sign > 0 else "above"
    return f"stopped at epoch {len(own)}: {value:.4g} {side} {threshold:.4g}"


def why_not_to_start(params: Params, sweep: Sweep) -> str:
    """Why a trial of a race need not start; empty when it should."""
    rule = sweep.spec.stopping
    if not isinstance(rule, Race):
        return ""

    ended = [
        EndedTrial(
            *_place(trial.params),
            trial.curve[-1] if trial.curve else 0.0,
            trial.result.status == "pruned",
        )
        for trial in sweep.finished
    ]
    lost = rule.lost_before(*_place(params), ended)
    if lost is None:
        return ""
    return f"not started: the same settings fell behind at freeze depths {lost[0]:g} and {lost[1]:g}"


def _place(params: Params) -> tuple[float, dict[str, Any], Any]:
    """A trial's depth, its other settings, and its seed."""
    depth = params.get(DEPTH, 0)
    others = {key: value for key, value in params.items() if key != DEPTH}
    return float(freeze_depth_number(depth)), others, params.get("seed")
