"""Child processes: the server they are forked from, their output, and their end with their parent."""

import contextlib
import multiprocessing
import os
import signal
import site
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["finetune.sweep.preload"])


def ready_server() -> None:
    """Start the server that children are forked from, unless it is there; Ctrl-C while it imports is not for it."""
    with no_imports_from_here():
        resource_tracker.ensure_running()  # which the server needs, and whose start would let interrupts through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # passed on to it
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def no_imports_from_here() -> Iterator[None]:
    """Interpreters that start meanwhile, and theirs, import nothing from the folder that they start in.

    Python looks there first, and a user's own `random.py` or `finetune.py` would be run in place of the real one.
    """
    settings = {"PYTHONSAFEPATH": "1"}
    home = str(Path(__file__).parents[2])
    if home not in site.getsitepackages():  # a checkout, which may have been found because it is the current folder
        settings["PYTHONPATH"] = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))

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
    """Send what this process prints to `file`."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def end_with_parent() -> None:
    """End this child process when its parent ends, however that happens; a Ctrl-C reaches it from now on."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


def is_stopped(pid: int | None) -> bool:
    """Whether a process of this machine was stopped, as by Ctrl-Z, and may yet be continued."""
    if pid is None:
        return False
    try:
        state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in ("T", "t")
