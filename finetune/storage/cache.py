"""The folder of all stores: locks, so that one process builds each, and eviction. Imports no torch."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from finetune.storage.durable import move
from finetune.storage.permissions import refuse_shared_writing
from finetune.storage.store import MANIFEST
from finetune.storage.system import alone

KINDS = ("pixels", "activations")
"""The folders of a cache that hold stores."""
_SPARE = 2 << 30
"""Bytes of the disk that stores leave to others."""
_PATIENCE = 25.0
"""Seconds to wait for a lock whose holder builds nothing; a build may take hours, and is waited for while it grows."""


class Unlockable(OSError):
    """A store could not be locked in reasonable time; do without the store."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a store's name: of several processes one builds, and the others wait and find it there.

    Where there can be no locks, because the folder is read-only or its file system knows none, nothing is waited for.

    Raises:
        Unlockable: somebody has kept the lock for half a minute without building anything, and there is no store.
        Refused: the folder, or the lock in it, could be somebody else's work.
    """
    refuse_shared_writing(folder)
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)

    lock = folder.with_name(f"{folder.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            _wait_for(stack, FileLock(lock), folder)
        except Unlockable:
            raise
        except (OSError, NotImplementedError) as error:
            if not folder.is_dir():
                print(
                    f"warning: {lock} cannot be locked ({error}); another process may do the same work", file=sys.stderr
                )
        yield


def _wait_for(stack: contextlib.ExitStack, lock: FileLock, folder: Path) -> None:
    """Enter the lock on `stack`, or wait as long as its holder's build grows.

    Returns without the lock where nothing grows any more and the store is there: it needs no building.
    """
    part = folder.with_name(f"{folder.name}.part")
    last_size = -1
    last_growth = time.monotonic()
    while True:
        try:
            stack.enter_context(lock.acquire(timeout=0.5))
            return
        except Timeout:
            size = _size(part)
            now = time.monotonic()
            if size != last_size:
                last_size = size
                last_growth = now

            if now - last_growth > _PATIENCE:
                if folder.is_dir():
                    return  # whoever has the lock reads or checks what is there, as the caller may
                raise Unlockable(
                    f"{lock.lock_file} was held for {_PATIENCE:.0f} s by a process that builds nothing"
                ) from None


def make_room(cache: Path, wanted: Mapping[Path, int], limit: int) -> bool:
    """Whether these stores fit into a cache of at most `limit` bytes, after the least recently used others went.

    A store that somebody has open, or that is being built, stays; and all stay where that would not be enough.

    Args:
        cache: Folder of all stores.
        wanted: Bytes of each store when it is finished, by its folder; what is built of it already is part of them.
        limit: Bytes of all stores.

    Raises:
        OSError: there is no such folder.
    """
    needed = sum(wanted.values())
    if needed > limit:
        return False

    begun = {folder.with_name(f"{folder.name}.part") for folder in wanted}
    folders = [folder for kind in KINDS for folder in (cache / kind).glob("*") if folder.is_dir()]
    sizes = {folder: _size(folder) for folder in folders if folder not in begun}

    over_limit = sum(sizes.values()) + needed - limit
    free = shutil.disk_usage(cache).free - _SPARE + sum(_size(part) for part in begun)
    excess = max(over_limit, needed - free)

    to_evict = list[Path]()
    for folder in sorted(sizes, key=_last_used):
        if excess > 0 and _is_idle(folder):
            to_evict.append(folder)
            excess -= sizes[folder]
    return excess <= 0 and all(_evict(folder) for folder in to_evict)


@contextlib.contextmanager
def _exclusive_use(folder: Path) -> Iterator[None]:
    """Nobody opens the store in `folder`, or goes on building it, meanwhile.

    Raises:
        OSError: somebody does now.
    """
    name = folder.name.removesuffix(".part").removesuffix(".bad")
    lock = FileLock(folder.with_name(f"{name}.lock"), blocking=False)  # its Timeout is an OSError
    with lock, contextlib.ExitStack() as stack:
        if (folder / MANIFEST).is_file():
            stack.enter_context(alone(folder / MANIFEST))
        yield


def _is_idle(folder: Path) -> bool:
    try:
        with _exclusive_use(folder):
            return True
    except OSError:
        return False


def _evict(folder: Path) -> bool:
    gone = folder.with_name(f"{folder.name}.gone")
    try:
        with _exclusive_use(folder):
            move(folder, gone)
    except OSError:
        return False

    # it is nobody's any more: removing it, which takes time, needs no lock
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _last_used(folder: Path) -> float:
    """When the store was opened last, or its build begun; seconds since 1970."""
    manifest = folder / MANIFEST
    newest = manifest if manifest.exists() else folder
    with contextlib.suppress(OSError):
        return newest.stat().st_mtime
    return 0.0


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in folder.iterdir())
    return 0
