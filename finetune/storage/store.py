"""Rows on disk: equal arrays, one per image, written once and read by every process. Imports no torch.

A store is a folder: `rows.bin`, and a `manifest.json` with shape, dtype and a checksum per block. It is built in
FOLDER.part, which an interrupted build leaves behind and the next one continues, and published by a rename.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import sys
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.errors import Refused
from finetune.storage.durable import Growing, move, publish_folder, sealed, unsealed, write_durably

_ROWS, MANIFEST, _BLOCKS = "rows.bin", "manifest.json", "blocks.jsonl"
_PIECE = 1 << 24
_NO_DAMAGE = frozenset({errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Of a store that this process cannot open, and another may."""


class Rows:
    """Equal rows of a file by position, as `rows[indices]`: n x shape.

    They are read, not mapped: the page cache is shared all the same, this process's resident set does not grow with
    the file, and a truncated file is an error instead of a bus error.
    """

    def __init__(self, file: Path, count: int, shape: Sequence[int], dtype: str):
        """`dtype` is NumPy's name; `bfloat16`, which NumPy lacks, is read as uint16."""
        self.file, self.dtype = file, dtype
        self.shape = (count, *shape)
        self._dtype = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        self.row_bytes = int(np.prod(shape, dtype=np.int64)) * self._dtype.itemsize
        self._descriptor: int | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: slice | Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """The rows at these positions, in their order; neighbours are read at once.

        Raises:
            OSError: the file is shorter than it should be.
        """
        indices = np.arange(*chosen.indices(len(self))) if isinstance(chosen, slice) else np.asarray(chosen)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"rows 0..{len(self) - 1} are there, not {indices.min()}..{indices.max()}")
        out = np.empty((len(indices), *self.shape[1:]), self._dtype)
        if out.size == 0:
            return out
        if self._descriptor is None:
            self._descriptor = os.open(self.file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        target = out.reshape(-1).view(np.uint8).data
        starts = np.flatnonzero(np.diff(indices, prepend=indices[0] - 2) != 1)
        for start, end in zip(starts, [*starts[1:], len(indices)], strict=True):
            part = target[start * self.row_bytes : end * self.row_bytes]
            self._fill(part, int(indices[start]) * self.row_bytes)
        return out

    def _fill(self, part: memoryview, offset: int) -> None:
        assert self._descriptor is not None
        while part:
            got = os.preadv(self._descriptor, [part], offset)
            if got == 0:
                raise OSError(f"{self.file} is truncated; remove its folder, and it is built anew")
            part, offset = part[got:], offset + got


class Loaded(Rows):
    """Rows in memory, for want of a place to store them."""

    def __init__(self, rows: NDArray[Any]):
        """`rows`: n x shape."""
        super().__init__(Path(), len(rows), rows.shape[1:], str(rows.dtype))
        self._loaded = rows

    def __getitem__(self, chosen: slice | Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """The rows at these positions, in their order."""
        return self._loaded[chosen if isinstance(chosen, slice) else np.asarray(chosen, dtype=np.int64)]


@dataclass(frozen=True)
class Store:
    """A finished store; it is not evicted while its rows are in memory."""

    folder: Path
    rows: Rows
    about: dict[str, Any]
    """What its builder noted."""


def open_store(folder: Path, verify: bool = True) -> Store | None:
    """The store in `folder`; None if there is none that can be opened. A damaged one is set aside as `FOLDER.bad`.

    Args:
        folder: Of one store.
        verify: Read all of it and compare the checksums.

    Raises:
        Refused: others could have written it.
    """
    refuse_shared_writing(folder)
    try:
        claim = os.open(folder / MANIFEST, os.O_RDONLY)
    except OSError as error:
        _set_aside_if_damaged(folder, error)
        return None
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(claim, fcntl.LOCK_SH)
    with contextlib.suppress(OSError):  # a store that others may only read
        os.utime(folder / MANIFEST)
    try:
        manifest = unsealed((folder / MANIFEST).read_bytes())
        rows = Rows(folder / _ROWS, manifest["count"], manifest["shape"], manifest["dtype"])
        if not (_is_whole(rows, manifest["blocks"]) if verify else rows.file.is_file()):
            raise ValueError("checksums differ")
        store = Store(folder, rows, manifest["about"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        os.close(claim)
        _set_aside_if_damaged(folder, error)
        return None
    weakref.finalize(rows, os.close, claim)  # lets go of the lock
    return store


@contextlib.contextmanager
def held(folders: Iterable[Path]) -> Iterator[None]:
    """Keep these stores, as far as they are there: none of them is evicted meanwhile."""
    with contextlib.ExitStack() as stack:
        for folder in folders:
            with contextlib.suppress(OSError):  # gone, or a file system without locks
                fcntl.flock(stack.enter_context((folder / MANIFEST).open("rb")), fcntl.LOCK_SH)
        yield


def store_bytes(count: int, shape: Sequence[int], itemsize: int) -> int:
    """What a store will take on disk, its manifest left out."""
    return count * int(np.prod(shape, dtype=np.int64)) * itemsize


class Building:
    """A store under way. `done` rows are there already, from an earlier attempt whose blocks are intact."""

    def __init__(self, folder: Path, shape: Sequence[int], dtype: str):
        """`folder` is the finished store's; the caller holds its lock."""
        self.folder, self.shape, self.dtype = folder, tuple(shape), dtype
        self.row_bytes = Rows(Path(), 0, shape, dtype).row_bytes
        self.part = folder.with_name(f"{folder.name}.part")
        self.part.mkdir(parents=True, exist_ok=True)
        self.blocks, self.notes = list[tuple[int, int]](), list[Any]()
        rows, log = self._intact()
        self.done = sum(count for count, _ in self.blocks)
        self._rows, self._log = Growing(self.part / _ROWS, rows), Growing(self.part / _BLOCKS, log)
        self._beside = ThreadPoolExecutor(1)
        """Takes checksums while rows are written."""

    def append(self, rows: NDArray[Any], note: Any = None) -> None:
        """Add rows n x shape, and whatever a continued build must know of them."""
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        checksum = self._beside.submit(zlib.crc32, data)
        self._rows.append(data)
        self.blocks.append((len(rows), checksum.result()))
        self.notes.append(note)
        self._log.append(f"{json.dumps([*self.blocks[-1], note])}\n".encode())
        self.done += len(rows)

    def publish(self, about: dict[str, Any]) -> None:
        """Make the store visible, whole and on the disk."""
        self.close()
        (self.part / _BLOCKS).unlink()
        manifest = {"count": self.done, "shape": self.shape, "dtype": self.dtype, "blocks": self.blocks, "about": about}
        write_durably(self.part / MANIFEST, sealed(manifest))
        publish_folder(self.part, self.folder)

    def close(self) -> None:
        """Leave the build as it is, to be continued."""
        self._beside.shutdown()
        self._rows.close()
        self._log.close()

    def drop(self) -> None:
        """Remove what was built."""
        self.close()
        shutil.rmtree(self.part, ignore_errors=True)

    def _intact(self) -> tuple[int, int]:
        """Take over the blocks of an earlier attempt up to the first damaged one; their bytes of rows and of log."""
        size, log = 0, 0
        with contextlib.suppress(OSError, ValueError, TypeError), (self.part / _ROWS).open("rb") as file:
            for line in (self.part / _BLOCKS).read_bytes().splitlines(keepends=True):
                count, crc, note = json.loads(line)
                data = file.read(count * self.row_bytes)
                if len(data) != count * self.row_bytes or zlib.crc32(data) != crc or not line.endswith(b"\n"):
                    break
                self.blocks.append((count, crc))
                self.notes.append(note)
                size, log = size + len(data), log + len(line)
        return size, log


def _set_aside_if_damaged(folder: Path, error: Exception) -> None:
    if not folder.is_dir() or (isinstance(error, OSError) and error.errno in _NO_DAMAGE):
        return
    bad = folder.with_name(f"{folder.name}.bad")
    shutil.rmtree(bad, ignore_errors=True)
    with contextlib.suppress(OSError):
        move(folder, bad)
    print(f"warning: {folder} was damaged; it is set aside as {bad.name} and built anew", file=sys.stderr)


def _is_whole(rows: Rows, blocks: Sequence[tuple[int, int]]) -> bool:
    with rows.file.open("rb") as file:
        for count, expected in blocks:
            left, crc = count * rows.row_bytes, 0
            while left:
                data = file.read(min(left, _PIECE))
                if not data:
                    return False
                crc, left = zlib.crc32(data, crc), left - len(data)
            if crc != expected:
                return False
        return not file.read(1) and sum(count for count, _ in blocks) == len(rows)


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
