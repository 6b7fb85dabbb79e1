"""Work in threads, results in order."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_order(
    work: Callable[[Item], Made],
    items: Iterable[Item],
    threads: int,
    at_start: Callable[[], object] | None = None,
    ahead: int | None = None,
) -> Generator[Made, None, None]:
    """`map(work, items)` in `threads` threads, which are at most `ahead` results ahead of the reader, else two each.

    `at_start` runs first in every thread.
    """
    waiting = deque[Future[Made]]()
    coming = iter(items)
    with ThreadPoolExecutor(threads, initializer=at_start) as pool:
        try:
            for item in itertools.islice(coming, ahead or 2 * threads):
                waiting.append(pool.submit(work, item))
            while waiting:
                made = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in itertools.islice(coming, 1))
                yield made
        finally:
            pool.shutdown(cancel_futures=True)


def free_memory() -> float:
    """Bytes that the page cache may take: half of what is available."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024 / 2
    return float(4 << 30)
