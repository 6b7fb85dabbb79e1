"""Named points at which a test makes this process fail; nothing is armed but by FINETUNE_FAULTS. Imports no torch.

FINETUNE_FAULTS names a folder. Each line of `arms` in it is a fault, `POINT PATTERN N ACTION`: at the N-th time (0:
each time) at which any process reaches POINT for a path that matches PATTERN, ACTION happens there. `reached` in it
lists the points reached while `arms` is there, which may be empty.
"""

import errno
import fnmatch
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

_FOLDER = os.environ.get("FINETUNE_FAULTS")


class Injected(RuntimeError):
    """The error of the action `raise`."""


def reach(point: str, path: Path) -> None:
    """Pass `point` on the way to changing `path`: a file's final name, or the folder of a trial.

    Raises:
        Injected, OSError, torch.OutOfMemoryError: as armed.
    """
    if _FOLDER is not None:
        _reach(Path(_FOLDER), point, path)


def disarm() -> None:
    """Let this process pass every point: what it does is none of a test's trials."""
    global _FOLDER
    _FOLDER = None


def _reach(folder: Path, point: str, path: Path) -> None:
    try:
        armed_faults = [line.split() for line in (folder / "arms").read_text().splitlines()]
    except FileNotFoundError:
        return

    from filelock import FileLock

    # processes share the count
    with FileLock(folder / "reached.lock"), (folder / "reached").open("a+") as log:
        log.seek(0)
        reached = [*log.read().splitlines(), f"{point} {path}"]
        log.write(f"{reached[-1]}\n")

    for armed_point, pattern, number, action in armed_faults:
        if armed_point == point and fnmatch.fnmatch(str(path), pattern):
            times = len(fnmatch.filter(reached, f"{point} {pattern}"))
            if int(number) in (0, times):
                name, _, argument = action.partition(":")
                _ACTIONS[name](argument)


def _kill(_: str) -> None:
    psutil.Process().kill()


def _raise(text: str) -> None:
    raise Injected(text or "a fault was injected")


def _full(_: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _out_of_memory(_: str) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _sleep(seconds: str) -> None:
    time.sleep(float(seconds))


def _hold(_: str) -> None:
    """Wait until other faults are armed, or none; what a test does meanwhile happens while this process is here."""
    arms = Path(os.environ["FINETUNE_FAULTS"]) / "arms"
    armed = arms.read_text() if arms.exists() else ""
    while armed and arms.exists() and arms.read_text() == armed:
        time.sleep(0.01)


_ACTIONS: dict[str, Callable[[str], None]] = {
    "kill": _kill,
    "raise": _raise,
    "full": _full,
    "out_of_memory": _out_of_memory,
    "sleep": _sleep,
    "hold": _hold,
}
