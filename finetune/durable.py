"""Files that survive a crash: whole or absent, never half-written."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.faults import reach


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: after a crash at any moment it holds the old bytes or the new, all of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            reach("write", path)
            file.write(data)
            file.flush()
            reach("fsync", path)
            os.fsync(file.fileno())
        reach("rename", path)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    reach("sync", path)
    _sync(path.parent)


@contextmanager
def published_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `folder` when the block ends well, and vanishes when it does not."""
    temporary = _temporary(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        publish_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish_folder(finished: Path, folder: Path) -> None:
    """Rename a filled folder to `folder`, a neighbour of it, once all of it is on the disk."""
    reach("fsync", folder)
    for file in finished.rglob("*"):
        _sync(file)
    _sync(finished)
    reach("rename", folder)
    finished.rename(folder)
    reach("sync", folder)
    _sync(folder.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
