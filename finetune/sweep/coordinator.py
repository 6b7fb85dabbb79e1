"""The coordinator of a sweep: proposes, starts, watches and records its trials. Imports no torch."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune.config import key_of
from finetune.errors import Refused
from finetune.records.layout import CHECKPOINT, PREDICTIONS, STOP, TRIALS
from finetune.records.read import finished_record, records_by_age
from finetune.records.result import Result
from finetune.storage.durable import write_durably
from finetune.storage.faults import reach
from finetune.sweep.attempts import BY_SIGNAL, FAILURES, Attempts, Workers, proves_worker_healthy
from finetune.sweep.children import is_stopped
from finetune.sweep.jobs import Launcher, stop_jobs
from finetune.sweep.records import (
    ReusableRecords,
    cause_of_death,
    clear_attempt,
    heartbeat_of,
    progress_of,
    record_unlogged,
    unfinished_trials,
    unrecorded,
)
from finetune.sweep.search import Observation, Params, Search
from finetune.sweep.standings import why_not_to_start, why_to_stop
from finetune.sweep.state import Finished, Options, Running, Sweep, result_value

_SAME_FAILURES = 3
"""So many first trials that fail for the same reason end a sweep."""
_CANDIDATES = 8
"""Configurations whose models are kept while seeds of them are still to come, for any may turn out the best."""


class Coordinator:
    """Runs the trials of one sweep, whose state it keeps in `sweep`."""

    def __init__(
        self,
        sweep: Sweep,
        settings_of: Callable[[Params], dict[str, Any]],
        search: Search,
        launcher: Launcher,
        options: Options,
        watch: Callable[[Sweep, Result | None], None],
        reusable: ReusableRecords | None = None,
        deadline: float = math.inf,
    ):
        """`settings_of` gives all settings of a trial from its parameters; `reusable` has the records of other folders
        that count here. At the `deadline`, by the monotonic clock, running trials are stopped and no other starts.
        """
        self._sweep, self._settings_of, self._search = sweep, settings_of, search
        self._launcher, self._options, self._watch, self._reusable = launcher, options, watch, reusable
        self._deadline = deadline
        self._attempts = Attempts()
        self._workers = Workers()
        self._to_retry: list[tuple[Params, Path]] = []
        """Trials to start once more, after all others, so that a worker is tried with different ones."""

    def run(self) -> None:
        """Go on until no trial is left, the search has ended, or the budget is spent."""
        sweep = self._sweep
        if sweep.spec.method == "bayes":  # the other searches come to each record in its turn
            self._learn_from_records()
        try:
            while True:
                if time.monotonic() > self._deadline:
                    sweep.ended, sweep.out_of_time = "the budget is spent", True
                    return

                self._start()
                if not sweep.running and (sweep.ended or not self._to_retry):
                    self._drop_all_models_but_the_best()
                    return

                self._watch(sweep, None)
                self._launcher.wait([trial.job for trial in sweep.running])
                self.look()
        finally:
            stop_jobs(self._launcher, [trial.job for trial in sweep.running])

    def _learn_from_records(self) -> None:
        """Take note of the trials of earlier calls: those that have records, then those that were under way."""
        sweep = self._sweep
        for result in records_by_age(sweep.folder):
            params = {key: result.params[key] for key in sweep.spec.parameters}
            if result.status == "failed" and self._options.retry_failed:
                self._to_retry.append((params, sweep.folder / TRIALS / result.key))
            else:
                self._finish(params, result)

        self._to_retry += unfinished_trials(sweep.folder, sweep.spec.parameters)
        del self._to_retry[max(0, sweep.total - len(sweep.finished)) :]  # this call may ask for fewer trials

    def _start(self) -> None:
        """Start trials until all places are taken or none is left."""
        sweep = self._sweep
        to_start: list[tuple[Params, Path]] = []
        while len(sweep.running) + len(to_start) < self._launcher.capacity and not sweep.ended:
            proposed = self._propose(to_start)
            if proposed is not None:
                params, folder = proposed, sweep.folder / TRIALS / key_of(self._settings_of(proposed))
            elif self._to_retry:
                params, folder = self._to_retry.pop(0)
            else:
                break

            record = self._usable_record(params, folder)
            if record is not None:
                self._finish(params, record)
                continue

            clear_attempt(folder)
            # a trial that began is not given up for what others did since
            reason = why_not_to_start(params, sweep) if proposed is not None else ""
            if reason:
                self._finish(params, self._write_record(params, folder, "pruned", reason))
                self._watch(sweep, sweep.finished[-1].result)
                continue

            to_start.append((params, folder))

        if to_start:
            overrides = [(sweep.spec.overrides(params), folder) for params, folder in to_start]
            jobs = self._launcher.start(overrides, sweep.incumbent)
            sweep.running += [
                Running(params, folder, job) for (params, folder), job in zip(to_start, jobs, strict=True)
            ]

    def _propose(self, to_start: Sequence[tuple[Params, Path]]) -> Params | None:
        """The next trial of the search, which learns from all that were started; None when it has no more."""
        if self._sweep.spec.method != "bayes":
            return self._search.propose()

        waiting = [Observation(params, None, running=True) for params, _ in (*to_start, *self._to_retry)]
        return self._search.propose([*self._sweep.observed, *waiting])

    def _usable_record(self, params: Params, folder: Path) -> Result | None:
        """The record of an earlier call, or of a folder given to reuse, where the trial need not run; else None."""
        record = finished_record(folder)
        if record is None and self._reusable is not None:
            record = self._reusable.take(params, self._settings_of(params), folder)
            self._sweep.taken += record is not None
        if record is not None and record.status == "failed" and self._options.retry_failed:
            return None
        return record

    def look(self) -> None:
        """Take note of new epochs, of trials that ended, and of those that make no progress."""
        for trial in list(self._sweep.running):
            if trial.job.exitcode is not None:
                self._sweep.running.remove(trial)
                self._end(trial, trial.job.exitcode)
            else:
                self._note_epochs(trial)
                self._note_progress(trial)

    def _note_epochs(self, trial: Running) -> None:
        """Ask a trial to stop whose new epochs leave it behind."""
        progress = progress_of(trial.folder)
        if len(progress.get("history", [])) <= len(trial.history):
            return

        trial.history, trial.epochs, trial.images = progress["history"], progress["epochs"], progress["images"]
        reason = why_to_stop(trial, self._sweep)
        if reason:
            write_durably(trial.folder / STOP, reason.encode())

    def _note_progress(self, trial: Running) -> None:
        """End a trial that hangs."""
        trial.note(heartbeat_of(trial.folder), self._launcher.longest_wait, is_stopped(trial.job.pid))
        if trial.idle > self._options.stuck_after and not trial.stuck:
            trial.stuck = True
            stop_jobs(self._launcher, [trial.job])

    def _end(self, trial: Running, exitcode: int) -> None:
        """Record a trial that ended, or start it again."""
        sweep, key = self._sweep, trial.folder.name
        result = finished_record(trial.folder)
        if trial.stuck or exitcode not in BY_SIGNAL:
            self._judge_worker(trial, healthy=result is not None and proves_worker_healthy(result))

        if result is None and self._attempts.starts_again(key, exitcode, trial.stuck):
            why = "made no progress" if trial.stuck else f"ended by itself with exit code {exitcode}"
            sweep.notes.append(f"trial {key} {why}; it was started again")
            self._to_retry.append((trial.params, trial.folder))
            return

        reach("tell", trial.folder)
        if result is None:
            cause = cause_of_death(trial.folder, exitcode, self._attempts.count(key), trial.stuck)
            result = self._write_record(trial.params, trial.folder, "failed", cause)
        models = {*sweep.worth_keeping(_CANDIDATES), result.key}
        self._finish(trial.params, result)
        self._drop_models(models - sweep.worth_keeping(_CANDIDATES))
        self._watch(sweep, sweep.finished[-1].result)

    def _write_record(self, params: Params, folder: Path, status: str, reason: str) -> Result:
        """Record a trial that did not do so itself."""
        try:
            settings = self._settings_of(params)
        except Refused:  # an earlier call began it, in an environment that `${…}` no longer finds
            settings = {}
        return unrecorded(folder, self._sweep.spec, params, settings, status, reason)

    def _drop_all_models_but_the_best(self) -> None:
        """Once no trial is left that could change which one that is."""
        kept = {file.parent.name for file in (self._sweep.folder / TRIALS).glob(f"*/{CHECKPOINT}")}
        best = self._sweep.worth_keeping()
        if best & kept:
            self._drop_models(kept - best)

    def _drop_models(self, keys: Iterable[str]) -> None:
        for key in keys:
            for name in (CHECKPOINT, PREDICTIONS):
                (self._sweep.folder / TRIALS / key / name).unlink(missing_ok=True)

    def _finish(self, params: Params, result: Result) -> None:
        """Count a trial that has its record, and see whether it ends the search."""
        sweep, spec = self._sweep, self._sweep.spec
        trial = Finished.of(spec, params, result)
        if result.status == "complete" and not trial.curve:
            result = record_unlogged(sweep.folder / TRIALS / result.key, result, spec.metric)
            trial = Finished.of(spec, params, result)
        sweep.finished.append(trial)

        value = result_value(spec, result)
        if spec.target is not None and value is not None and spec.sign * value >= spec.sign * spec.target:
            sweep.ended = f"{spec.metric} reached its target {spec.target:g}"
        if self._all_failed_alike():
            sweep.ended = f"the first {_SAME_FAILURES} trials failed alike: {result.reason}"

    def _all_failed_alike(self) -> bool:
        """Whether the first trials have just failed for one reason, and none of an earlier call was a success."""
        if len(self._sweep.finished) != _SAME_FAILURES:
            return False

        ends = {(result.status, result.reason) for result in self._sweep.results}
        if len(ends) > 1 or "failed" not in {status for status, _ in ends}:
            return False
        return all(earlier.status != "complete" for earlier in records_by_age(self._sweep.folder))

    def _judge_worker(self, trial: Running, healthy: bool) -> None:
        """Set a worker aside that fails again and again while others do not."""
        worker, key = self._launcher.worker(trial.job), trial.folder.name
        if self._workers.is_unhealthy(worker, key, healthy) and worker and self._launcher.capacity > 1:
            self._launcher.set_aside(worker)
            self._workers.forget(worker)
            self._attempts.forget(key)
            self._sweep.notes.append(f"{worker} was set aside: {FAILURES} trials in a row failed there")
