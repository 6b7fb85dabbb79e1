"""Rows on disk: equal arrays, one per image, written once and read by every process. Imports no torch.

A store is a folder: `rows.bin`, and a `manifest.json` with shape, dtype and a checksum per block. It is built in
FOLDER.part, which an interrupted build leaves behind and the next one continues, and published by a rename.
"""

import contextlib
import errno
import json
import os
import shutil
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

from finetune.storage.durable import AppendOnlyFile, move, publish_folder, sealed, unsealed, write_durably
from finetune.storage.permissions import refuse_shared_writing
from finetune.storage.system import open_to_read, read_at, share

MANIFEST = "manifest.json"
_ROWS = "rows.bin"
_BLOCKS = "blocks.jsonl"
"""The log of a build: a line for each block that is on the disk."""
_PIECE = 1 << 24
"""Bytes that are read at once to take a checksum."""
_NO_DAMAGE = frozenset({errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say that this process cannot open a store, not that the store is damaged."""


class Rows:
    """Equal rows of a file by position, as `rows[indices]`: n x shape.

    They are read, not mapped: the page cache is shared all the same, this process's resident set does not grow with
    the file, and a truncated file is an error instead of a bus error.
    """

    def __init__(self, file: Path, count: int, shape: Sequence[int], dtype: str):
        """`dtype` is NumPy's name; `bfloat16`, which NumPy lacks, is read as uint16."""
        self.file = file
        self.dtype = dtype
        self.shape = (count, *shape)
        self._dtype = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        self.row_bytes = int(np.prod(shape, dtype=np.int64)) * self._dtype.itemsize
        self._descriptor: int | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def whole(self) -> "Rows":
        """All rows of the store."""
        return self

    @property
    def positions(self) -> NDArray[np.int64] | None:
        """Of these rows in the whole store; None where they are all of it."""
        return None

    def __getitem__(self, chosen: slice | Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """The rows at these positions, in their order; neighbours are read at once.

        Raises:
            IndexError: a position is outside 0..len - 1.
            OSError: the file is shorter than it should be.
        """
        indices = np.arange(*chosen.indices(len(self))) if isinstance(chosen, slice) else np.asarray(chosen)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"rows 0..{len(self) - 1} are there, not {indices.min()}..{indices.max()}")

        out = np.empty((len(indices), *self.shape[1:]), self._dtype)
        if out.size == 0:
            return out

        if self._descriptor is None:
            # opened by the process that reads: a descriptor does not travel to another one
            self._descriptor = open_to_read(self.file)
            weakref.finalize(self, os.close, self._descriptor)

        target = out.reshape(-1).view(np.uint8).data
        run_starts = np.flatnonzero(np.diff(indices, prepend=indices[0] - 2) != 1)
        run_ends = [*run_starts[1:], len(indices)]
        for start, end in zip(run_starts, run_ends, strict=True):
            part = target[start * self.row_bytes : end * self.row_bytes]
            self._read_into(part, int(indices[start]) * self.row_bytes)
        return out

    def _read_into(self, part: memoryview, offset: int) -> None:
        assert self._descriptor is not None
        while part:
            count = read_at(self._descriptor, part, offset)
            if count == 0:
                raise OSError(f"{self.file} is truncated; remove its folder, and it is built anew")
            part = part[count:]
            offset += count


class RowsInMemory(Rows):
    """Rows that are kept in memory, for want of a place to store them."""

    def __init__(self, rows: NDArray[Any]):
        """`rows`: n x shape."""
        super().__init__(Path(), len(rows), rows.shape[1:], str(rows.dtype))
        self._array = rows

    def __getitem__(self, chosen: slice | Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """The rows at these positions, in their order."""
        return self._array[chosen if isinstance(chosen, slice) else np.asarray(chosen, dtype=np.int64)]


class PickedRows(Rows):
    """Some rows of a store, as a fold has them of all images."""

    def __init__(self, rows: Rows, positions: NDArray[np.int64]):
        """`positions`: which of the `rows`, in order."""
        super().__init__(rows.file, len(positions), rows.shape[1:], rows.dtype)
        self._rows = rows
        self._positions = positions

    @property
    def whole(self) -> Rows:
        """All rows of the store."""
        return self._rows

    @property
    def positions(self) -> NDArray[np.int64]:
        """Of these rows in the whole store."""
        return self._positions

    def __getitem__(self, chosen: slice | Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """The rows at these positions among the picked ones, in their order."""
        return self._rows[self._positions[chosen if isinstance(chosen, slice) else np.asarray(chosen, dtype=np.int64)]]


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
        folder: The store's folder.
        verify: Read all of it and compare the checksums.

    Raises:
        Refused: others could have written it.
    """
    refuse_shared_writing(folder)
    try:
        lock = os.open(folder / MANIFEST, os.O_RDONLY)
    except OSError as error:
        _set_aside_if_damaged(folder, error)
        return None

    with contextlib.suppress(OSError):  # a file system without locks
        share(lock)
    with contextlib.suppress(OSError):  # a store that others may only read
        os.utime(folder / MANIFEST)  # eviction takes the least recently used first

    try:
        manifest = unsealed((folder / MANIFEST).read_bytes())
        rows = Rows(folder / _ROWS, manifest["count"], manifest["shape"], manifest["dtype"])
        if not (_is_whole(rows, manifest["blocks"]) if verify else rows.file.is_file()):
            raise ValueError("checksums differ")
        store = Store(folder, rows, manifest["about"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        os.close(lock)
        _set_aside_if_damaged(folder, error)
        return None

    weakref.finalize(rows, os.close, lock)  # closing the descriptor releases the lock
    return store


@contextlib.contextmanager
def stores_in_use(folders: Iterable[Path]) -> Iterator[None]:
    """Keep these stores, as far as they are there: none of them is evicted meanwhile."""
    with contextlib.ExitStack() as stack:
        for folder in folders:
            with contextlib.suppress(OSError):  # gone, or a file system without locks
                manifest = stack.enter_context((folder / MANIFEST).open("rb"))
                share(manifest.fileno())
        yield


def store_bytes(count: int, shape: Sequence[int], itemsize: int) -> int:
    """Bytes that `count` rows take on disk, the manifest left out.

    >>> store_bytes(1000, (224, 224, 3), itemsize=1)
    150528000
    """
    return count * int(np.prod(shape, dtype=np.int64)) * itemsize


class StoreBuilder:
    """A store under way. `done` rows are there already, from an earlier attempt whose blocks are intact."""

    def __init__(self, folder: Path, shape: Sequence[int], dtype: str):
        """`folder` is the finished store's; the caller has locked it."""
        self.folder = folder
        self.shape = tuple(shape)
        self.dtype = dtype
        self.row_bytes = Rows(Path(), 0, shape, dtype).row_bytes
        self.part = folder.with_name(f"{folder.name}.part")
        self.part.mkdir(parents=True, exist_ok=True)

        self.blocks = list[tuple[int, int]]()
        """Rows and checksum of each block."""
        self.notes = list[Any]()
        intact_rows, intact_log = self._take_over_intact_blocks()
        self.done = sum(count for count, _ in self.blocks)

        self._rows = AppendOnlyFile(self.part / _ROWS, intact_rows)
        self._log = AppendOnlyFile(self.part / _BLOCKS, intact_log)
        self._checksums = ThreadPoolExecutor(1)
        """Takes checksums while rows are written."""

    def append(self, rows: NDArray[Any], note: Any = None) -> None:
        """Add rows n x shape, and whatever a continued build must know of them."""
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        checksum = self._checksums.submit(zlib.crc32, data)
        self._rows.append(data)

        # the rows come before their line in the log: what the log names is there
        block = len(rows), checksum.result()
        self.blocks.append(block)
        self.notes.append(note)
        self._log.append(f"{json.dumps([*block, note])}\n".encode())
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
        self._checksums.shutdown()
        self._rows.close()
        self._log.close()

    def drop(self) -> None:
        """Remove what was built."""
        self.close()
        shutil.rmtree(self.part, ignore_errors=True)

    def _take_over_intact_blocks(self) -> tuple[int, int]:
        """Note the blocks of an earlier attempt up to the first damaged one; their bytes of rows and of log."""
        rows_size = 0
        log_size = 0
        with contextlib.suppress(OSError, ValueError, TypeError), (self.part / _ROWS).open("rb") as file:
            for line in (self.part / _BLOCKS).read_bytes().splitlines(keepends=True):
                count, crc, note = json.loads(line)
                data = file.read(count * self.row_bytes)
                if len(data) != count * self.row_bytes or zlib.crc32(data) != crc or not line.endswith(b"\n"):
                    break
                self.blocks.append((count, crc))
                self.notes.append(note)
                rows_size += len(data)
                log_size += len(line)
        return rows_size, log_size


def _set_aside_if_damaged(folder: Path, error: Exception) -> None:
    if not folder.is_dir() or (isinstance(error, OSError) and error.errno in _NO_DAMAGE):
        return

    bad = folder.with_name(f"{folder.name}.bad")
    shutil.rmtree(bad, ignore_errors=True)
    with contextlib.suppress(OSError):  # a read-only cache, or another process did it already
        move(folder, bad)
    print(f"warning: {folder} was damaged; it is set aside as {bad.name} and built anew", file=sys.stderr)


def _is_whole(rows: Rows, blocks: Sequence[tuple[int, int]]) -> bool:
    with rows.file.open("rb") as file:
        for count, expected in blocks:
            remaining = count * rows.row_bytes
            crc = 0
            while remaining:
                data = file.read(min(remaining, _PIECE))
                if not data:
                    return False
                crc = zlib.crc32(data, crc)
                remaining -= len(data)
            if crc != expected:
                return False

        is_at_end = not file.read(1)
        return is_at_end and sum(count for count, _ in blocks) == len(rows)
