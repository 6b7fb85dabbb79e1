"""Trials as runs of a W&B sweep, which agents on any machine take and train. Imports no torch.

A run is put into the sweep's queue, looked at, and stopped: what W&B's own `sweep-scheduler` asks of the server, asked
through the public client. The folder of the sweep has of each trial what a trial of this machine would leave, so
whoever decides about trials need not know where they run.
"""

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from finetune.compose import override_values
from finetune.config import key_of, typed
from finetune.errors import Refused, message_of
from finetune.records.layout import (
    HEARTBEAT,
    HYDRA,
    LAST,
    LOG,
    OVERRIDES,
    PROGRESS,
    RECORD,
    STOP,
    SYNCED,
    TRIALS,
    UNSETTLED,
)
from finetune.records.metric import Incumbent, of_an_epoch
from finetune.records.ranking import REPEATED
from finetune.records.read import finished_record
from finetune.records.result import REFUSED, STOPPED_BY_WANDB, VAL_IMAGES, Result
from finetune.report.wandb_runs import ENDED, client_errors, keep_record, record_of, runs_of
from finetune.storage.durable import write_durably
from finetune.storage.system import KILLED
from finetune.sweep.jobs import Job
from finetune.sweep.search import Params
from finetune.sweep.spec import SweepSpec

_MOST_EPOCHS = 10_000
"""Of a run, that are asked for at once; W&B leaves some out where there are more."""


class RunJob:
    """A trial as a run of W&B's."""

    pid = None
    """Its process is on another machine."""

    def __init__(self, name: str, folder: Path):
        """`name` is the run's id, `folder` the trial's here."""
        self.name, self.folder = name, folder
        self.exitcode: int | None = None
        self.state = "pending"
        self.epochs = 0
        """How many have been read."""
        self.stopping = False
        """Whether it was asked to stop."""
        self.run: Any = None
        """As the client has it; None until W&B shows it."""

    @property
    def waits(self) -> bool:
        """Whether no agent has taken it, or none again once its machine was taken away."""
        return self.state in ("pending", "preempted")

    def terminate(self) -> None:
        """Ask it to stop."""
        if self.run is not None:
            self.run.stop()
        self.stopping = True

    def kill(self) -> None:
        """Give it up: whoever runs it goes on until W&B tells it to stop."""
        self.terminate()
        if self.exitcode is None:
            self.exitcode = KILLED


class WandbLauncher:
    """The queue of a sweep that W&B's server leaves to a scheduler."""

    def __init__(
        self,
        sweep: Any,
        spec: SweepSpec,
        settings_of: Callable[[Params], dict[str, Any]],
        folder: Path,
        agents: int,
        poll: float,
    ):
        """
        Args:
            sweep: As W&B's client has it.
            spec: The same, read.
            settings_of: All settings of a trial from its parameters.
            folder: Where the records are kept.
            agents: Runs at a time.
            poll: Seconds from one look at the runs to the next.
        """
        self._sweep, self._spec, self._settings_of = sweep, spec, settings_of
        self._folder, self._agents, self._poll = folder, agents, poll
        self._under_way: dict[str, Any] = {}
        """The runs that an earlier scheduler started, by the key of their trial."""

    @property
    def capacity(self) -> int:
        """As many as there are agents: a longer queue would be decided before it need be."""
        return self._agents

    @property
    def longest_wait(self) -> float:
        """Seconds between two looks."""
        return self._poll

    def look_back(self) -> None:
        """Take over what W&B knows: the records of trials that ended, and the runs that are under way."""
        known: dict[Path, tuple[Any, Params, Result | None]] = {}
        for run in reversed(self._runs()):  # a trial that was started again stands as its last run says
            params = params_of(run.config, self._spec)
            if params is None:
                continue

            trial = self._folder / TRIALS / key_of(self._settings_of(params))
            if trial not in known:
                record = self._finished_record(run, trial)
                if run.state not in ENDED or record is not None:
                    known[trial] = run, params, record

        for trial, (run, params, record) in reversed(known.items()):  # a bayes search learns in the order of records
            if record is None:
                self._under_way[trial.name] = run
                self._mark_begun(trial, self._spec.overrides(params))
            elif not _is_of(run, trial):
                keep_record(record, run, self._folder, trial.name)
                (trial / UNSETTLED).touch()  # the race may yet show that it fell behind

    def _finished_record(self, run: Any, trial: Path) -> Result | None:
        """The record of a run that ended, in the trial's folder or in W&B; None where it left none that stands."""
        if run.state not in ENDED:
            return None
        record = finished_record(trial) if _is_of(run, trial) else record_of(run)
        return None if record is None or record.status == "interrupted" else record

    def _mark_begun(self, trial: Path, overrides: Sequence[str]) -> None:
        """Leave in a trial's folder what shows that it is under way, and with which settings."""
        write_durably(trial / HYDRA / OVERRIDES, yaml.safe_dump(list(overrides)).encode())
        (trial / LAST).touch()

    def start(
        self, trials: Sequence[tuple[Sequence[str], Path]], incumbent: Incumbent | None = None
    ) -> Sequence[RunJob]:
        """Put trials into the queue, but for those that are under way."""
        jobs = []
        for overrides, folder in trials:
            run = self._under_way.pop(folder.name, None)
            name = self._enqueue(overrides) if run is None else run.id
            self._mark_begun(folder, overrides)
            jobs.append(RunJob(name, folder))
        return jobs

    def _enqueue(self, overrides: Sequence[str]) -> str:
        """Make a run; an agent gets the overrides that not all trials have, and the others from the sweep's command."""
        own = dict(override_values(overrides[len(self._spec.fixed) :]))
        try:
            return str(self._sweep.enqueue_run(own))
        except client_errors() as error:
            why = message_of(error)
            raise Refused(
                f"W&B did not take a run of {'/'.join(self._sweep.path)}: {why}; the same command goes on, once "
                "`wandb sweep --resume` has, where the sweep was stopped"
            ) from error

    def wait(self, jobs: Sequence[Job]) -> None:
        """Look at the runs after a while; a server that does not answer says nothing about them."""
        time.sleep(self._poll)
        try:
            self._stop_needless()
            own = [job for job in jobs if isinstance(job, RunJob)]
            runs = {run.id: run for run in self._runs([job.name for job in own])} if own else {}
            for job in own:
                if job.name in runs:
                    self._note(job, runs[job.name])
        except client_errors() as error:
            print(f"W&B does not answer ({message_of(error)}); asking again", flush=True)

    def _stop_needless(self) -> None:
        """Stop the runs of trials that, as all others stood when this scheduler began, would not have been started."""
        for key in [key for key in self._under_way if (self._folder / TRIALS / key / RECORD).exists()]:
            self._under_way.pop(key).stop()

    def worker(self, job: Job) -> str:
        """W&B's choice."""
        return ""

    def set_aside(self, worker: str) -> None:
        """W&B's business."""

    def end(self, jobs: Sequence[Job]) -> None:
        """Leave the runs to their agents: a later scheduler takes them over."""

    def _runs(self, names: Sequence[str] = ()) -> list[Any]:
        return runs_of(self._sweep.entity, self._sweep.project, self._sweep.id, names)

    def _note(self, job: RunJob, run: Any) -> None:
        """Take note of how far a run is; stop it where that was decided."""
        job.run, job.state = run, run.state
        if run.state in ENDED:
            self._end(job, run)
            return

        if (job.folder / STOP).exists() and not job.stopping:
            job.terminate()

        beat = str(run.heartbeatAt).encode()
        file = job.folder / HEARTBEAT
        if not job.waits and (not file.exists() or file.read_bytes() != beat):
            file.write_bytes(beat)
        if run.summary.get("epoch", -1) >= job.epochs:
            metric = of_an_epoch(self._spec.metric)
            rows = run.history(keys=["epoch", metric], samples=_MOST_EPOCHS, pandas=False)
            history = epochs_of(rows, metric)
            job.epochs = len(history)
            progress = {
                "epochs": run.config.get("trainer.epochs"),
                "history": history,
                "images": run.summary.get(VAL_IMAGES, 0),
            }
            write_durably(job.folder / PROGRESS, json.dumps(progress).encode())

    def _end(self, job: RunJob, run: Any) -> None:
        """Keep the record of a run that ended; or say how it ended without one."""
        record = record_of(run)
        if record is not None and job.stopping and record.status == "interrupted":  # plain agents end it by SIGTERM
            record = replace(record, status="pruned", reason=STOPPED_BY_WANDB)

        if record is not None and record.status != "interrupted":
            keep_record(record, run, self._folder, job.folder.name)
            (job.folder / LAST).unlink(missing_ok=True)
            job.exitcode = int(record.status == "failed")
        elif record is not None or job.stopping:  # it was asked to end, perhaps before it began
            job.exitcode = 128 + signal.SIGTERM
        else:
            refusal = run.summary.get(REFUSED, "")
            (job.folder / LOG).write_text(refusal or f"run {run.id} {run.state}, without a record\n", encoding="utf-8")
            job.exitcode = 2 if refusal else 1 if run.state in ("finished", "failed") else KILLED
        (job.folder / HEARTBEAT).unlink(missing_ok=True)


def _is_of(run: Any, trial: Path) -> bool:
    """Whether the record in a trial's folder is that of a run."""
    kept = trial / SYNCED
    return kept.exists() and kept.read_text(encoding="utf-8") == "/".join(run.path)


def params_of(config: Mapping[str, Any], spec: SweepSpec) -> Params | None:
    """The parameters of the trial that a run is, from its config; None where it is none of the sweep's.

    A run that no agent has begun has in its config what it was enqueued with; later it has every setting.
    """
    if not config.keys() >= spec.parameters.keys():
        return None
    repeated = [key for key in REPEATED if config.get(key) is not None and key not in spec.parameters]
    return {key: typed(key, config[key]) for key in (*spec.parameters, *repeated)}


def epochs_of(rows: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, float]]:
    """The epochs of a run, each once and from the first on without a gap, from the rows of its history.

    >>> epochs_of([{"epoch": 0, "val/acc": 0.5}, {"epoch": 1, "val/acc": 0.6}, {"epoch": 1, "val/acc": 0.6}], "val/acc")
    [{'epoch': 0, 'val/acc': 0.5}, {'epoch': 1, 'val/acc': 0.6}]
    """
    values = {int(row["epoch"]): row[metric] for row in rows}
    whole = next((epoch for epoch in range(len(values) + 1) if epoch not in values), 0)
    return [{"epoch": epoch, metric: values[epoch]} for epoch in range(whole)]
