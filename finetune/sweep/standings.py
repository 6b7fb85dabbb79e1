"""How a sweep's trials stand to each other: which need not go on, or start, and which are repeated. Imports no torch.

Which trials a race stops depends on their order alone, not on how fast they ran or how many at a time: a trial is
compared with those before it in the order, once they have ended. So a trial may be found to have fallen behind after
it ran to its end.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

from finetune.config import freeze_depth_number
from finetune.records.ranking import BACKBONE, Objective, next_fold
from finetune.records.result import Result
from finetune.report.bits import columns_of, values_of
from finetune.report.judge import LAST_LOOK
from finetune.report.strategy import strategy_of
from finetune.report.table import best_of_each, tabulate
from finetune.sweep.race import Ended, but_depth, fell_behind, lost_deeper, needed_order, rate_of
from finetune.sweep.repeats import Contender, Repeats, plan_repeats
from finetune.sweep.search import DEPTH, Params
from finetune.sweep.state import NO_PLACE, Finished, Running, Sweep, Waiting

_DEPTHS_AHEAD = 3
"""Freeze depths whose trials may start before the deeper ones have ended."""
_Where = tuple[tuple[str, str], float]
"""The network and the strategy of trials, and their freeze depth."""
_SEEDS = 2**32
"""Seeds are numbers below this."""


def why_to_stop(trial: Running, sweep: Sweep) -> str:
    """Why a running trial need not go on by the sweep file's own rule; empty when it should, or is done anyway."""
    spec, rule = sweep.spec, sweep.spec.stopping
    if rule is None or trial.place == NO_PLACE or len(trial.history) == trial.epochs:
        return ""

    finished = [other.curve for other in sweep.finished]
    running = [spec.curve(other.history) for other in sweep.running]
    own = spec.curve(trial.history)
    verdict = rule.verdict(own, [*finished, *running])
    if verdict is None:
        return ""

    value, threshold = (spec.sign * number for number in verdict)
    side = "below" if spec.sign > 0 else "above"
    return f"stopped at epoch {len(own)}: {value:.4g} {side} {threshold:.4g}"


def why_lost(place: int, params: Params, curve: Sequence[float], images: int, sweep: Sweep) -> str | None:
    """Why a trial lost the race of its sweep; empty where it has not, None while that depends on others under way.

    Args:
        place: Its number in the order of the exploration.
        params: Its own.
        curve: Its accuracy after each epoch so far, the last of all left out.
        images: Validation images.
        sweep: The state of all others.
    """
    depth = depth_of(params)
    others = _all_of(sweep)
    own_kind = _kind(params)  # what is best of one network, or strategy, says little of another, either
    before = [other for other in others if 0 <= other.place < place and _kind(other.params) == own_kind]
    deeper = min((own for other in before if (own := depth_of(other.params)) > depth), default=None)
    rivals = [other for other in before if depth_of(other.params) in (depth, deeper)]
    in_order = sweep.spec.method != "bayes"  # whose next trial depends on what has ended when it is proposed
    if in_order and not all(isinstance(other, Finished) and other.settled for other in rivals):
        return None

    ended = [_ended(other) for other in rivals if isinstance(other, Finished) and other.settled]
    lost_to = lost_deeper(depth, params, [other for other in ended if other.depth > depth])
    if lost_to:
        return f"not needed: {lost_to}"

    whole = [(rate_of(other.params), other.curve) for other in ended if other.depth == depth and other.whole]
    behind = fell_behind(curve, rate_of(params), whole, images)
    if behind is None:
        return ""
    return f"fell behind at epoch {behind.epoch}: {behind.value:.3f} in reach, below {behind.threshold:.3f}"


def next_of_race(sweep: Sweep) -> Waiting:
    """Which of the trials ahead starts next: the first that is known to be needed, or not to be.

    A trial that starts before that is known may run in vain. Where all would, the one goes first that is the least
    likely to: of its depth the smallest learning rate, which lost to no smaller one, with the smallest head; then the
    one with the settings that were best at the deeper cut nearest to it. It is one of the next few depths, so that the
    deepest still come first.
    """
    first_of: dict[_Where, Waiting] = {}
    for trial in sweep.ahead:
        first_of.setdefault(_where(trial.params), trial)
    near = list(first_of)[:_DEPTHS_AHEAD]
    for where in near:  # those behind the first of a depth depend on it
        trial = first_of[where]
        if why_lost(trial.place, trial.params, (), 0, sweep) is not None:
            return trial

    for rule in (_is_the_smallest, _was_best_deeper):
        for where in near:
            is_likely = rule(where, sweep)
            for trial in sweep.ahead:
                if _where(trial.params) == where and is_likely(trial.params):
                    return trial
    return sweep.ahead[0]


def _is_the_smallest(where: _Where, sweep: Sweep) -> Callable[[Params], bool]:
    """Whether a trial has the smallest head, and rate, of all of its depth."""
    smallest = min(needed_order(trial.params) for trial in _all_of(sweep) if _where(trial.params) == where)
    return lambda params: needed_order(params) == smallest


def _was_best_deeper(where: _Where, sweep: Sweep) -> Callable[[Params], bool]:
    """Whether a trial has the settings of the best whole one at the nearest deeper cut that has any."""
    kind, depth = where
    deeper = [
        trial
        for trial in sweep.finished
        if _is_whole(trial) and _kind(trial.params) == kind and depth_of(trial.params) > depth
    ]
    best = min(deeper, key=lambda trial: (depth_of(trial.params), -trial.curve[-1]), default=None)
    settings = but_depth(best.params) if best else None
    return lambda params: but_depth(params) == settings


def _all_of(sweep: Sweep) -> list[Finished | Running | Waiting]:
    return [*sweep.finished, *sweep.running, *sweep.starting, *sweep.ahead, *sweep.to_retry]


def _where(params: Params) -> _Where:
    return _kind(params), depth_of(params)


def depth_of(params: Params) -> float:
    """A trial's freeze depth as a number; 0 for all where it is not swept."""
    return float(freeze_depth_number(params.get(DEPTH, 0)))


def _kind(params: Params) -> tuple[str, str]:
    """The network, as far as it is swept, and the strategy."""
    return str(params.get(BACKBONE, "")), strategy_of(params)


def _ended(trial: Finished) -> Ended:
    stopped = trial.result.status == "pruned"
    return Ended(depth_of(trial.params), trial.params, trial.curve, _is_whole(trial), stopped, trial.images)


def _is_whole(trial: Finished) -> bool:
    return trial.result.status == "complete" and bool(trial.curve)


def next_repeats(
    explored: Sequence[Finished], record_of: Callable[[Params], Result | None], objective: Objective, most: int
) -> tuple[Repeats[Contender], list[Params]] | None:
    """What a sweep repeats next, and the parameters of those repeats that have no record yet.

    Args:
        explored: The trials of its file.
        record_of: The record of the trial with these parameters, if it ended.
        objective: What the sweep optimises, and the seed that explored; repeats have the seeds that follow.
        most: Repeats at the most, but for the first of each.

    Returns:
        None where nothing can be compared.
    """
    assert objective.explored_by is not None
    table = tabulate([trial.result for trial in explored], objective)
    if not table.groups:
        return None

    params = {trial.result.key: trial.params for trial in explored}
    records = {trial.result.key: trial.result for trial in explored}
    contenders = {name: group.keys[0] for name, group in best_of_each(table).items()}
    repeats = {
        name: [
            {**params[key], **next_fold(records[key], i), "seed": (objective.explored_by + i) % _SEEDS}
            for i in range(1, LAST_LOOK + 1)
        ]
        for name, key in contenders.items()
    }
    ended = {name: _until_none(map(record_of, of_one)) for name, of_one in repeats.items()}

    whole = [trial for trials in ended.values() for trial in trials if objective.value(trial) is not None]
    columns = columns_of(
        [[records[key], *(trial for trial in ended[name] if trial in whole)] for name, key in contenders.items()],
        objective,
    )
    plan = plan_repeats(
        {name: values_of([records[key]], objective, columns) for name, key in contenders.items()},
        {
            name: [values_of([trial], objective, columns) if trial in whole else None for trial in trials]
            for name, trials in ended.items()
        },
        objective.margin,
        most,
        tried=sum(trial.result.status in ("complete", "pruned") for trial in explored),
    )
    missing = [repeats[name][i] for name, seeds in plan.wanted.items() for i in range(len(ended[name]), seeds)]
    return plan, [] if plan.done else missing


def _until_none(trials: Iterable[Result | None]) -> list[Result]:
    return [trial for trial in itertools.takewhile(lambda trial: trial is not None, trials) if trial is not None]
