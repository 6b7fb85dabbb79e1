"""What a sweep knows of its trials under way, wherever they run: jobs, and the launcher that starts them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from finetune.records.metric import Incumbent

_GRACE = 8.0
"""Seconds that a trial asked to end may take before it is killed."""
_LAST = 60.0
"""Seconds that a killed one may take to be gone."""


class Job(Protocol):
    """A trial that was started somewhere."""

    @property
    def exitcode(self) -> int | None:
        """None while it runs; negative for the signal that killed it."""

    @property
    def pid(self) -> int | None:
        """Its process, where that is one of this machine."""

    @property
    def waits(self) -> bool:
        """Whether a queue has it and does not let it run: not yet, or, once preempted, not again."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


class Launcher(Protocol):
    """Where trials run."""

    @property
    def capacity(self) -> int:
        """Trials at a time."""

    @property
    def longest_wait(self) -> float:
        """Seconds after which `wait` returns in any case."""

    def start(self, trials: Sequence[tuple[Sequence[str], Path]], incumbent: Incumbent | None = None) -> Sequence[Job]:
        """Run `python -m finetune.train OVERRIDES out=FOLDER` for each; its output goes to `log.txt` in the folder.

        There are never more of them under way than `capacity`. A trial that does not improve on the incumbent keeps no
        checkpoint.
        """

    def wait(self, jobs: Sequence[Job]) -> None:
        """Return when one of `jobs` may have ended, or after a moment."""

    def worker(self, job: Job) -> str:
        """The place that a job runs in, or ran in; empty where places are not ours to choose."""

    def set_aside(self, worker: str) -> None:
        """Start nothing in that place any more."""

    def end(self, jobs: Sequence[Job]) -> None:
        """This process starts and watches no more trials: end those that are under way, or leave them to others."""


def stop_jobs(launcher: Launcher, jobs: Sequence[Job]) -> None:
    """End jobs and wait until they have: asked first, killed after a grace; a cluster that is silent is left."""
    left = list(jobs)
    try:
        for job in jobs:
            job.terminate()

        deadline = time.monotonic() + _GRACE
        while (left := [job for job in jobs if job.exitcode is None]) and time.monotonic() < deadline:
            launcher.wait(left)
    finally:  # a second Ctrl-C is not to wait
        for job in left:
            job.kill()

    deadline = time.monotonic() + _LAST
    while any(job.exitcode is None for job in left) and time.monotonic() < deadline:
        launcher.wait(left)
