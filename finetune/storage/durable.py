"""Files that survive a crash: whole or absent, never half-written."""

import errno
import json
import os
import platform
import re
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import Refused
from finetune.storage.faults import reach
from finetune.storage.system import is_alive, replace, sync

_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")
"""Names of what a process has open already: often a pipe, but after `> FILE` a file, which must not be replaced."""


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: after a crash at any moment it holds the old bytes or the new, all of them.

    A pipe or a device, such as /dev/stdout, is written to.
    """
    if _is_device(path):
        with path.open("ab") as device:
            device.write(data)
        return

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            reach("write", path)
            file.write(data)
            file.flush()
            reach("fsync", path)
            # without it, some file systems rename first and write later: after a power cut the name holds nothing
            os.fsync(file.fileno())

        reach("rename", path)
        replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

    reach("sync", path)
    sync(path.parent)  # the folder is what holds the new name


def refuse_unwritable(path: Path, name: str, remedy: str = "give another place") -> None:
    """Make sure that a file or a folder can be made at `path`, before the work whose result it is to hold.

    Args:
        path: The file or folder; it and the folders above it need not be there yet.
        name: What the person gave it as, such as `--csv`; the message begins with it.
        remedy: What to do instead.

    Raises:
        Refused: it cannot be made there, or is `-`, which elsewhere means the standard output.
    """
    if path == Path("-"):
        raise Refused(f"{name} - means the standard output elsewhere, which has other lines here; give a name")
    if _is_device(path) and os.access(path, os.W_OK):
        return

    place = next(place for place in path.absolute().parents if os.access(place, os.F_OK))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the place is right, and there may be room when the work is done
        raise Refused(f"{name} {path} cannot be written ({place}: {error.strerror}); {remedy}") from error


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
        sync(file)
    sync(finished)

    move(finished, folder)

    reach("sync", folder)
    sync(folder.parent)


def move(source: Path, target: Path) -> None:
    """Rename within a folder; as all renames, it happens or does not."""
    reach("rename", target)
    source.rename(target)


def sealed(values: dict[str, Any]) -> bytes:
    """`values` as JSON with a `checksum` of its own: the CRC-32 of its content, whatever its order and spaces.

    Raises:
        ValueError: a number in it is not finite.
    """
    return json.dumps({**values, "checksum": _checksum(values)}, indent=1, allow_nan=False).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The values that `sealed` wrote as `data`.

    >>> unsealed(sealed({"depth": 9}))
    {'depth': 9}

    Raises:
        ValueError: it was changed since, or is something else.
    """
    try:
        values: dict[str, Any] = json.loads(data)
        checksum = values.pop("checksum")
        is_unchanged = checksum == _checksum(values)
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"no JSON with a checksum ({type(error).__name__}: {error})") from error

    if not is_unchanged:
        raise ValueError("its checksum differs")
    return values


def _checksum(values: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


class AppendOnlyFile:
    """A file that gets longer; a crash leaves a beginning of it, and its reader must see how far that is whole."""

    def __init__(self, path: Path, size: int):
        """What `path` has beyond `size` bytes is cut off."""
        self._path = path
        path.touch()
        os.truncate(path, size)
        self._file = path.open("ab")

    def append(self, data: bytes | memoryview) -> None:
        """Write `data` behind what is there."""
        reach("write", self._path)
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """Close the file; nothing is synced to the disk."""
        self._file.close()


def remove_leftovers(root: Path, depth: int = 2) -> None:
    """Remove temporary files and folders, down to `depth` folders below `root`, whose process has died here."""
    for level in range(depth + 1):
        for leftover in root.glob("*/" * level + ".*.tmp"):
            owner = _TEMPORARY.fullmatch(leftover.name)
            # of another host's processes nothing can be known here
            if owner is None or owner["host"] != _HOST or is_alive(int(owner["pid"])):
                continue

            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


_HOST = re.sub(r"[^\w-]", "_", platform.node())
_TEMPORARY = re.compile(r"\..*\.(?P<host>[\w-]*)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp", re.DOTALL)


def _is_device(path: Path) -> bool:
    """Whether it is to be written to as it is; replaced by a file, /dev/stdout would be gone for all, as root."""
    return str(path).startswith(_STREAMS) or path.is_fifo() or path.is_char_device()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
