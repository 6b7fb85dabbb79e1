"""Rows on disk: equal arrays, one per image, written once and read by every process. Imports no torch.

A store is a folder: `rows.bin`, and a `manifest.json` with shape, dtype and a checksum per block. It is built in
FOLDER.part, which an interrupted build leaves behind and the next one continues, and published by a rename.
"""

import contextlib
import fcntl
import json
import os
import shutil
import sys
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from finetune.durable import publish_folder

KINDS = ("pixels", "activations")
"""The folders of a cache that hold stores."""
_ROWS, _MANIFEST, _BLOCKS = "rows.bin", "manifest.json", "blocks.jsonl"
_PIECE = 1 << 24
_SPARE = 2 << 30
"""Bytes of the disk that stores leave to others."""


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


@dataclass(frozen=True)
class Store:
    """A finished store; it is not evicted while its rows are in memory."""

    folder: Path
    rows: Rows
    about: dict[str, Any]
    """What its builder noted."""


def open_store(folder: Path, verify: bool = True) -> Store | None:
    """The store in `folder`; None if there is none, or a damaged one, which is set aside as `FOLDER.bad`.

    Args:
        folder: Of one store.
        verify: Read all of it and compare the checksums.
    """
    try:
        claim = os.open(folder / _MANIFEST, os.O_RDONLY)
    except OSError:
        if folder.is_dir():
            _set_aside(folder)
        return None
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(claim, fcntl.LOCK_SH)
    with contextlib.suppress(OSError):  # a store that others may only read
        os.utime(folder / _MANIFEST)
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        rows = Rows(folder / _ROWS, manifest["count"], manifest["shape"], manifest["dtype"])
        if not (_is_whole(rows, manifest["blocks"]) if verify else rows.file.is_file()):
            raise ValueError("checksums differ")
        store = Store(folder, rows, manifest["about"])
    except (OSError, ValueError, KeyError, TypeError):
        os.close(claim)
        if folder.is_dir():
            _set_aside(folder)
        return None
    weakref.finalize(rows, os.close, claim)  # lets go of the lock
    return store


def store_bytes(count: int, shape: Sequence[int], itemsize: int) -> int:
    """What a store will take on disk, its manifest left out."""
    return count * int(np.prod(shape, dtype=np.int64)) * itemsize


class Building:
    """A store under way. `done` rows are there already, from an earlier attempt whose blocks are intact."""

    def __init__(self, folder: Path, shape: Sequence[int], dtype: str):
        """`folder` is the finished store's; the caller holds its lock."""
        self.folder, self.shape, self.dtype = folder, tuple(shape), dtype
        self.part = folder.with_name(f"{folder.name}.part")
        self.part.mkdir(parents=True, exist_ok=True)
        self.blocks, self.notes = self._intact()
        self.done = sum(count for count, _ in self.blocks)
        self._rows = (self.part / _ROWS).open("ab")
        self._log = (self.part / _BLOCKS).open("a")

    def append(self, rows: NDArray[Any], note: Any = None) -> None:
        """Add rows n x shape, and whatever a continued build must know of them."""
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._rows.write(data)
        self._rows.flush()
        self.blocks.append((len(rows), zlib.crc32(data)))
        self.notes.append(note)
        self._log.write(json.dumps([*self.blocks[-1], note]) + "\n")
        self._log.flush()
        self.done += len(rows)

    def publish(self, about: dict[str, Any]) -> None:
        """Make the store visible, whole and on the disk."""
        self.close()
        (self.part / _BLOCKS).unlink()
        manifest = {"count": self.done, "shape": self.shape, "dtype": self.dtype, "blocks": self.blocks, "about": about}
        (self.part / _MANIFEST).write_text(json.dumps(manifest))
        publish_folder(self.part, self.folder)

    def close(self) -> None:
        """Leave the build as it is, to be continued."""
        self._rows.close()
        self._log.close()

    def drop(self) -> None:
        """Remove what was built."""
        self.close()
        shutil.rmtree(self.part, ignore_errors=True)

    def _intact(self) -> tuple[list[tuple[int, int]], list[Any]]:
        """Blocks of an earlier attempt up to the first damaged one; what follows is cut off."""
        blocks, notes, size, row = list[tuple[int, int]](), list[Any](), 0, Rows(Path(), 0, self.shape, self.dtype)
        with contextlib.suppress(OSError, ValueError, TypeError), (self.part / _ROWS).open("rb") as file:
            for line in (self.part / _BLOCKS).read_text().splitlines():
                count, crc, note = json.loads(line)
                data = file.read(count * row.row_bytes)
                if len(data) != count * row.row_bytes or zlib.crc32(data) != crc:
                    break
                blocks.append((count, crc))
                notes.append(note)
                size += len(data)
        (self.part / _ROWS).touch()
        os.truncate(self.part / _ROWS, size)
        lines = (json.dumps([*block, note]) + "\n" for block, note in zip(blocks, notes, strict=True))
        (self.part / _BLOCKS).write_text("".join(lines))
        return blocks, notes


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone with a store's name: of several processes one builds, and the others wait and find it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        yield


def make_room(cache: Path, wanted: int, limit: int) -> bool:
    """Whether `wanted` more bytes fit into a cache of at most `limit`, after the least recently used stores went.

    A store that somebody has open, or that is being built, stays.
    """
    entries = [entry for kind in KINDS for entry in (cache / kind).glob("*") if entry.is_dir()]
    sizes = {entry: _size(entry) for entry in entries}
    total = sum(sizes.values())
    free = shutil.disk_usage(cache).free - _SPARE
    if wanted > limit:
        return False
    for entry in sorted(entries, key=_last_used):
        if total + wanted <= limit and wanted <= free:
            break
        if _evict(entry):
            total, free = total - sizes[entry], free + sizes[entry]
    return total + wanted <= limit and wanted <= free


def _evict(entry: Path) -> bool:
    name = entry.name.removesuffix(".part").removesuffix(".bad")
    lock = FileLock(entry.with_name(f"{name}.lock"), blocking=False)
    try:
        with lock, contextlib.ExitStack() as stack:
            if (entry / _MANIFEST).is_file():
                claim = stack.enter_context((entry / _MANIFEST).open("rb"))
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = entry.with_name(f"{name}.gone")
            entry.rename(gone)
    except OSError:  # filelock's Timeout is one
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _last_used(entry: Path) -> float:
    newest = entry / _MANIFEST if (entry / _MANIFEST).exists() else entry
    with contextlib.suppress(OSError):
        return newest.stat().st_mtime
    return 0.0


def _size(entry: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in entry.iterdir())
    return 0


def _set_aside(folder: Path) -> None:
    bad = folder.with_name(f"{folder.name}.bad")
    shutil.rmtree(bad, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rename(bad)
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
