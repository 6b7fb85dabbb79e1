"""Trials as jobs of a SLURM cluster, through submitit. Imports no torch; the function that does runs in a job."""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.compose import override, shipped
from finetune.errors import Refused, message_of
from finetune.records.layout import JOBS, LOG, NUMBER_FORMAT, RECORD, TRIALS
from finetune.records.metric import Incumbent
from finetune.sweep.children import log_to, no_imports_from_here
from finetune.sweep.jobs import Job, stop_jobs

_RUNNING, _ENDING = "R", "CG"
"""squeue's names for a job that runs, and for one that is being ended."""


@dataclass
class ClusterSettings:
    """`conf/launcher/slurm.yaml`, or a file like it."""

    cluster: str = MISSING
    """`slurm`, or `local` for processes of this machine."""
    parallel: int = MISSING
    """Jobs at a time."""
    minutes: int = MISSING
    """Longest trial."""
    partition: str | None = None
    gpus: int = 0
    cpus: int = 1
    memory_gib: float = 8
    poll_seconds: float = 10
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Other options of sbatch."""


def read_cluster(name: str) -> ClusterSettings:
    """The settings called `name` in conf/launcher, or those of a YAML file.

    Raises:
        Refused: there are none, or one is unknown or of the wrong type; submitit or SLURM is missing here.
    """
    path = Path(name) if name.endswith(".yaml") else shipped("conf") / "launcher" / f"{name}.yaml"
    if not path.is_file():
        raise Refused(f"--launcher {name}: there is none of that name; give local, slurm, or a copy of its file")

    try:
        merged = OmegaConf.merge(OmegaConf.structured(ClusterSettings), OmegaConf.load(path))
        settings = cast(ClusterSettings, OmegaConf.to_object(merged))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        why = str(error).splitlines()[0]
        raise Refused(f"--launcher {name}: {path} cannot be used: {why}; give slurm, or a copy of its file") from error

    if settings.cluster not in ("slurm", "local") or settings.parallel < 1 or settings.minutes < 1:
        raise Refused(f"--launcher {name}: {path} needs cluster: slurm or local, and parallel and minutes above 0")
    if importlib.util.find_spec("submitit") is None:
        raise Refused(f"--launcher {name} needs submitit; pip install submitit")
    if settings.cluster == "slurm" and shutil.which("sbatch") is None:
        raise Refused(f"--launcher {name}: there is no sbatch here; run it on a node of the cluster")
    return settings


class ClusterLauncher:
    """Jobs whose records appear on a file system that they share with this process."""

    def __init__(self, settings: ClusterSettings, folder: Path, environment: Mapping[str, str], shared: str = ""):
        """`folder` is the sweep's; submitit's own files go below it. `environment` is added to every job's.

        `shared` is what `check_and_prepare` found out; of use where the nodes see this node's cache. Which number
        format is faster only a node can tell: the first trial notes it in `folder` for all of them, unless it has
        trials of before that was so.
        """
        import submitit

        # a trial that took too long once would take too long again
        self._executor = submitit.AutoExecutor(
            folder / JOBS,
            cluster=settings.cluster,
            slurm_max_num_timeout=0,
            **{f"{settings.cluster}_python": f"{shlex.quote(sys.executable)} -P"},  # as `no_imports_from_here` has it
        )
        self._slurm = settings.cluster == "slurm"
        self._parallel = settings.parallel
        self._poll = settings.poll_seconds
        self._environment, self._shared = dict(environment), shared
        precision = (folder / NUMBER_FORMAT).absolute()
        begun = any((folder / TRIALS).glob(f"*/{RECORD}"))
        self._precision = None if begun and not precision.exists() else precision
        self._executor.update_parameters(
            name=folder.name,
            timeout_min=settings.minutes,
            gpus_per_node=settings.gpus,
            cpus_per_task=settings.cpus,
            mem_gb=settings.memory_gib,
            slurm_partition=settings.partition,
            slurm_additional_parameters=settings.sbatch,
        )

    @property
    def capacity(self) -> int:
        """Jobs at a time."""
        return self._parallel

    @property
    def longest_wait(self) -> float:
        """`poll_seconds`."""
        return self._poll

    def start(self, trials: Sequence[tuple[Sequence[str], Path]], incumbent: Incumbent | None = None) -> list[Job]:
        """Submit trials, several as one job array; where that fails, they count as started and dead."""
        from submitit.core.utils import FailedJobError

        functions = []
        for overrides, folder in trials:
            folder.mkdir(parents=True, exist_ok=True)
            arguments = [*overrides, override("out", str(folder.absolute()))]
            functions.append(
                _Trial(arguments, folder.absolute() / LOG, self._environment, self._shared, incumbent, self._precision)
            )
        try:
            with no_imports_from_here(), self._executor.batch():
                jobs = [self._executor.submit(function) for function in functions]
        except FailedJobError as error:  # the controller is busy, say, or has as many jobs of ours as it takes
            for function in functions:
                function.log.write_text(f"not submitted: {message_of(error)}\n", encoding="utf-8")
            time.sleep(self._poll)
            return [_Unsubmitted() for _ in functions]
        return [ClusterJob(job) for job in jobs]

    def wait(self, jobs: Sequence[Job]) -> None:
        """Return when one of `jobs` has ended."""
        deadline = time.monotonic() + self._poll
        while time.monotonic() < deadline and all(job.exitcode is None for job in jobs):
            time.sleep(min(1.0, self._poll))

        states = _queued_states() if self._slurm else None
        if self._slurm and states is None:
            return  # a controller that does not answer says nothing about our jobs

        for job in jobs:
            if isinstance(job, ClusterJob):
                job.note(job.local_state if states is None else states.get(job.name))

    def worker(self, job: Job) -> str:
        """The cluster's choice."""
        return ""

    def set_aside(self, worker: str) -> None:
        """The cluster's business."""

    def end(self, jobs: Sequence[Job]) -> None:
        """Take them out of the queue."""
        stop_jobs(self, jobs)


class ClusterJob:
    """A submitted trial."""

    def __init__(self, job: Any):
        """`job` is submitit's."""
        self._job = job
        self.name = str(job.job_id)
        self.waits = False
        self._absences = 0
        """Looks in a row at which the cluster did not have it."""

    pid = None
    """Its process may be on another machine."""

    @property
    def exitcode(self) -> int | None:
        """None until it has ended; that of SIGTERM when the cluster ended it and nothing came back."""
        if self._job.paths.result_pickle.exists():
            return 1 if self._job.exception() is not None else int(self._job.result())
        return -signal.SIGTERM if self._absences > 1 else None

    @property
    def local_state(self) -> str | None:
        """The state of a job of the `local` cluster, which has no queue, as `squeue` would name it."""
        return None if self._job.done() else _RUNNING

    def note(self, state: str | None) -> None:
        """Take note of what the cluster says: `squeue`'s name of its state, None where it does not have the job."""
        self._absences = 0 if state else self._absences + 1
        self.waits = state not in (None, _RUNNING, _ENDING)

    def terminate(self) -> None:
        """Take it out of the queue, or end it."""
        self._job.cancel(check=False)

    kill = terminate


class _Unsubmitted:
    """The job of a trial that the cluster did not take."""

    exitcode = 1
    pid = None
    waits = False

    def terminate(self) -> None:
        """There is nothing to end."""

    kill = terminate


def _queued_states() -> dict[str, str] | None:
    """The jobs that SLURM has, each with its state's short name; None when it does not answer. One question for all."""
    answer = subprocess.run(["squeue", "--noheader", "--array", "--format=%i %t"], capture_output=True, text=True)  # noqa: S607
    return dict(re.findall(r"(\S+) (\S+)", answer.stdout)) if answer.returncode == 0 else None


@dataclass(frozen=True)
class _Trial:
    """What a job runs. A preempted job is queued again by SLURM and goes on from its last save."""

    arguments: list[str]
    log: Path
    environment: dict[str, str]
    shared: str
    incumbent: Incumbent | None
    precision: Path | None

    def __call__(self) -> int:
        log_to(self.log)
        os.environ.update(self.environment)

        from finetune import train

        # submitit has handlers of its own for the signals that we would listen to
        return train.run_trial(self.arguments, self.shared, self.incumbent, listen=False, precision=self.precision)

    def checkpoint(self) -> Any:
        """What submitit submits again when the job is preempted."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)
