"""The sweep: ask, launch, watch, record, resume. Imports no torch."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.compose import compose_config
from finetune.config import digest_of
from finetune.records.layout import CHECKPOINT, PREDICTIONS, STOP, TRIALS
from finetune.records.metric import Incumbent, metric_values
from finetune.records.read import finished_record, records_by_age
from finetune.records.result import Result
from finetune.storage.durable import remove_leftovers, write_durably
from finetune.storage.faults import reach
from finetune.storage.store import stores_in_use
from finetune.sweep.attempts import ASKED, SICK, Attempts, Workers, speaks_for_worker
from finetune.sweep.cluster import ClusterLauncher, read_cluster
from finetune.sweep.folder import alone, claim, refuse_another, refuse_unusable
from finetune.sweep.launch import Launcher, LocalLauncher, chosen_gpus, local_slots, stop_jobs
from finetune.sweep.prepare import check_and_prepare
from finetune.sweep.records import (
    clear_attempt,
    progress_of,
    record_death,
    record_unlogged,
    record_unstarted,
    refuse_without_trials,
    reused_record,
    trial_keys,
    unfinished_trials,
)
from finetune.sweep.search import Params, Search, Tried, corners, decides_store, sharing_order, size
from finetune.sweep.spec import SweepSpec
from finetune.sweep.standings import Standings
from finetune.sweep.state import Options, Running, Sweep, result_value

_ALIKE = 3
"""So many first trials that fail for the same reason end a sweep."""
_AS_USUAL = Options()


def run_sweep(
    spec: SweepSpec,
    folder: Path,
    options: Options = _AS_USUAL,
    seed: int = 0,
    watch: Callable[[Sweep, Result | None], None] = lambda sweep, ended: None,
    show: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Sweep:
    """Run, or continue, a sweep until no trial is left; every trial leaves its record under `folder/trials/`.

    Args:
        spec: The sweep.
        folder: Where it lives; a sweep of another space that is there already is left alone.
        options: How it runs.
        seed: Of the search, not of the trials.
        watch: Called a few times a second, and with each trial's record as it ends.
        show: Called while data and activations are prepared, with what, how much of it, and the total.

    Raises:
        Refused: bad values, data or weights, or another sweep in `folder`; nothing was written.
        KeyboardInterrupt: passed on after the running trials were stopped; a later call continues.
    """
    key_of = trial_keys(spec)  # a setting that is not known is the first thing to hear of
    for other in options.reuse:
        refuse_without_trials(other)
    refuse_another(spec, folder, seed)
    refuse_unusable(folder)
    cluster = None if options.launcher == "local" else read_cluster(options.launcher)
    gpus = [] if cluster else chosen_gpus(check_and_prepare([]).gpus, options.gpus)
    gpus = gpus if gpus and _on_gpus(spec) else []
    found = check_and_prepare(_to_prepare(spec, seed), cluster is None, show, next(iter(gpus), None))
    data = (*found.datasets, *found.weights)
    refuse_another(spec, folder, seed, data)
    refuse_unusable(folder)
    environment = {"WANDB_RUN_GROUP": spec.name}
    sweep = Sweep(spec, folder, size(spec))
    search = Search(spec, seed, sharing_order)
    if spec.target is not None or options.budget is not None:  # what ends early must not end lopsided
        search = Search(replace(spec, spread=spec.spread or spec.run_cap is None), seed)
    with alone(folder), stores_in_use(found.stores):
        remove_leftovers(folder)
        claim(spec, folder, seed, data, sweep.total)
        launcher: Launcher
        if cluster is None:
            slots = local_slots(gpus, options.workers, options.trials_per_gpu)
            launcher = LocalLauncher(slots, environment, found.shared)
        else:
            launcher = ClusterLauncher(cluster, folder, environment, found.shared)
        _Loop(sweep, key_of, search, launcher, options, watch, data).run()
    return sweep


def _on_gpus(spec: SweepSpec) -> bool:
    """Whether some trial may use a GPU."""
    return any(compose_config(spec.overrides(end)).trainer.accelerator != "cpu" for end in corners(spec))


def _to_prepare(spec: SweepSpec, seed: int) -> list[tuple[list[str], int]]:
    """Trials that together use every value and every store of the sweep, with the number of trials like each."""
    ends = corners(spec)
    if spec.method == "bayes":
        return [(spec.overrides(params), max(1, size(spec) // len(ends))) for params in ends]
    like, counts = {_stores_of(end): end for end in ends}, Counter[str]()
    for params in Search(spec, seed).planned():
        name = _stores_of(params)
        like.setdefault(name, params)
        counts[name] += 1
    others = [(end, 0) for end in ends if end not in like.values()]
    return [(spec.overrides(p), count) for p, count in [*others, *((p, counts[name]) for name, p in like.items())]]


def _stores_of(params: Params) -> str:
    """Equal for trials that use the same stores."""
    return digest_of({key: value for key, value in params.items() if decides_store(key)})


class _Loop:
    """One call of `run_sweep` after its checks."""

    def __init__(
        self,
        sweep: Sweep,
        key_of: Callable[[Params], str],
        search: Search,
        launcher: Launcher,
        options: Options,
        watch: Callable[[Sweep, Result | None], None],
        data: Sequence[str] = (),
    ):
        self.sweep, self.key_of, self.search, self.launcher = sweep, key_of, search, launcher
        self.options, self.watch, self.data = options, watch, data
        self.deadline = None if options.budget is None else time.monotonic() + options.budget
        self.attempts = Attempts()
        self.again: list[tuple[Params, Path]] = []
        """Trials to start once more, after all others, so that a worker is tried with different ones."""
        self.workers = Workers()
        self.standings = Standings(sweep.spec)
        self.tried: list[Tried] = []
        """What a bayes search learns from."""

    def run(self) -> None:
        sweep = self.sweep
        if sweep.spec.method == "bayes":  # the other searches come to each record in its turn
            for result in records_by_age(sweep.folder):
                params = {key: result.params[key] for key in sweep.spec.parameters}
                if result.status == "failed" and self.options.retry_failed:
                    self.again.append((params, sweep.folder / TRIALS / result.key))
                else:
                    self._finish(params, result)
            self.again += unfinished_trials(sweep.folder, sweep.spec.parameters)
            del self.again[max(0, sweep.total - len(sweep.finished)) :]  # this call may ask for fewer trials
        try:
            while True:
                self._start()
                if not sweep.running and (sweep.ended or not self.again):
                    return
                self.watch(sweep, None)
                self.launcher.wait([trial.job for trial in sweep.running])
                self._look()
                if self.deadline is not None and time.monotonic() > self.deadline:
                    sweep.ended, sweep.out_of_time = "the budget is spent", True
                    return
        finally:
            stop_jobs(self.launcher, [trial.job for trial in sweep.running])

    def _finish(self, params: Params, result: Result) -> None:
        """Count a trial that has its record, and see whether it ends the search."""
        sweep, spec = self.sweep, self.sweep.spec
        curve = metric_values(spec.metric, result.history)
        if result.status == "complete" and not curve:
            result = record_unlogged(sweep.folder / TRIALS / result.key, result, spec.metric)
        sweep.add(params, result)
        self.standings.add(params, result)
        self.tried.append(Tried(params, curve[-1] if curve and result.status != "failed" else None))
        value = result_value(spec, result)
        if spec.target is not None and value is not None and not spec.better(spec.target, value):
            sweep.ended = f"{spec.metric} reached its target {spec.target:g}"
        reasons = {(first.status, first.reason) for _, first in sweep.finished[: _ALIKE + 1]}
        alike = len(sweep.finished) == _ALIKE and len(reasons) == 1 and result.status == "failed"
        if alike and not any(earlier.status == "complete" for earlier in records_by_age(sweep.folder)):
            sweep.ended = f"the first {_ALIKE} trials failed alike: {result.reason}"

    def _start(self) -> None:
        """Start trials until all places are taken or none is left."""
        sweep, waiting = self.sweep, list[tuple[Params, Path]]()
        while len(sweep.running) + len(waiting) < self.launcher.capacity and not sweep.ended:
            params = self.search.propose(self._tried(waiting) if sweep.spec.method == "bayes" else ())
            fresh = params is not None
            if params is not None:
                place = sweep.folder / TRIALS / self.key_of(params)
            elif self.again:
                params, place = self.again.pop(0)
            else:
                break
            record = finished_record(place)
            if record is None:
                record = reused_record(sweep.spec, params, place, self.options.reuse, self.data)
                sweep.taken += record is not None
            if record is not None and not (record.status == "failed" and self.options.retry_failed):
                self._finish(params, record)
                continue
            clear_attempt(place)
            hopeless = self.standings.lost_before(params) if fresh else None  # one that began is not given up for that
            if hopeless:
                self._finish(params, record_unstarted(place, params, hopeless))
                self.watch(sweep, sweep.finished[-1][1])
                continue
            waiting.append((params, place))
        if waiting:
            best = None if sweep.best is None else result_value(sweep.spec, sweep.best)
            incumbent = None if best is None else Incumbent(sweep.spec.metric, sweep.spec.goal, best)
            jobs = self.launcher.start([(sweep.spec.overrides(params), place) for params, place in waiting], incumbent)
            sweep.running += [Running(params, place, job) for (params, place), job in zip(waiting, jobs, strict=True)]

    def _tried(self, waiting: Sequence[tuple[Params, Path]]) -> list[Tried]:
        under_way = [trial.params for trial in self.sweep.running] + [params for params, _ in (*waiting, *self.again)]
        return [*self.tried, *(Tried(params, None, running=True) for params in under_way)]

    def _look(self) -> None:
        """Take note of new epochs, of trials that ended, and of those that make no progress."""
        sweep = self.sweep
        for trial in list(sweep.running):
            if trial.job.exitcode is not None:
                sweep.running.remove(trial)
                self._end(trial, trial.job.exitcode)
                continue
            progress = progress_of(trial.folder)
            if len(progress.get("history", [])) > len(trial.history):
                trial.history, trial.epochs, trial.images = (progress[name] for name in ("history", "epochs", "images"))
                behind = self.standings.behind(trial, sweep.running)
                if behind:
                    write_durably(trial.folder / STOP, behind.encode())
            trial.look(self.launcher.longest_wait)
            if trial.idle > self.options.stuck_after and not trial.stuck:
                trial.stuck = True
                stop_jobs(self.launcher, [trial.job])

    def _end(self, trial: Running, exitcode: int) -> None:
        """Record a trial that ended, or start it again."""
        sweep, key = self.sweep, trial.folder.name
        result = finished_record(trial.folder)
        if trial.stuck or exitcode not in ASKED:
            self._judge(trial, result is not None and speaks_for_worker(result))
        if result is None and self.attempts.again(key, exitcode, trial.stuck):
            why = "made no progress" if trial.stuck else f"ended by itself with exit code {exitcode}"
            sweep.notes.append(f"trial {key} {why}; it was started again")
            self.again.append((trial.params, trial.folder))
            return
        reach("tell", trial.folder)
        if result is None:
            starts = self.attempts.times(key)
            result = record_death(trial.folder, trial.params, exitcode, starts, trial.stuck)
        best = sweep.best
        self._finish(trial.params, result)
        for loser in {key, best.key if best else ""} - {sweep.best.key if sweep.best else ""}:
            for kept in (CHECKPOINT, PREDICTIONS):
                (sweep.folder / TRIALS / loser / kept).unlink(missing_ok=True)
        self.watch(sweep, result)

    def _judge(self, trial: Running, works: bool) -> None:
        """Set a worker aside that fails again and again while others do not."""
        worker, key = self.launcher.worker(trial.job), trial.folder.name
        if self.workers.sick(worker, key, works) and worker and self.launcher.capacity > 1:
            self.launcher.set_aside(worker)
            self.workers.forget(worker)
            self.attempts.forget(key)
            self.sweep.notes.append(f"{worker} was set aside: {SICK} trials in a row failed there")
