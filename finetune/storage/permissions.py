"""Who else could change what lies in a cache. Imports no torch."""

import functools
import stat
import sys
from pathlib import Path

from finetune.errors import Refused
from finetune.storage.system import has_modes


def refuse_shared_writing(folder: Path) -> None:
    """Make sure that nobody else can put other bytes in place of a store's, or a link in place of its lock.

    Args:
        folder: The store's, in `CACHE/KIND`, or a file there; what is not there yet is no danger.

    On a disk whose file system has no permissions, where no mode can be narrowed, that is said once, and no refusal.

    Raises:
        Refused: all may write to the store or its kind's folder, to the cache (where only its owner may remove a file,
            as in /tmp, the cache itself may be open), or the store's lock is a link.
    """
    lock = folder.with_name(f"{folder.name}.lock")
    if lock.is_symlink():
        raise Refused(f"{lock} is a link, through which another file would be written; remove it")

    kind = folder.parent
    cache = kind.parent
    for place, sticky_will_do in ((folder, False), (kind, False), (cache, True)):
        try:
            mode = place.stat().st_mode
        except OSError:
            continue
        if mode & stat.S_IWOTH and not (sticky_will_do and mode & stat.S_ISVTX):
            if not has_modes(place if place.is_dir() else place.parent):
                _warn_of_no_modes(cache)
                return
            raise Refused(
                f"{place} can be written by everybody, who could change what trials train on; "
                f"`chmod o-w {place}`, or set cache.dir to a folder of your own"
            )


@functools.cache
def _warn_of_no_modes(cache: Path) -> None:
    """Print it once a process."""
    print(
        f"warning: {cache} lies on a disk without permissions; whoever can write to it could change what trials train "
        "on, so share it with nobody, or set cache.dir to a folder on another disk",
        file=sys.stderr,
    )
