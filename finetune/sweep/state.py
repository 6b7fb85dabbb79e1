"""What a sweep is while it runs: its options, the trials under way, those that finished. Imports no torch."""

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from finetune.records.metric import Incumbent, metric_values
from finetune.records.ranking import REPEATED, Objective, best_trial, configurations
from finetune.records.result import Result
from finetune.report.bits import RACED, images_behind
from finetune.sweep.jobs import Job
from finetune.sweep.repeats import Contender, Repeats
from finetune.sweep.search import Observation, Params
from finetune.sweep.spec import SweepSpec

_GLANCE = 2.0
"""Seconds that count between two looks at a trial beside the wait, at the most: who was stopped for an hour saw none
of it."""


@dataclass(frozen=True)
class Options:
    """How a sweep runs; none of it changes what sweep it is."""

    workers: int | None = None
    """Trials at a time; by default one a GPU, else one a core and four at the most."""
    gpus: str = "all"
    """`all`, or numbers of GPUs such as `0,2`."""
    trials_per_gpu: int | None = None
    """Trials that share a GPU; by default several where all train heads alone, as far as its memory goes."""
    budget: float | None = None
    """Seconds after which running trials are stopped and no other starts."""
    reuse: tuple[Path, ...] = ()
    """Folders of sweeps, or of runs, whose records count as this sweep's where the settings are the same."""
    launcher: str = "local"
    """Where trials run: `local`, `slurm`, or a file of settings like conf/launcher/slurm.yaml."""
    margin: float | None = None
    """The difference of accuracy that is worth having, 0..1. With it a sweep ends with a verdict: it stops trials that
    can hardly become the best of their depth, then repeats those between which it has to decide. Without it, the
    trials of the file are run as they are, and no others."""
    retry_failed: bool = False
    """Run failed trials again; otherwise their records stand."""
    stuck_after: float = 900.0
    """Seconds without a sign of progress after which a trial is ended, and started once more."""


NO_PLACE = -1
"""Of a trial that is in no race: a repeat, or one that is started once more after all others."""


@dataclass
class Running:
    """A trial under way."""

    params: Params
    folder: Path
    job: Job
    place: int = NO_PLACE
    """Its number in the order of the exploration."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Its epochs so far."""
    epochs: int | None = None
    """How many there will be, once known."""
    images: int = 0
    """Validation images."""
    idle: float = 0.0
    """Seconds of our own watching since it last made progress."""
    stuck: bool = False
    """Whether it was ended for that."""
    compared: tuple[int, int] = (0, 0)
    """How many trials had ended, and how many epochs it had, when it was last compared with them."""
    _heartbeat: str = ""
    _looked: float = 0.0

    def note(self, heartbeat: str, wait: float, stopped: bool = False) -> None:
        """Take note of whether it made progress since the last look.

        Args:
            heartbeat: What changes when it does; empty while it waits for its turn on a cluster.
            wait: The longest pause between two looks, in seconds.
            stopped: Whether its process was stopped, as by Ctrl-Z, and may yet be continued.
        """
        now = time.monotonic()
        unchanged = heartbeat == self._heartbeat and heartbeat != ""
        if not unchanged or self.job.waits:
            self.idle = 0.0
        elif not stopped:
            self.idle += min(now - self._looked, wait + _GLANCE)
        self._heartbeat, self._looked = heartbeat, now


@dataclass(frozen=True)
class Waiting:
    """A trial to be started; perhaps again, for it left no record, or failed in an earlier call."""

    params: Params
    folder: Path
    place: int = NO_PLACE
    """Its number in the order of the exploration."""


@dataclass(frozen=True)
class Finished:
    """A trial that has its record."""

    params: Params
    result: Result
    curve: list[float]
    """The sweep's metric after each epoch that has it, signed so that larger is better."""
    place: int = NO_PLACE
    """Its number in the order of the exploration."""
    settled: bool = True
    """Whether it stands as it is; otherwise a trial before it, still under way, may show that it fell behind."""

    @classmethod
    def of(
        cls, spec: SweepSpec, params: Params, result: Result, place: int = NO_PLACE, settled: bool = True
    ) -> "Finished":
        """Its curve is worked out here, once: ten thousand trials are compared after every epoch of any of them."""
        return cls(params, result, spec.curve(result.history), place, settled)

    @cached_property
    def images(self) -> int:
        """Validation images, as many as its metric counts as; 0 where it is not known."""
        return images_behind(self.result)


@dataclass(frozen=True)
class Forecast:
    """Seconds of the trials that this call ran, all workers together."""

    estimated: float
    took: float


@dataclass
class Sweep:
    """The state of one sweep: what finished, what runs. Rebuilt from the records at every start."""

    spec: SweepSpec
    folder: Path
    total: int
    """Trials there will be at the most, as far as is known: repeats come when it is known what to repeat."""
    objective: Objective
    """What it optimises, and how that is judged."""
    finished: list[Finished] = field(default_factory=list)
    """In the order in which this process learned of them."""
    running: list[Running] = field(default_factory=list)
    starting: list[Waiting] = field(default_factory=list)
    """About to run."""
    ahead: list[Waiting] = field(default_factory=list)
    """The next of the exploration, in its order."""
    to_retry: list[Waiting] = field(default_factory=list)
    """To be started once more, after all others, so that a worker is tried with different ones."""
    ended: str = ""
    """Why it stopped before its last trial; empty otherwise."""
    out_of_time: bool = False
    """Whether that was the budget, so that the same call would go on."""
    notes: list[str] = field(default_factory=list)
    """What went wrong without ending it: trials started again, workers set aside."""
    taken: int = 0
    """How many finished trials came from `Options.reuse`."""
    repeats: Repeats[Contender] | None = None
    """What is repeated, and why; None while it explores, and where it repeats nothing."""
    capacity: int = 1
    """Trials at a time."""
    forecast: Forecast | None = None
    """What the trials that ran were to take, and took; None where nothing was measured before."""

    @property
    def results(self) -> list[Result]:
        """The records of the finished trials, in their order."""
        return [trial.result for trial in self.finished]

    @property
    def best(self) -> Result | None:
        """The complete trial with the best metric; of equals, the deepest frozen."""
        complete = [trial for trial in self.finished if trial.result.status == "complete" and trial.curve]
        if not complete:
            return None

        best = min(complete, key=lambda trial: (-trial.curve[-1], -(trial.result.freeze_depth or 0), trial.result.key))
        return best.result

    @property
    def races(self) -> bool:
        """Whether trials are stopped that can hardly become the best of their depth.

        Not where the file has a rule of its own, or says itself what is repeated; and a race compares no losses.
        """
        explores = self.objective.explored_by is not None
        return explores and self.spec.stopping is None and self.spec.metric in RACED

    @property
    def has_repeats(self) -> bool:
        """Whether several trials have one configuration, so that the best is the one with the best mean."""
        return any(key in self.spec.parameters for key in REPEATED) or self.repeats is not None

    @property
    def incumbent(self) -> Incumbent | None:
        """What the next trial must be as good as for its model to be of use; None where any may be."""
        value = None if self.best is None else result_value(self.spec, self.best)
        if value is None or self.has_repeats:
            return None
        return Incumbent(self.spec.metric, self.spec.goal, value)

    def worth_keeping(self, candidates: int = 1) -> set[str]:
        """Keys of the trials whose models are worth keeping: of each of the best configurations, the best trial's."""
        if self.best is None:
            return set()

        results, objective = self.results, self.objective
        if self.repeats is not None and candidates > 1:
            # of a configuration with one new seed the explorer still judges, and its model is gone
            results = [result for result in results if result.seed != objective.explored_by]
            objective = replace(objective, explored_by=None)

        best_first = configurations(results, objective)[:candidates] if self.has_repeats else []
        if not best_first:  # also where all are refits, which nothing compares
            return {self.best.key}
        return {best_trial(self._new(trials), objective).key for trials in best_first}

    def _new(self, trials: list[Result]) -> list[Result]:
        """Those of a configuration's trials that may still have a model: not the explorer's, where others follow."""
        if self.repeats is None:
            return trials
        return [trial for trial in trials if trial.seed != self.objective.explored_by] or trials

    @property
    def observed(self) -> list[Observation]:
        """What a bayes search learns from: the finished trials, then those that run."""
        finished = [self._observation(trial) for trial in self.finished]
        return [*finished, *(Observation(trial.params, None, running=True) for trial in self.running)]

    def _observation(self, trial: Finished) -> Observation:
        failed = trial.result.status == "failed"
        value = self.spec.sign * trial.curve[-1] if trial.curve and not failed else None
        stopped_after = len(trial.curve) if trial.result.status == "pruned" else None
        return Observation(trial.params, value, stopped_after=stopped_after)


def result_value(spec: SweepSpec, result: Result) -> float | None:
    """The metric the sweep optimises, of a complete trial; else None."""
    values = metric_values(spec.metric, result.history) if result.status == "complete" else []
    return values[-1] if values else None
