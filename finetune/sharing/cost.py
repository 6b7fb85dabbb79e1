"""Does a store of activations pay? Bytes to write and read against compute to repeat. Imports no torch."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.storage.system import drop_from_page_cache

_TRIAL_BYTES = 32 << 20


@dataclass(frozen=True)
class Disk:
    """What the disk under a cache does, bytes a second."""

    write: float
    """With everything on the disk at the end."""
    read: float
    """From the page cache."""
    cold: float
    """From the disk itself."""


@dataclass(frozen=True)
class Costs:
    """What one machine takes for one network."""

    disk: Disk
    compute: tuple[float, ...]
    """Seconds an image from the input to each cut, where a store is filled: entry i for a cut after i modules."""
    memory: float
    """Bytes of the page cache that stores can count on."""
    in_batches: tuple[float, ...] | None = None
    """The same in the batches of a trial, where that takes another time."""


@dataclass(frozen=True)
class Decision:
    """Whether to store, and why, in words."""

    pays: bool
    reason: str


def decide(
    costs: Costs, modules: int, row_bytes: int, rows: int, passes: float, reads: float | None = None
) -> Decision:
    """Compare the seconds an image with and without a store.

    Args:
        costs: Of this machine.
        modules: How many lie before the cut.
        row_bytes: The bytes of one image's activations.
        rows: Images to store.
        passes: How often each will be used, by all trials together.
        reads: How often it is read for that; by default each time.
    """
    in_batches = costs.compute if costs.in_batches is None else costs.in_batches
    fits = rows * row_bytes < costs.memory
    read = row_bytes / (costs.disk.read if fits else costs.disk.cold)
    stored = costs.compute[modules] + row_bytes / costs.disk.write + (passes if reads is None else reads) * read
    repeated = passes * in_batches[modules]
    pays = stored < repeated
    where = "memory" if fits else "disk"
    reason = (
        f"{passes:g} passes over {rows} images: to store {rows * row_bytes / 1e6:,.0f} MB and read from {where} takes "
        f"{_seconds(stored * rows)}, to compute each time {_seconds(repeated * rows)}"
    )
    return Decision(pays, reason)


def measure_disk(cache: Path) -> Disk:
    """Write and read a file of 32 MB under `cache`, in a tenth of a second on a usual disk.

    A disk that is full or read-only counts as one of a byte a second.
    """
    data = os.urandom(1 << 20) * (_TRIAL_BYTES >> 20)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache, buffering=0) as file:

            def once() -> float:
                file.seek(0)
                return _timed(lambda: file.read(_TRIAL_BYTES))

            def write() -> None:
                file.write(data)
                os.fsync(file.fileno())

            written = _timed(write)
            hot = min(once() for _ in range(3))
            drop_from_page_cache(file.fileno())
            cold = once()
    except OSError:
        return Disk(1.0, 1.0, 1.0)
    return Disk(*(_TRIAL_BYTES / max(seconds, 1e-6) for seconds in (written, hot, cold)))


def cumulative(seconds: Sequence[float]) -> tuple[float, ...]:
    """From seconds of each unit to seconds up to each cut, the input among them."""
    return tuple(sum(seconds[:cut]) for cut in range(len(seconds) + 1))


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s"


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
