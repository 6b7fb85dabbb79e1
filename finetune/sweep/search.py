"""Which parameters to try next. The only home of Optuna."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.config import digest_of
from finetune.sweep.distribution import Distribution
from finetune.sweep.spec import SweepSpec

Params = dict[str, Any]
_STARTUP = 10
"""Random trials before Optuna's sampler starts to learn."""


@dataclass(frozen=True)
class Tried:
    """A trial that was started before."""

    params: Params
    value: float | None
    """Its metric; None while it runs or when it failed."""
    running: bool = False


def size(spec: SweepSpec) -> int:
    """Trials the sweep will hold: exact for a grid, at the most for the others."""
    if spec.method == "grid":
        return len(fixed_trials(spec, 0))
    assert spec.run_cap is not None
    return spec.run_cap


def propose(spec: SweepSpec, seed: int, tried: Sequence[Tried]) -> Params | None:
    """The next trial's parameters, or None when there is none left.

    The trials of a grid or random search depend on the spec and `seed` alone. A bayes search depends on what was
    `tried` too, in its order.
    """
    known = {digest_of(trial.params) for trial in tried}
    if spec.method != "bayes":
        left = (params for params in fixed_trials(spec, seed) if digest_of(params) not in known)
        return next(left, None)
    if len(tried) >= size(spec):
        return None
    fresh = (params for params in _suggestions(spec, seed, tried) if digest_of(params) not in known)
    return next(fresh, None)


def fixed_trials(spec: SweepSpec, seed: int) -> list[Params]:
    """Every trial of a grid, or of a random search, in order and without repeats."""
    if spec.method == "grid":
        axes = [distribution.choices or () for distribution in spec.parameters.values()]
        points: Iterator[Params] = (
            dict(zip(spec.parameters, values, strict=True)) for values in itertools.product(*axes)
        )
        return list(itertools.islice(_distinct(points), spec.run_cap))
    draws = (_draw(spec, random.Random(f"{seed}:{i}")) for i in range(50 * size(spec)))  # noqa: S311
    return list(itertools.islice(_distinct(draws), spec.run_cap))


def corners(spec: SweepSpec) -> list[Params]:
    """Few trials that together use every listed value and every end of a range, to check before a sweep starts."""
    ends = {key: list(d.values) or [d.at(0.0), d.at(1 - 1e-12)] for key, d in spec.parameters.items()}
    longest = max(map(len, ends.values()))
    return [{key: values[min(i, len(values) - 1)] for key, values in ends.items()} for i in range(longest)]


def _distinct(points: Iterator[Params]) -> Iterator[Params]:
    seen = set()
    for params in points:
        digest = digest_of(params)
        if digest not in seen:
            seen.add(digest)
            yield params


def _draw(spec: SweepSpec, source: random.Random) -> Params:
    return {key: distribution.at(source.random()) for key, distribution in spec.parameters.items()}


def _suggestions(spec: SweepSpec, seed: int, tried: Sequence[Tried]) -> Iterator[Params]:
    """Optuna's suggestion, then random ones for when that was tried already.

    Optuna searches each listed parameter as a category and every other on 0..1, the share of the distribution below
    the value; so every distribution of the schema can be searched.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: _axis(distribution) for key, distribution in spec.parameters.items()}
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=_STARTUP,
        multivariate=True,
        constant_liar=True,
        seed=random.Random(f"{seed}:{len(tried)}").getrandbits(32),  # noqa: S311
    )
    direction = (
        optuna.study.StudyDirection.MAXIMIZE if spec.goal == "maximize" else optuna.study.StudyDirection.MINIMIZE
    )
    study = optuna.create_study(direction=direction, sampler=sampler)
    states = optuna.trial.TrialState
    for trial in tried:
        state = states.RUNNING if trial.running else states.FAIL if trial.value is None else states.COMPLETE
        shares = {key: _share(spec.parameters[key], value) for key, value in trial.params.items()}
        study.add_trial(optuna.create_trial(state=state, value=trial.value, params=shares, distributions=space))
    asked = study.ask(space).params
    yield {key: _value(distribution, asked[key]) for key, distribution in spec.parameters.items()}
    for i in range(100):
        yield _draw(spec, random.Random(f"{seed}:{len(tried)}:{i}"))  # noqa: S311


def _axis(distribution: Distribution) -> Any:
    import optuna

    if distribution.values:
        return optuna.distributions.CategoricalDistribution(list(range(len(distribution.values))))
    return optuna.distributions.FloatDistribution(0.0, 1.0)


def _value(distribution: Distribution, share: Any) -> Any:
    return distribution.values[share] if distribution.values else distribution.at(float(share))


def _share(distribution: Distribution, value: Any) -> Any:
    """The inverse of `_value`, by bisection: values rise with the share."""
    if distribution.values:
        return distribution.values.index(value)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if distribution.at(middle) < value else (low, middle)
    return high
