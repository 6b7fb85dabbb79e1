"""A file that changes while a trial makes progress, for whoever watches it. Imports no torch."""

import contextlib
import time
from pathlib import Path

from finetune.result import HEARTBEAT

_SECONDS = 1.0
"""From one write to the next, at the least."""


class Heartbeat:
    """`heartbeat` in a trial's folder: how many batches, and steps of preparation, are behind it.

    It is no durable file, and no clock is in it: a watcher compares it with what it saw before. Nothing is written
    where the folder is not there.
    """

    def __init__(self, folder: Path):
        """`folder` is the trial's."""
        self._file, self._count, self._next = folder / HEARTBEAT, 0, 0.0

    def beat(self) -> None:
        """Count one more; the file is written at most once a second."""
        self._count += 1
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SECONDS
            with contextlib.suppress(OSError):  # a full disk ends no trial here
                self._file.write_text(f"{self._count}\n")

    def end(self) -> None:
        """Remove the file."""
        self._file.unlink(missing_ok=True)
