"""Which files of others are trusted. Imports no torch."""

import hashlib
import stat
from pathlib import Path

from finetune.errors import Refused


def refuse_shared_writing(folder: Path) -> None:
    """Make sure that nobody else can put other bytes in place of a store's, or a link in place of its lock.

    Args:
        folder: Of one store, in `CACHE/KIND`; what is not there yet is no danger.

    Raises:
        Refused: all may write to the store or its kind's folder, to the cache (where only its owner may remove a file,
            as in /tmp, the cache itself may be open), or the store's lock is a link.
    """
    lock = folder.with_name(f"{folder.name}.lock")
    if lock.is_symlink():
        raise Refused(f"{lock} is a link, through which another file would be written; remove it")
    for place, sticky_will_do in ((folder, False), (folder.parent, False), (folder.parent.parent, True)):
        try:
            mode = place.stat().st_mode
        except OSError:
            continue
        if mode & stat.S_IWOTH and not (sticky_will_do and mode & stat.S_ISVTX):
            raise Refused(
                f"{place} can be written by everybody, who could change what trials train on; "
                f"`chmod o-w {place}`, or set cache.dir to a folder of your own"
            )


def refuse_other_bytes(path: Path, prefix: str) -> None:
    """Make sure that a file is the one whose SHA-256 begins with `prefix`, lower-case hex.

    Raises:
        Refused: it is another, or only a part of it.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(prefix):
        raise Refused(
            f"{path} is not the file its name says: its SHA-256 is {found[:12]}… and should begin with {prefix}; "
            "remove it, and it is downloaded again"
        )
