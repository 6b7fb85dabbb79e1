"""The coordinator of a sweep: proposes, starts, watches and records its trials. Imports no torch."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.config import key_of
from finetune.errors import Refused
from finetune.records.layout import CHECKPOINT, PREDICTIONS, STOP, TRIALS, UNSETTLED
from finetune.records.read import finished_record, records_by_age
from finetune.records.result import STOPPED_BY_WANDB, Result
from finetune.storage.durable import write_durably
from finetune.storage.faults import reach
from finetune.storage.system import is_stopped
from finetune.sweep.attempts import BY_SIGNAL, FAILURES, Attempts, Workers, proves_worker_healthy, why_it_ended
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
from finetune.sweep.search import Observation, Params, Search, size
from finetune.sweep.standings import next_of_race, next_repeats, why_lost, why_to_stop
from finetune.sweep.state import NO_PLACE, Finished, Options, Running, Sweep, Waiting, result_value

_SAME_FAILURES = 3
"""So many first trials that fail for the same reason end a sweep."""
_AHEAD = 100
"""Trials of a race of which the next to start is chosen."""
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
        self._repeats = deque[Params]()
        """Repeats to start, once those before them have ended."""
        self._places = dict[str, int]()
        """The number of each trial of the exploration in its order, by key."""

    @property
    def _adapts(self) -> bool:
        """Whether the sweep repeats what decides, and so goes on to a verdict."""
        return self._sweep.objective.explored_by is not None

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
                if not sweep.running and (sweep.ended or not sweep.to_retry):
                    self._drop_all_models_but_the_best()
                    return

                self._watch(sweep, None)
                self._launcher.wait([trial.job for trial in sweep.running])
                self.look()
        finally:
            self._launcher.end([trial.job for trial in sweep.running])

    def _learn_from_records(self) -> None:
        """Take note of the trials of earlier calls: those that have records, then those that were under way."""
        sweep = self._sweep
        for result in records_by_age(sweep.folder):
            params = {key: result.params[key] for key in sweep.spec.parameters}
            if not self._is_explored(params, result.key):  # a repeat, which comes again once it is wanted
                continue
            if result.status == "failed" and self._options.retry_failed:
                sweep.to_retry.append(self._waiting(params))
            else:
                self._finish(params, result)

        unfinished = unfinished_trials(sweep.folder, sweep.spec.parameters)
        sweep.to_retry += [
            self._waiting(params) for params, trial in unfinished if self._is_explored(params, trial.name)
        ]
        del sweep.to_retry[max(0, sweep.total - len(sweep.finished)) :]  # this call may ask for fewer trials

    def _is_explored(self, params: Params, key: str) -> bool:
        """Whether the trial of this key is one of the search's own; then it gets its number in their order."""
        if self._folder_of(params).name != key:
            return False

        self._places.setdefault(key, len(self._places))
        return True

    def _start(self) -> None:
        """Start trials until all places are taken or none is left."""
        sweep = self._sweep
        sweep.capacity = self._launcher.capacity
        self._settle()  # also those that an earlier call left
        while len(sweep.running) + len(sweep.starting) < self._launcher.capacity and not sweep.ended:
            trial = self._next()
            if trial is None:
                break

            record = self._usable_record(trial.params, trial.folder)
            if record is not None:
                self._finish(trial.params, record)
                continue

            clear_attempt(trial.folder)
            if self._is_lost_already(trial):
                continue

            if sweep.races and trial.place != NO_PLACE:
                trial.folder.mkdir(parents=True, exist_ok=True)
                (trial.folder / UNSETTLED).touch()
            sweep.starting.append(trial)

        if sweep.starting:
            overrides = [(sweep.spec.overrides(trial.params), trial.folder) for trial in sweep.starting]
            jobs = self._launcher.start(overrides, sweep.incumbent)
            sweep.running += [
                Running(trial.params, trial.folder, job, trial.place)
                for trial, job in zip(sweep.starting, jobs, strict=True)
            ]
            sweep.starting.clear()

    def _next(self) -> Waiting | None:
        """The next trial of the search, then the next repeat, then one to be started again; else None."""
        sweep = self._sweep
        self._look_ahead()
        if sweep.ended:
            return None
        if sweep.ahead:
            trial = next_of_race(sweep) if sweep.races else sweep.ahead[0]
            sweep.ahead.remove(trial)
            return trial

        nothing_left = not (sweep.running or sweep.starting or sweep.to_retry)
        if self._adapts and not self._repeats and nothing_left:
            self._look_for_repeats()
        if self._repeats:
            return self._waiting(self._repeats.popleft())
        return sweep.to_retry.pop(0) if sweep.to_retry else None

    def _look_ahead(self) -> None:
        """Ask the search for its next trials, and count those that have their records."""
        sweep = self._sweep
        far = _AHEAD if sweep.races and sweep.spec.method != "bayes" else 1
        while len(sweep.ahead) < far and not sweep.ended:
            params = self._propose()
            if params is None:
                return

            self._places[self._folder_of(params).name] = len(self._places)
            trial = self._waiting(params)
            record = self._usable_record(params, trial.folder)
            if record is not None:
                self._finish(params, record)
            else:
                sweep.ahead.append(trial)

    def _propose(self) -> Params | None:
        """The next trial of the search, which may learn from all that were started."""
        sweep = self._sweep
        if sweep.spec.method != "bayes":
            return self._search.propose()
        if sweep.repeats is not None:
            return None

        waiting = [trial.params for trial in (*sweep.starting, *sweep.to_retry)]
        pending = [Observation(params, None, running=True) for params in waiting]
        return self._search.propose([*sweep.observed, *pending])

    def _look_for_repeats(self) -> None:
        """Find out what to repeat next, now that all trials so far have ended."""
        sweep, spec = self._sweep, self._sweep.spec
        explored = [trial for trial in sweep.finished if trial.place != NO_PLACE]
        ended = {trial.result.key: trial.result for trial in sweep.finished}
        if not explored:
            return

        looked = next_repeats(
            explored, lambda params: ended.get(self._folder_of(params).name), sweep.objective, most=size(spec)
        )
        if looked is not None:
            sweep.repeats, missing = looked
            self._repeats.extend(missing)
            sweep.total = len(sweep.finished) + len(missing)
            self._watch(sweep, None)

    def _folder_of(self, params: Params) -> Path:
        return self._sweep.folder / TRIALS / key_of(self._settings_of(params))

    def _waiting(self, params: Params) -> Waiting:
        folder = self._folder_of(params)
        return Waiting(params, folder, self._place(folder))

    def _place(self, folder: Path) -> int:
        return self._places.get(folder.name, NO_PLACE)

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
        self._settle()

    def _note_epochs(self, trial: Running) -> None:
        """Ask a trial to stop whose new epochs leave it behind."""
        progress = progress_of(trial.folder)
        if len(progress.get("history", [])) > len(trial.history):
            trial.history, trial.epochs, trial.images = progress["history"], progress["epochs"], progress["images"]
            reason = why_to_stop(trial, self._sweep)
            if reason:
                write_durably(trial.folder / STOP, reason.encode())

    def _settle(self) -> None:
        """Apply the race, as far as it can tell by now: to trials that ran to their end, and to those that run."""
        sweep = self._sweep
        waiting = [i for i, trial in enumerate(sweep.finished) if not trial.settled]
        for i in sorted(waiting, key=lambda i: sweep.finished[i].place):
            trial = sweep.finished[i]
            curve = trial.curve[:-1] if trial.result.status == "complete" else trial.curve
            reason = why_lost(trial.place, trial.params, curve, trial.images, sweep)
            if reason is not None:
                sweep.finished[i] = self._settled(trial, reason)

        settled = sum(trial.settled for trial in sweep.finished)
        for running in sweep.running if self._sweep.races else ():
            news = settled, len(running.history)
            if running.place == NO_PLACE or running.compared == news:
                continue

            running.compared = news
            curve = sweep.spec.curve(running.history)[: (running.epochs or 1) - 1]
            reason = why_lost(running.place, running.params, curve, running.images, sweep)
            if reason:
                write_durably(running.folder / STOP, reason.encode())

    def _settled(self, trial: Finished, lost: str) -> Finished:
        """A trial that ended, as it stands now that those before it have ended, too."""
        folder, result = self._sweep.folder / TRIALS / trial.result.key, trial.result
        if lost:
            result = replace(result, status="pruned", reason=lost)
            result.save(folder)
            self._drop_models([result.key])
        (folder / UNSETTLED).unlink(missing_ok=True)
        return replace(trial, result=result, settled=True)

    def _is_lost_already(self, trial: Waiting) -> bool:
        """Whether a trial need not be started; then it has its record. One that began goes on until it is behind."""
        if not self._sweep.races or trial.place == NO_PLACE:
            return False

        reason = why_lost(trial.place, trial.params, (), 0, self._sweep)
        if reason:
            self._finish(trial.params, self._write_record(trial.params, trial.folder, "pruned", reason))
            self._watch(self._sweep, self._sweep.finished[-1].result)
        return bool(reason)

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
            if not (trial.folder / STOP).exists():  # else it was told to end before it had begun
                sweep.notes.append(f"trial {key} {why_it_ended(exitcode, trial.stuck)}; it was started again")
            sweep.to_retry.append(Waiting(trial.params, trial.folder, trial.place))
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
        folder = sweep.folder / TRIALS / result.key
        if result.status == "complete" and not spec.curve(result.history):
            result = record_unlogged(folder, result, spec.metric)

        may_have_lost = result.status == "complete" or result.reason == STOPPED_BY_WANDB
        settled = not (self._sweep.races and may_have_lost and (folder / UNSETTLED).exists())
        if settled:
            (folder / UNSETTLED).unlink(missing_ok=True)
        sweep.finished.append(Finished.of(spec, params, result, self._place(folder), settled))

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
