"""Which parameters to try next. The only home of Optuna."""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.config import digest_of, freeze_depth_number, typed
from finetune.sweep.distribution import Distribution
from finetune.sweep.spec import SweepSpec

Params = dict[str, Any]
DEPTH = "model.freeze_depth"
_STARTUP = 10
"""Random trials before Optuna's sampler starts to learn."""
_REPEATS = 1000
"""Random draws that must all be repeats before a space counts as used up."""


@dataclass(frozen=True)
class Observation:
    """A trial that was started before, as a bayes search learns from it."""

    params: Params
    value: float | None
    """Its metric, of a stopped one the last; None while it runs, when it failed, or was stopped before it had one."""
    running: bool = False
    stopped_after: int | None = None
    """Epochs after which it was stopped for being behind; its metric is no match for that of whole trials."""


def size(spec: SweepSpec) -> int:
    """Trials the sweep will hold: exact for a grid, at the most for the others."""
    if spec.method != "grid":
        assert spec.run_cap is not None
        return spec.run_cap

    points = math.prod(len({digest_of(value) for value in d.choices or ()}) for d in spec.parameters.values())
    return min(points, spec.run_cap or points)


def planned_trials(spec: SweepSpec, seed: int = 0, may_end_early: bool = False) -> Iterator[Params]:
    """The trials of a grid or random search, each once.

    Args:
        spec: The sweep.
        seed: Decides the draws of a random search.
        may_end_early: Go through a whole grid all over instead of in the order of the file, so that its first trials
            are of every value. Those of a `run_cap` in the file stay its first ones, as W&B has it.
    """
    if spec.method == "random":
        points = _random(spec, str(seed))
    elif spec.spread or (may_end_early and spec.run_cap is None):
        points = _spread(spec)
    else:
        points = _grid(spec)
    yield from itertools.islice(_distinct(points), spec.run_cap)


class Search:
    """Proposes the trials of one sweep, one after the other and each once.

    Those of a grid or random search depend on the spec and the seed alone. A bayes search depends on what was observed
    too, in its order.
    """

    def __init__(self, spec: SweepSpec, seed: int = 0, planned: Iterable[Params] | None = None):
        """`planned` are the trials of a grid or random search in another order than that of `planned_trials`."""
        self._spec, self._seed = spec, seed
        self._planned = iter(planned_trials(spec, seed) if planned is None else planned)

    def propose(self, observed: Sequence[Observation] = ()) -> Params | None:
        """The next trial's parameters, or None when there is none left.

        Args:
            observed: The trials that were started before; a bayes search learns from them.
        """
        if self._spec.method != "bayes":
            return next(self._planned, None)
        if len(observed) >= size(self._spec):
            return None

        known = {_name(trial.params) for trial in observed}
        drawn = itertools.islice(_random(self._spec, f"{self._seed}:{len(observed)}"), _REPEATS)
        for params in itertools.chain([_suggestion(self._spec, self._seed, observed)], drawn):
            if _name(params) not in known:
                return params
        return None


def decides_store(key: str) -> bool:
    """Whether trials that differ in this key may use other stores of activations, or use them more often."""
    if key == "model.head.init":  # which reads the features of all images
        return True
    if key.startswith("model.head.") or key in ("data.batch_size", "data.workers"):
        return False
    return key.startswith(("model.", "data.", "augment.", "cache.", "trainer.")) or key == "seed"


def sharing_order(params: Params) -> tuple[Any, ...]:
    """A key that puts trials with the same stores side by side, the deepest frozen and so cheapest first."""
    depth = params.get(DEPTH, 0)
    others = {key: value for key, value in params.items() if decides_store(key) and key not in ("seed", DEPTH)}
    return digest_of(others), -freeze_depth_number(depth), digest_of(params.get("seed"))


def corners(spec: SweepSpec) -> list[Params]:
    """Few trials that together use every listed value and every end of a range, to check before a sweep starts."""
    ends = {key: list(d.values) or [d.at(0.0), d.at(1 - 1e-12)] for key, d in spec.parameters.items()}
    longest = max(map(len, ends.values()))
    return [{key: values[min(i, len(values) - 1)] for key, values in ends.items()} for i in range(longest)]


def _name(params: Params) -> str:
    """The same for a point that was just proposed, and for one that was read back from a record."""
    return digest_of({key: typed(key, value) for key, value in params.items()})


def _grid(spec: SweepSpec) -> Iterator[Params]:
    axes = [distribution.choices or () for distribution in spec.parameters.values()]
    return (dict(zip(spec.parameters, values, strict=True)) for values in itertools.product(*axes))


def _spread(spec: SweepSpec) -> Iterator[Params]:
    """A grid's points, some of them again: of each axis, all values come before one comes again."""
    axes = {key: distribution.choices or () for key, distribution in spec.parameters.items()}
    shuffled = zip(*(_shuffled_again(values, seed=key) for key, values in axes.items()), strict=True)
    points = (dict(zip(axes, values, strict=True)) for values in shuffled)

    # the last points of a grid are rarely drawn; after four times as many draws as it has points they just follow
    draws = 4 * math.prod(map(len, axes.values()))
    return itertools.chain(itertools.islice(points, draws), _grid(spec))


def _shuffled_again(values: Sequence[Any], seed: str) -> Iterator[Any]:
    """All of `values` in a random order, then all of them in another, without end."""
    source = random.Random(seed)  # noqa: S311
    while True:
        yield from source.sample(values, len(values))


def _random(spec: SweepSpec, seed: str) -> Iterator[Params]:
    for i in itertools.count():
        source = random.Random(f"{seed}:{i}")  # noqa: S311
        yield {key: distribution.at(source.random()) for key, distribution in spec.parameters.items()}


def _distinct(points: Iterator[Params]) -> Iterator[Params]:
    """Each point once; ends when so many in a row were repeats that the space must be used up."""
    seen: set[str] = set()
    repeats = 0
    for params in points:
        digest = digest_of(params)
        repeats = repeats + 1 if digest in seen else 0
        if repeats > _REPEATS:
            return
        if not repeats:
            seen.add(digest)
            yield params


def _suggestion(spec: SweepSpec, seed: int, observed: Sequence[Observation]) -> Params:
    """Optuna's next point, by a multivariate Parzen estimator that takes running trials for bad ones.

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
        seed=random.Random(f"{seed}:{len(observed)}").getrandbits(32),  # noqa: S311
    )
    study = optuna.create_study(direction=optuna.study.StudyDirection[spec.goal.upper()], sampler=sampler)

    for trial in observed:
        shares = {key: _share(spec.parameters[key], value) for key, value in trial.params.items()}
        study.add_trial(optuna.create_trial(**_outcome(trial), params=shares, distributions=space))

    suggested = study.ask(space).params
    return {key: _value(distribution, suggested[key]) for key, distribution in spec.parameters.items()}


def _outcome(trial: Observation) -> dict[str, Any]:
    """How Optuna is told of a trial; of stopped ones its sampler takes those that came further for better."""
    import optuna

    states = optuna.trial.TrialState
    if trial.running:
        return {"state": states.RUNNING}
    if trial.stopped_after is not None:
        steps = {} if trial.value is None else {trial.stopped_after: trial.value}
        return {"state": states.PRUNED, "intermediate_values": steps}
    return {"state": states.FAIL} if trial.value is None else {"state": states.COMPLETE, "value": trial.value}


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
