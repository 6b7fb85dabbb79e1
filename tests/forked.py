"""Processes that are forked from one warm server: a second where an interpreter that imports torch takes eight.

What is forked has the environment, the folder and the limits of the process that asked for it, as one that is started
anew would.
"""

import atexit
import contextlib
import importlib
import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from finetune.sweep import estimate
from finetune.sweep.children import CONTEXT, ready_server

GPUS = "PRETENDED_GPUS"
"""Environment variable: how many GPUs all children of a process are to have that are none: tests/pretended_gpu.py."""

PRELOAD = ["finetune.sweep.preload", "tests.warm"]
"""What the server imports: what the product's own does, then what trials of tests use besides."""
MEASURE = estimate.__dict__["_measured"]
"""What measures this machine before a sweep."""


def use_warm_server() -> None:
    """Have all children of this process, trials of sweeps among them, forked from the warm server.

    Sweeps are not estimated before they run: what measures the machine for seconds is tested by itself.
    """
    estimate.__dict__["_measured"] = lambda asked, slots: []
    CONTEXT.set_forkserver_preload(PRELOAD)
    ForkServerProcess.__init__ = _remember_surroundings  # type: ignore[method-assign, assignment]
    ForkServerProcess.run = _run_there  # type: ignore[method-assign]


def _remember_surroundings(process: ForkServerProcess, *given: Any, **named: Any) -> None:
    BaseProcess.__init__(process, *given, **named)
    process.__dict__["surroundings"] = dict(os.environ), resource.getrlimit(resource.RLIMIT_FSIZE)


def _run_there(process: ForkServerProcess) -> None:
    environment, longest_file = process.__dict__["surroundings"]
    os.environ.clear()
    os.environ.update(environment)
    resource.setrlimit(resource.RLIMIT_FSIZE, longest_file)
    tempfile.tempdir = None  # the environment says where it is
    if GPUS not in os.environ:
        BaseProcess.run(process)
        return

    from tests.pretended_gpu import pretended_gpu

    with pretended_gpu():
        BaseProcess.run(process)


class Command:
    """`python -m MODULE WORDS` under way in a forked process; to be asked as a `subprocess.Popen` is."""

    def __init__(
        self, module: str, words: list[str], folder: Path, environment: Mapping[str, str], longest_file: int = -1
    ):
        """
        Args:
            module: Has the function `main`.
            words: The arguments.
            folder: The current one of the command.
            environment: All of it.
            longest_file: Bytes that a file of the command's may have; -1 for any number.
        """
        handle, name = tempfile.mkstemp(prefix="said-")
        os.close(handle)
        self._said = Path(name)
        self._child = CONTEXT.Process(
            target=_become, args=(module, words, folder, dict(environment), name, longest_file)
        )
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


def _become(
    module: str, words: list[str], folder: Path, environment: dict[str, str], said: str, longest_file: int
) -> None:
    """Be the command that a shell would have started."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest_file, longest_file))

    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding="utf-8")

    # its own children come from the same server; Python would start another one
    forkserver._forkserver.ensure_running = forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]

    command = importlib.import_module(module)
    sys.argv = [str(command.__file__), *words]
    atexit._clear()  # what the server would do at its end
    try:
        sys.exit(command.main())
    finally:
        atexit._run_exitfuncs()
