"""Trials of one worker in one process, for systems that cannot fork: Python and torch start once for all of them.

Imports no torch.
"""

import gc
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from finetune.sweep.children import CONTEXT, end_with_parent, start_child


class Worker:
    """A process that runs one trial after another, until one of them does not end well."""

    def __init__(self, name: str):
        """Start the process."""
        self._connection, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, name=name, args=(theirs,), daemon=True)
        start_child(self._process)
        theirs.close()  # so that its end is seen here

    def run(self, target: Callable[..., int], *arguments: Any) -> "SharedTrial":
        """Call `target`, which returns an exit code, in the process."""
        self._connection.send((target, arguments))
        return SharedTrial(self._process, self._connection)


class SharedTrial:
    """A trial in a worker's process; it ends alone where its exit code is 0, and else the process ends with it."""

    waits = False
    """It runs from the start: there is no queue."""

    def __init__(self, process: Any, connection: Connection):
        """`connection` brings the exit code."""
        self._process, self.sentinel = process, connection
        self._exitcode: int | None = None

    @property
    def name(self) -> str:
        """The worker's."""
        return str(self._process.name)

    @property
    def pid(self) -> int | None:
        """The process that it runs in."""
        pid: int | None = self._process.pid
        return pid

    @property
    def exitcode(self) -> int | None:
        """None while it runs; that of the process where it died."""
        if self._exitcode is None and self.sentinel.poll():
            try:
                self._exitcode = self.sentinel.recv()
            except (EOFError, OSError):
                self._process.join()
                self._exitcode = self._process.exitcode
        return self._exitcode

    def join(self, timeout: float | None = None) -> None:
        """Wait until it ends, or so many seconds."""
        wait([self.sentinel], timeout)

    def terminate(self) -> None:
        """End the process; Windows gives it no time to save anything."""
        self._process.terminate()

    def kill(self) -> None:
        """End the process."""
        self._process.kill()


def _serve(connection: Connection) -> None:
    end_with_parent()
    exitcode = 0
    while exitcode == 0:
        try:
            target, arguments = connection.recv()
        except EOFError:
            return

        exitcode = target(*arguments)
        sys.stdout.flush()  # into this trial's log, not the next one's
        sys.stderr.flush()
        gc.collect()
        connection.send(exitcode)
    sys.exit(exitcode)
