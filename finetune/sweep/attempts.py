"""Which trials are started again, and which workers get no more. Imports no torch."""

from collections import Counter
from dataclasses import dataclass, field

from finetune.records.result import Result

RETRIES = 2
"""Starts of a trial after the first, at the most."""
SICK = 3
"""So many failures of a worker in a row, while others are well, set it aside."""


ASKED = (130, 143)
"""Exit codes of a trial that a signal asked to end, as when a machine is taken back: no failure of anything."""


@dataclass
class Attempts:
    """How often each trial was started in vain, by key."""

    died: Counter[str] = field(default_factory=Counter)
    hung: Counter[str] = field(default_factory=Counter)

    def again(self, key: str, exitcode: int, stuck: bool) -> bool:
        """Whether a trial that left no record is started once more, from where it last saved.

        A trial that was refused would be refused again; one that a signal asked to end has lost nothing.
        """
        if stuck:
            self.hung[key] += 1
            return self.hung[key] == 1
        if exitcode in ASKED:
            return True
        self.died[key] += 1
        return exitcode != 2 and self.died[key] <= RETRIES

    def forget(self, key: str) -> None:
        """Start counting anew: it was the worker."""
        self.died.pop(key, None)
        self.hung.pop(key, None)

    def times(self, key: str) -> int:
        """Starts so far, for a record of the last."""
        return self.died[key] + self.hung[key]


@dataclass
class Workers:
    """How each worker's trials ended, in order: a trial's key, and whether its end says that the worker works."""

    outcomes: dict[str, list[tuple[str, bool]]] = field(default_factory=dict)

    def sick(self, worker: str, key: str, works: bool) -> bool:
        """Count the end of trial `key`; whether `worker` is to be set aside.

        Its last failures must be of more than one trial, for one may be to blame itself, and the other workers must be
        well: what fails everywhere is no worker's fault.
        """
        self.outcomes.setdefault(worker, []).append((key, works))
        last = self.outcomes[worker][-SICK:]
        failed = len(last) == SICK and not any(works for _, works in last)
        others_work = all(seen[-1][1] for other, seen in self.outcomes.items() if other != worker)
        return failed and len({key for key, _ in last}) > 1 and others_work

    def forget(self, worker: str) -> None:
        """It was set aside."""
        del self.outcomes[worker]


def speaks_for_worker(result: Result) -> bool:
    """Whether a trial's end says that its worker works: a diverging trial does so too, for it computed."""
    return result.status != "failed" or result.reason.startswith("FloatingPointError")
