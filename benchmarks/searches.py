"""Ways to search a grid, on a table of benchmarks/record.py: which trials run, for how many epochs, in which order.

Each is given a draw, one sweep that might have been run, and says what it would have run.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from record import DEPTH, HEAD, RATE, Table

from finetune.report.judge import LAST_LOOK
from finetune.sweep.race import Ended, fell_behind, lost_deeper, race_order, rate_of
from finetune.sweep.stopping import Hyperband

optuna.logging.set_verbosity(optuna.logging.ERROR)

FORMER_Z = 1.5
"""Standard errors that the former race let a trial be behind the best of all."""
HYPERBAND = Hyperband(min_iter=1, eta=3, strict=True)
"""`early_terminate: {type: hyperband, min_iter: 1}`, with what W&B fills in."""


class Step(NamedTuple):
    """A trial, as far as it ran."""

    configuration: int
    before: int
    """Epochs of it that had run earlier, for an earlier trial of the same settings; they are not paid for again."""
    epochs: int
    whole: bool


@dataclass(frozen=True)
class Recorded:
    """A table, and what is worked out once of it."""

    table: Table

    @cached_property
    def truth(self) -> NDArray[np.float64]:
        """Configurations x epochs: the best accuracy so far, mean over all seeds and images."""
        return np.maximum.accumulate(self.table.right.mean(-1), axis=2).mean(1)

    @cached_property
    def as_numbers(self) -> NDArray[np.float32]:
        """`right`, as a product with counts of images wants it."""
        return self.table.right.astype(np.float32)

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """Configurations x epochs: until an epoch's end, of the fastest trial of the same freeze depth.

        Trials of one depth train the same layers, and were recorded on a machine with other work, which made some of
        them several times as slow.
        """
        table = self.table
        seconds = np.empty((len(table.depth), table.right.shape[2]))
        for depth in np.unique(table.depth):
            at_depth = table.depth == depth
            totals = table.seconds[at_depth]
            fastest = np.unravel_index(totals.argmin(), totals.shape)
            seconds[at_depth] = totals[fastest] * table.elapsed[at_depth][fastest]
        return seconds

    @cached_property
    def cost(self) -> NDArray[np.float64]:
        """The same, in one-seed grids."""
        return self.seconds / self.seconds[:, -1].sum()

    def best_of(self, depth: int) -> float:
        """What the best configuration of a freeze depth truly reaches."""
        return float(self.truth[self.table.depth == depth, -1].max())


class Draw:
    """One sweep that might have been run: the seed that explores, those that follow, and the validation images."""

    def __init__(self, recorded: Recorded, rng: np.random.Generator, new_images: bool = True):
        """With `new_images` the images are drawn with replacement."""
        self.recorded, self.table = recorded, recorded.table
        _, seeds, _, images = self.table.right.shape
        self.seed, *others = rng.permutation(seeds).tolist()
        self.fresh = [*others, *rng.choice(others, max(0, LAST_LOOK - len(others))).tolist()]
        """Seeds of the repeats, in their order; one comes again only where the table has too few."""
        self.images = rng.integers(images, size=images) if new_images else np.arange(images)
        self._counts = np.bincount(self.images, minlength=images).astype(np.float32)
        self.accuracy = self._accuracy(self.seed)
        """Configurations x epochs, with the seed that explores."""
        self.curves: list[list[float]] = np.maximum.accumulate(self.accuracy, axis=1).tolist()
        """Of each configuration the best accuracy so far, after each epoch."""

    def _accuracy(self, seed: int) -> NDArray[np.float64]:
        right = self.recorded.as_numbers[:, seed] @ self._counts
        return right.astype(np.float64) / len(self.images)

    def bits(self, configuration: int, seed: int) -> NDArray[np.bool_]:
        """1 x images: what was right in the epoch that was best on these images."""
        accuracy = self.recorded.as_numbers[configuration, seed] @ self._counts
        return self.table.right[configuration, seed, int(accuracy.argmax()), self.images][None]

    def params(self, configuration: int) -> dict[str, Any]:
        """A configuration as the settings of a trial."""
        table = self.table
        depth, rate = int(table.depth[configuration]), float(table.rate[configuration])
        return {DEPTH: depth, RATE: rate, HEAD: str(table.head[configuration])}

    def cost(self, step: Step) -> float:
        """In one-seed grids, of those epochs that had not run earlier."""
        return self.cost_until(step, step.epochs) if step.epochs > step.before else 0.0

    def cost_until(self, step: Step, epoch: int) -> float:
        """The same, at the end of an epoch, counted from 1."""
        cost = self.recorded.cost[step.configuration]
        return float(cost[epoch - 1] - (cost[step.before - 1] if step.before else 0.0))


def grid(draw: Draw, rng: np.random.Generator) -> list[Step]:
    """Every trial to its end, the deepest cut first."""
    configurations, epochs = draw.accuracy.shape
    return [Step(configuration, 0, epochs, whole=True) for configuration in range(configurations)]


def race(draw: Draw, rng: np.random.Generator) -> list[Step]:
    """The product's: the same functions, in the same order."""
    ended: list[Ended] = []
    steps = []
    images = len(draw.images)
    for configuration in in_race_order(draw):
        curve, params = draw.curves[configuration], settings_of(draw, configuration)
        depth = float(params[DEPTH])
        if lost_deeper(depth, params, [trial for trial in ended if trial.depth > depth]):
            ended.append(Ended(depth, params, [], whole=False, stopped=True, images=images))
            continue

        whole = [(rate_of(trial.params), trial.curve) for trial in ended if trial.depth == depth and trial.whole]
        behind = fell_behind(curve[:-1], rate_of(params), whole, images)
        epochs = len(curve) if behind is None else behind.epoch
        steps.append(Step(configuration, 0, epochs, whole=behind is None))
        ended.append(Ended(depth, params, curve[:epochs], behind is None, behind is not None, images))
    return steps


def in_race_order(draw: Draw) -> list[int]:
    """The configurations as the product sorts them."""

    def key(configuration: int) -> tuple[Any, ...]:
        settings = settings_of(draw, configuration)
        return -settings[DEPTH], race_order(settings)

    return sorted(range(len(draw.curves)), key=key)


def settings_of(draw: Draw, configuration: int) -> dict[str, Any]:
    """The same as `Draw.params`, with the head as a list."""
    params = draw.params(configuration)
    return {**params, HEAD: json.loads(params[HEAD])}


def former_race(draw: Draw, rng: np.random.Generator) -> list[Step]:
    """The race until November 2026: against the best of all depths after equally many epochs, small rates first."""
    steps: list[Step] = []
    table = draw.table
    for configuration in np.lexsort((table.rate, -table.depth)).tolist():
        curve = draw.curves[configuration]
        if _lost_before(configuration, steps, draw):
            continue

        everyone = [draw.curves[step.configuration][: step.epochs] for step in steps]
        epochs = next((epoch for epoch in range(1, len(curve)) if _far_behind(curve[:epoch], everyone, draw)), None)
        steps.append(Step(configuration, 0, epochs or len(curve), whole=epochs is None))
    return steps


def _far_behind(own: list[float], everyone: list[list[float]], draw: Draw) -> bool:
    value = own[-1]
    best = max((curve[len(own) - 1] for curve in everyone if len(curve) >= len(own)), default=0.0)
    error = math.sqrt((value * (1 - value) + best * (1 - best)) / len(draw.images))
    return value < best - FORMER_Z * error


def _lost_before(configuration: int, steps: Sequence[Step], draw: Draw) -> bool:
    """Whether the same settings were stopped at the two next deeper cuts; the deepest of all says nothing."""
    depths = draw.table.depth
    deeper = sorted(
        {int(depths[step.configuration]) for step in steps if depths[step.configuration] > depths[configuration]}
    )
    if len(deeper) < 3:
        return False

    settings = draw.params(configuration)
    for depth in deeper[:2]:
        trials = [step for step in steps if depths[step.configuration] == depth]
        values = {step.configuration: draw.curves[step.configuration][step.epochs - 1] for step in trials}
        same = [step for step in trials if draw.params(step.configuration) == {**settings, DEPTH: depth}]
        if not same or same[0].whole or values[same[0].configuration] >= max(values.values()):
            return False
    return True


def hyperband(draw: Draw, rng: np.random.Generator) -> list[Step]:
    """The grid in random order, one trial at a time, under W&B's stopping rule."""
    steps: list[Step] = []
    curves: list[list[float]] = []
    for configuration in rng.permutation(len(draw.curves)).tolist():
        curve = draw.curves[configuration]
        epochs = next(
            (epoch for epoch in range(1, len(curve)) if HYPERBAND.verdict(curve[:epoch], [*curves, curve[:epoch]])),
            None,
        )
        curves.append(curve[:epochs])
        steps.append(Step(configuration, 0, epochs or len(curve), whole=epochs is None))
    return steps


def tpe(draw: Draw, rng: np.random.Generator) -> list[Step]:
    """Optuna's TPE and successive halving, both as they are by default, with as many trials as the grid has.

    A point that is proposed again is looked up, which the search does not know and is not charged for.
    """
    points = {tuple(draw.params(configuration).values()): configuration for configuration in range(len(draw.curves))}
    space = {
        key: CategoricalDistribution(sorted({point[axis] for point in points}))
        for axis, key in enumerate((DEPTH, RATE, HEAD))
    }
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=int(rng.integers(2**31))),
        pruner=optuna.pruners.SuccessiveHalvingPruner(),
    )
    steps: list[Step] = []
    trained: dict[int, int] = {}
    for _ in points:
        trial = study.ask(space)
        configuration = points[tuple(trial.params[key] for key in space)]
        epochs = _reported(trial, draw.accuracy[configuration].tolist())
        whole = epochs is None
        if whole:
            study.tell(trial, draw.curves[configuration][-1])
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)

        step = Step(configuration, trained.get(configuration, 0), epochs or draw.accuracy.shape[1], whole)
        trained[configuration] = max(step.before, step.epochs)
        steps.append(step)
    return steps


def _reported(trial: optuna.Trial, accuracy: list[float]) -> int | None:
    """The epoch at which it is pruned; None where it runs to its end."""
    for epoch, value in enumerate(accuracy, start=1):
        trial.report(value, epoch)
        if epoch < len(accuracy) and trial.should_prune():
            return epoch
    return None


Search = Callable[[Draw, np.random.Generator], list[Step]]
SEARCHES: dict[str, Search] = {
    "grid": grid,
    "race": race,
    "former race": former_race,
    "hyperband (W&B)": hyperband,
    "TPE + halving (Optuna)": tpe,
}
