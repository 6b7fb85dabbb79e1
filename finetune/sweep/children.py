"""Child processes: how they start, their output, and their end with their parent."""

import contextlib
import io
import json
import multiprocessing
import os
import site
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, cast

from finetune.storage.system import interrupts_blocked, unblock_interrupts

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

FORKS = "forkserver" in multiprocessing.get_all_start_methods()
"""Whether children are forked from a server that has torch already; on Windows each starts as a new interpreter."""
CONTEXT = cast("ForkServerContext", multiprocessing.get_context("forkserver" if FORKS else "spawn"))
if FORKS:
    CONTEXT.set_forkserver_preload(["finetune.sweep.preload"])
NETWORKS = "FINETUNE_NETWORKS"
"""Environment variable of the server that forks: what `set_networks` was told, as JSON."""
_networks: list[list[str]] = []


def set_networks(trials: Iterable[list[str]]) -> None:
    """Have the server, where it has yet to start, find out once where the networks of trials can be cut.

    Args:
        trials: The overrides of one trial of each network.
    """
    _networks[:] = trials


def start_child(child: BaseProcess) -> None:
    """Start a process of `CONTEXT`'s."""
    if FORKS:
        ready_server()
        child.start()
    else:
        with no_imports_from_here():
            child.start()


def ready_server() -> None:
    """Start the server that children are forked from, unless it is there; Ctrl-C while it imports is not for it."""
    from multiprocessing import forkserver, resource_tracker

    with no_imports_from_here(), _environment({NETWORKS: json.dumps(_networks)}):
        resource_tracker.ensure_running()  # which the server needs, and whose start would let interrupts through again
        with interrupts_blocked():  # passed on to it
            forkserver.ensure_running()


@contextlib.contextmanager
def no_imports_from_here() -> Iterator[None]:
    """Interpreters that start meanwhile, and theirs, import nothing from the folder that they start in.

    Python looks there first, and a user's own `random.py` or `finetune.py` would be run in place of the real one.
    """
    settings = {"PYTHONSAFEPATH": "1"}
    home = str(Path(__file__).parents[2])
    if home not in site.getsitepackages():  # a checkout, which may have been found because it is the current folder
        settings["PYTHONPATH"] = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))

    with _environment(settings):
        yield


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """These variables have these values meanwhile."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def log_to(file: Path) -> None:
    """Send what this process prints to `file`, in UTF-8 whatever the console of the sweep has."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def end_with_parent() -> None:
    """End this child process when its parent ends, however that happens; a Ctrl-C reaches it from now on."""
    unblock_interrupts()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()
