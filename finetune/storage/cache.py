"""The folder of all stores: who builds one, which go when there is no room. Imports no torch."""

import contextlib
import fcntl
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from finetune.storage.durable import move
from finetune.storage.store import MANIFEST, refuse_shared_writing

KINDS = ("pixels", "activations")
"""The folders of a cache that hold stores."""
_SPARE = 2 << 30
"""Bytes of the disk that stores leave to others."""
_PATIENCE = 25.0
"""Seconds to wait for a lock whose holder builds nothing."""


class Unlockable(OSError):
    """A store's name could not be had for oneself in reasonable time; do without the store."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone with a store's name: of several processes one builds, and the others wait and find it there.

    Where there can be no locks, because the folder is read-only or its file system knows none, nothing is waited for.

    Raises:
        Unlockable: somebody has held the lock for half a minute without building anything, and there is no store.
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
    """Take the lock, or wait as long as its holder's build grows; a store that is there is then done without a lock."""
    part, since, seen = folder.with_name(f"{folder.name}.part"), time.monotonic(), -1
    while True:
        try:
            stack.enter_context(lock.acquire(timeout=0.5))
            return
        except Timeout:
            size, now = _size(part), time.monotonic()
            since, seen = (since, seen) if size == seen else (now, size)
            if now - since > _PATIENCE:
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
    need = sum(wanted.values())
    if need > limit:
        return False
    begun = {folder.with_name(f"{folder.name}.part") for folder in wanted}
    entries = [entry for kind in KINDS for entry in (cache / kind).glob("*") if entry.is_dir() and entry not in begun]
    sizes = {entry: _size(entry) for entry in entries}
    free = shutil.disk_usage(cache).free - _SPARE + sum(_size(part) for part in begun)
    excess, going = max(sum(sizes.values()) + need - limit, need - free), list[Path]()
    for entry in sorted(entries, key=_last_used):
        if excess > 0 and _is_idle(entry):
            going.append(entry)
            excess -= sizes[entry]
    return excess <= 0 and all(_evict(entry) for entry in going)


@contextlib.contextmanager
def _alone_with(entry: Path) -> Iterator[None]:
    """Nobody opens the store, or goes on building it, meanwhile.

    Raises:
        OSError: somebody does now.
    """
    name = entry.name.removesuffix(".part").removesuffix(".bad")
    lock = FileLock(entry.with_name(f"{name}.lock"), blocking=False)  # its Timeout is an OSError
    with lock, contextlib.ExitStack() as stack:
        if (entry / MANIFEST).is_file():
            claim = stack.enter_context((entry / MANIFEST).open("r+b"))  # NFS locks no file opened for reading
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _is_idle(entry: Path) -> bool:
    try:
        with _alone_with(entry):
            return True
    except OSError:
        return False


def _evict(entry: Path) -> bool:
    gone = entry.with_name(f"{entry.name}.gone")
    try:
        with _alone_with(entry):
            move(entry, gone)
    except OSError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _last_used(entry: Path) -> float:
    newest = entry / MANIFEST if (entry / MANIFEST).exists() else entry
    with contextlib.suppress(OSError):
        return newest.stat().st_mtime
    return 0.0


def _size(entry: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in entry.iterdir())
    return 0
