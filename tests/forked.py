"""Processes that are forked from one warm server: a second where an interpreter that imports torch takes eight.

conftest.py has the server import this module, and the tests' own, before it forks. What is forked has the environment
and the folder of the process that asked for it, as a process that is started anew would.
"""

import atexit
import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from finetune.sweep.children import CONTEXT, ready_server

PRELOAD = ["finetune.sweep.preload", "tests.warm"]
"""What the server imports: what the product's own does, then what trials of tests use besides."""


class Child(ForkServerProcess):
    """A child of the server that has its parent's environment, and not the one that the server was started in."""

    def __init__(self, *given: object, **named: object):
        super().__init__(*given, **named)  # type: ignore[arg-type]
        self._environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


def use_warm_server() -> None:
    """Have all children of this process, trials of sweeps among them, forked from the warm server."""
    CONTEXT.set_forkserver_preload(PRELOAD)
    CONTEXT.Process = Child  # type: ignore[misc, assignment]


class Command:
    """`python -m MODULE WORDS` under way in a forked process; to be asked as a `subprocess.Popen` is."""

    def __init__(self, module: str, words: list[str], folder: Path, environment: Mapping[str, str]):
        handle, name = tempfile.mkstemp(prefix="said-")
        os.close(handle)
        self._said = Path(name)
        self._child = CONTEXT.Process(target=_become, args=(module, words, str(folder), dict(environment), name))
        ready_server()
        self._child.start()
        assert self._child.pid is not None
        self.pid = self._child.pid

    @property
    def returncode(self) -> int | None:
        return self._child.exitcode

    def poll(self) -> int | None:
        return self._child.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._child.join(timeout)
        if self._child.exitcode is None:
            raise subprocess.TimeoutExpired(self._child.name, timeout or 0)
        return self._child.exitcode

    def said(self) -> str:
        """What it has printed so far, to either stream."""
        return self._said.read_text(errors="replace")

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it printed in all; call it once."""
        self.wait(timeout)
        said = self.said()
        self._said.unlink()
        return said, None

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _become(module: str, words: list[str], folder: str, environment: dict[str, str], said: str) -> None:
    """Be the command that a shell would have started."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)

    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding="utf-8")

    # its own children come from the same server; Python would start another one
    forkserver._forkserver.ensure_running = forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    use_warm_server()

    command = importlib.import_module(module)
    sys.argv = [str(command.__file__), *words]
    atexit._clear()  # what the server would do at its end
    try:
        sys.exit(command.main())
    finally:
        atexit._run_exitfuncs()
