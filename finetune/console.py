"""The terminal: what is printed, tables, and bars for long work."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from finetune.storage.parallel import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

# Names of files and classes, and errors, are printed as they are: "[/usr/lib/x.so]" is no markup, ":cat:" no emoji.
# Lines are not wrapped, so that a command can be copied; a pipe has no width of its own.
console = Console(
    soft_wrap=True, highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120
)


def plain_stage(what: str, done: int, total: int) -> None:
    """Print a line when a stage ends."""
    if done == total:
        console.print(f"{what}: {total}")


@contextlib.contextmanager
def stages() -> Iterator[Progress]:
    """Show the work that comes before training: a bar for each stage on a terminal, a line when it ends elsewhere."""
    if not console.is_terminal:
        yield plain_stage
        return

    from rich.progress import Progress as Bars

    with Bars(console=console, transient=True) as display:
        yield stage_bars(display)


def stage_bars(display: "Bars") -> Progress:
    """A bar for each stage, which becomes a line when the stage ends."""
    bars: dict[str, Any] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in bars and done < total:
            bars[what] = display.add_task(what, total=total)
        if what not in bars:
            return

        display.update(bars[what], completed=done)
        if done == total:
            display.remove_task(bars.pop(what))
            plain_stage(what, done, total)

    return show


def plain_table(title: str) -> RichTable:
    """A table without lines between its rows, closer together on a narrow terminal."""
    narrow = console.width < 100
    return RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=narrow)
