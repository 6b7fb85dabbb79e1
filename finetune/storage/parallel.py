"""Work in threads whose results come in order."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")

Progress = Callable[[str, int, int], None]
"""Called as long work goes on: with what is being done, how much of it is done, and the total."""


def no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""


def in_order(
    work: Callable[[Input], Output],
    items: Iterable[Input],
    threads: int,
    at_start: Callable[[], object] | None = None,
    ahead: int | None = None,
) -> Generator[Output, None, None]:
    """`map(work, items)` in `threads` threads, which are at most `ahead` results ahead of the reader.

    Memory is bounded by that, where `ThreadPoolExecutor.map` takes all items at once.

    Args:
        work: What is done with an item.
        items: Taken one by one, as results are read.
        threads: How many work at a time.
        at_start: Runs first in every thread.
        ahead: Two results a thread by default.
    """
    remaining = iter(items)
    pending = deque[Future[Output]]()
    with ThreadPoolExecutor(threads, initializer=at_start) as pool:
        try:
            for item in itertools.islice(remaining, ahead or 2 * threads):
                pending.append(pool.submit(work, item))

            while pending:
                output = pending.popleft().result()
                pending.extend(pool.submit(work, item) for item in itertools.islice(remaining, 1))
                yield output
        finally:
            pool.shutdown(cancel_futures=True)
