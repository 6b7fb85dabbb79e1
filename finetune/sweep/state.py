"""What a sweep is while it runs: its options, the trials under way, those that finished. Imports no torch."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from finetune.records.layout import HEARTBEAT, LOG
from finetune.records.metric import metric_values
from finetune.records.result import Result
from finetune.sweep.launch import Job
from finetune.sweep.search import Params
from finetune.sweep.spec import SweepSpec

_GLANCE = 2.0
"""Seconds that count between two looks at a trial beside the wait, at the most: who was stopped for an hour saw none
of it."""


@dataclass(frozen=True)
class Options:
    """How a sweep runs; none of it changes which trials there are."""

    workers: int | None = None
    """Trials at a time; by default one a GPU, else one a core and four at the most."""
    gpus: str = "all"
    """`all`, or numbers of GPUs such as `0,2`."""
    trials_per_gpu: int = 1
    budget: float | None = None
    """Seconds after which running trials are stopped and no other starts."""
    reuse: tuple[Path, ...] = ()
    """Folders of sweeps, or of runs, whose records count as this sweep's where the settings are the same."""
    launcher: str = "local"
    """Where trials run: `local`, `slurm`, or a file of settings like conf/launcher/slurm.yaml."""
    retry_failed: bool = False
    """Run failed trials again; otherwise their records stand."""
    stuck_after: float = 900.0
    """Seconds without a sign of progress after which a trial is ended, and started once more."""


@dataclass
class Running:
    """A trial under way."""

    params: Params
    folder: Path
    job: Job
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
    _sign: str = ""
    _looked: float = 0.0

    def look(self, wait: float) -> None:
        """See whether it made progress since the last look; `wait` is the longest pause between two, in seconds."""
        now, sign = time.monotonic(), self._progress()
        known = sign == self._sign and bool(sign)
        if not known or getattr(self.job, "waits", False):
            self.idle = 0.0
        elif not is_stopped(getattr(self.job, "pid", None)):
            self.idle += min(now - self._looked, wait + _GLANCE)
        self._sign, self._looked = sign, now

    def _progress(self) -> str:
        """Changes when the trial gets on; empty while it waits for its turn on a cluster."""
        try:
            return (self.folder / HEARTBEAT).read_text()
        except (OSError, ValueError):
            return "started" if (self.folder / LOG).exists() else ""


def is_stopped(pid: int | None) -> bool:
    """Whether a process of this machine was stopped, as by Ctrl-Z, and may yet be continued."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


@dataclass
class Sweep:
    """The state of one sweep: what finished, what runs. Rebuilt from the records at every start."""

    spec: SweepSpec
    folder: Path
    total: int
    """Trials there will be at the most."""
    finished: list[tuple[Params, Result]] = field(default_factory=list)
    """In the order in which this process learned of them."""
    running: list[Running] = field(default_factory=list)
    ended: str = ""
    """Why it stopped before its last trial; empty otherwise."""
    out_of_time: bool = False
    """Whether that was the budget, so that the same call would go on."""
    notes: list[str] = field(default_factory=list)
    """What went wrong without ending it: trials started again, workers set aside."""

    taken: int = 0
    """How many finished trials came from `Options.reuse`."""
    best: Result | None = None
    """The complete trial with the best metric, the first of equals."""

    def add(self, params: Params, result: Result) -> None:
        """Count a finished trial."""
        self.finished.append((params, result))
        value = result_value(self.spec, result)
        best = None if self.best is None else result_value(self.spec, self.best)
        if value is not None and (best is None or self.spec.better(value, best)):
            self.best = result


def result_value(spec: SweepSpec, result: Result) -> float | None:
    """The metric the sweep optimises, of a complete trial; else None."""
    values = metric_values(spec.metric, result.history) if result.status == "complete" else []
    return values[-1] if values else None
