"""Which trials are started again, and which workers get no more. Imports no torch."""

from collections import Counter
from dataclasses import dataclass, field

from finetune.records.result import Result

RETRIES = 2
"""Starts of a trial after the first, at the most."""
FAILURES = 3
"""So many failures of a worker in a row, while others are healthy, set it aside."""
BY_SIGNAL = (130, 143)
"""Exit codes of a trial that a signal asked to end, as when a machine is taken back: no failure of anything."""


@dataclass
class Attempts:
    """How often each trial was started in vain, by key."""

    died: Counter[str] = field(default_factory=Counter)
    hung: Counter[str] = field(default_factory=Counter)

    def starts_again(self, key: str, exitcode: int, stuck: bool) -> bool:
        """Count a start of a trial that left no record; whether it is started once more, from where it last saved.

        A trial that was refused would be refused again; one that a signal asked to end has lost nothing.
        """
        if stuck:
            self.hung[key] += 1
            return self.hung[key] == 1
        if exitcode in BY_SIGNAL:
            return True

        self.died[key] += 1
        return exitcode != 2 and self.died[key] <= RETRIES

    def forget(self, key: str) -> None:
        """Start counting anew: it was the worker."""
        self.died.pop(key, None)
        self.hung.pop(key, None)

    def count(self, key: str) -> int:
        """Starts so far, for a record of the last."""
        return self.died[key] + self.hung[key]


@dataclass
class Workers:
    """How each worker's trials ended, in order: a trial's key, and whether its end proves the worker healthy."""

    outcomes: dict[str, list[tuple[str, bool]]] = field(default_factory=dict)

    def is_unhealthy(self, worker: str, key: str, healthy: bool) -> bool:
        """Count the end of trial `key`; whether `worker` is to be set aside.

        Its last failures must be of more than one trial, for one may be to blame itself, and the other workers must be
        healthy: what fails everywhere is no worker's fault.
        """
        self.outcomes.setdefault(worker, []).append((key, healthy))
        last = self.outcomes[worker][-FAILURES:]
        failed = len(last) == FAILURES and not any(healthy for _, healthy in last)
        several = len({key for key, _ in last}) > 1
        others_healthy = all(ends[-1][1] for other, ends in self.outcomes.items() if other != worker)
        return failed and several and others_healthy

    def forget(self, worker: str) -> None:
        """Leave out a worker that was set aside."""
        del self.outcomes[worker]


def proves_worker_healthy(result: Result) -> bool:
    """Whether a trial's end says that its worker works: a diverging trial does so too, for it computed."""
    return result.status != "failed" or result.reason.startswith("FloatingPointError")


def why_it_ended(exitcode: int, stuck: bool) -> str:
    """Of a trial that left no record and is started again, in words that follow its name."""
    if stuck:
        return "made no progress"
    if exitcode in BY_SIGNAL:
        return "was stopped by a signal"
    return f"ended by itself with exit code {exitcode}"
