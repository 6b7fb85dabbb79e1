"""The folder of a sweep: which sweep it holds, and that one process at a time runs it. Imports no torch."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from finetune import __version__
from finetune.config import PLACES
from finetune.errors import Refused
from finetune.records.layout import LOCK, SWEEP
from finetune.records.ranking import Objective
from finetune.records.read import refuse_newer
from finetune.storage.durable import sealed, unsealed, write_durably
from finetune.sweep.identity import VERSION, difference, identity_of, without_race
from finetune.sweep.spec import SweepSpec

_MOMENT = 1.0
"""Seconds that a sweep waits for its folder: whoever looks whether it runs holds the lock for an instant."""


def as_begun(spec: SweepSpec, folder: Path) -> SweepSpec:
    """The sweep as it began in `folder`: with the precision that was measured then, and its places spelt as then."""
    try:
        values = unsealed((folder / SWEEP).read_bytes())
        before = dict(word.partition("=")[::2] for word in values["fixed"])
        measured = [f"{key}={before[key]}" for key in values.get("measured", ()) if key not in spec.parameters]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return spec  # a new sweep, or a folder that will be refused

    def spelt(word: str) -> str:
        key, _, value = word.partition("=")
        same = key in PLACES and key in before and _is_same_place(value, before[key])
        return f"{key}={before[key]}" if same else word

    fixed_keys = {word.partition("=")[0] for word in spec.fixed}
    added = [word for word in measured if word.partition("=")[0] not in fixed_keys]
    return replace(spec, fixed=(*map(spelt, spec.fixed), *added))


def _is_same_place(one: str, other: str) -> bool:
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def refuse_another(spec: SweepSpec, folder: Path, seed: int, data: Sequence[str] = ()) -> None:
    """Make sure that `folder` is new or holds this very sweep.

    Args:
        spec: The sweep.
        folder: Where it is to live.
        seed: The seed of its search.
        data: Digests of its images and weights, once they are known.

    Raises:
        Refused: it holds another, something else, or what a newer release wrote; the message says old and new.
    """
    if not (folder / SWEEP).is_file():
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise Refused(f"{folder} holds other files and no sweep; give --out another folder")
        return

    refuse_newer(folder)
    try:
        old = unsealed((folder / SWEEP).read_bytes())
        version = old.get("version", 1)  # which was not written at first
        now = identity_of(spec, seed, data)
        differs = difference(without_race(old, spec), now) if version == VERSION else ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{folder / SWEEP} cannot be read ({error}); give --out another folder") from error

    if version != VERSION:
        raise Refused(f"{folder / SWEEP} is of a newer finetune; update this one, or give --out another folder")
    if differs:
        raise Refused(
            f"{folder} holds a sweep whose {differs}; give the same file and overrides to continue it, or "
            f"`--out ANOTHER --reuse {folder}` to start another that counts what fits"
        )


def refuse_unusable(folder: Path) -> None:
    """Make sure that a sweep can run in `folder`.

    Raises:
        Refused: a file is in its place, it cannot be written, or a sweep is running in it.
    """
    place = next(place for place in (folder, *folder.parents) if os.access(place, os.F_OK))
    if not place.is_dir() or not os.access(place, os.W_OK):
        why = "cannot be written" if place.is_dir() else "is no folder"
        raise Refused(f"{place} {why}; give --out another folder")
    if is_running(folder):
        raise Refused(_is_running_already(folder))


def _is_running_already(folder: Path) -> str:
    return f"the sweep in {folder} is running already; wait for it, or give --out another folder"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that runs the sweep in `folder`; one that dies lets go of it.

    Raises:
        Refused: another runs it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=_MOMENT)
    try:
        lock.acquire()
    except Timeout:
        raise Refused(_is_running_already(folder)) from None
    except (OSError, NotImplementedError) as error:
        print(f"warning: {folder} cannot be locked ({error}); run no second sweep in it", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


def claim(
    spec: SweepSpec,
    folder: Path,
    seed: int,
    data: Sequence[str],
    trials: int,
    objective: Objective,
    measured: Sequence[str] = (),
) -> None:
    """Write into `folder` which sweep it holds; what it had before of data, and of how it is judged, stays known.

    Args:
        spec: The sweep.
        folder: Where it lives.
        seed: The seed of its search.
        data: Digests of its images and weights.
        trials: How many its file has.
        objective: How they are judged, where repeats follow them.
        measured: Keys of fixed settings that nobody gave, for they were measured; known from then on.
    """
    judged: dict[str, Any] = {}
    by_measurement: dict[str, Any] = {"measured": list(measured)} if measured else {}
    with contextlib.suppress(OSError, ValueError, KeyError):
        before = unsealed((folder / SWEEP).read_bytes())
        data = sorted({*data, *before["data"]})
        judged = {key: before[key] for key in ("margin", "explored_by") if key in before}
        by_measurement = {"measured": before["measured"]} if "measured" in before else {}
    if objective.explored_by is not None:
        judged = {"margin": objective.margin, "explored_by": objective.explored_by}
    identity = identity_of(spec, seed, data)
    write_durably(
        folder / SWEEP, sealed({**identity, **judged, **by_measurement, "trials": trials, "finetune": __version__})
    )


def is_running(folder: Path) -> bool:
    """Whether a process runs the sweep in `folder`."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
