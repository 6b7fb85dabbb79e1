"""A whole sweep as one small table, to replay others on: `python benchmarks/record.py FOLDER OUT.npz`.

FOLDER is a sweep's, run from a file of benchmarks/recorded/. The table holds which validation images each trial got
right after each epoch, packed, and how long it took; `read_table` reads it.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.records.ranking import Objective
from finetune.records.read import read_records
from finetune.records.result import Result
from finetune.report.bits import columns_of, epochs_of

DEPTH, RATE, HEAD = "model.freeze_depth", "optim.lr", "model.head.hidden"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()

    table = tabulate(read_records(arguments.folder))
    write_table(table, arguments.out)
    configurations, seeds, epochs, images = table.right.shape
    size = arguments.out.stat().st_size / 1000
    print(f"{configurations} configurations x {seeds} seeds x {epochs} epochs x {images} images, {size:.0f} kB")


@dataclass(frozen=True)
class Table:
    """A grid that was run whole, with several seeds; configurations by depth, the deepest cut first, rate and head."""

    name: str
    right: NDArray[np.bool_]
    """Configurations x seeds x epochs x images: whether each validation image was right."""
    seconds: NDArray[np.float64]
    """Configurations x seeds: of a whole trial."""
    elapsed: NDArray[np.float64]
    """Configurations x seeds x epochs: the share of its seconds that had passed at each epoch's end."""
    depth: NDArray[np.int64]
    """Of each configuration its freeze depth,"""
    rate: NDArray[np.float64]
    """its learning rate,"""
    head: NDArray[np.str_]
    """and its head's hidden layers, as a sweep file has them."""
    classes: int


def tabulate(records: list[Result], name: str = "") -> Table:
    """The table of the seeds with which every configuration was run; others are left out, and said to be."""
    complete = [record for record in records if record.status == "complete"]
    if columns_of([complete], Objective()) is None:
        raise SystemExit("the trials were not judged on the same images, or do not tell which they got right")

    trials = {(_configuration(record), record.seed): record for record in complete}
    configurations = sorted({key for key, _ in trials}, key=lambda key: (-key[0], -key[1], key[2]))
    having: dict[int, int] = defaultdict(int)
    for _, seed in trials:
        having[seed] += 1
    seeds = sorted(seed for seed, count in having.items() if count == len(configurations))
    if len(seeds) < len(having):
        print(f"left out, for want of some trials: seeds {sorted(having.keys() - set(seeds))}")

    grid = [[trials[key, seed] for seed in seeds] for key in configurations]
    depths, rates, heads = zip(*configurations, strict=True)
    return Table(
        name=name,
        right=np.array([[epochs_of(trial) for trial in row] for row in grid]),
        seconds=np.array([[trial.seconds["total"] for trial in row] for row in grid]),
        elapsed=np.array([[_elapsed(trial) for trial in row] for row in grid]),
        depth=np.array(depths),
        rate=np.array(rates),
        head=np.array([str(list(hidden)) for hidden in heads]),
        classes=len(complete[0].classes),
    )


def _configuration(record: Result) -> tuple[int, float, tuple[int, ...]]:
    return int(record.params[DEPTH]), float(record.params[RATE]), tuple(record.params.get(HEAD, []))


def _elapsed(trial: Result) -> NDArray[np.float64]:
    """Records have no times of single epochs, so all epochs of a trial are taken to be equally long."""
    total, train = trial.seconds["total"], trial.seconds["train"]
    epochs = len(trial.history)
    return (total - train + train * np.arange(1, epochs + 1) / epochs) / total


def write_table(table: Table, file: Path) -> None:
    np.savez_compressed(
        file,
        right=np.packbits(table.right, axis=-1),
        images=table.right.shape[-1],
        seconds=table.seconds.astype(np.float32),
        elapsed=table.elapsed.astype(np.float32),
        depth=table.depth,
        rate=table.rate,
        head=table.head,
        classes=table.classes,
    )


def read_table(file: Path) -> Table:
    """Its name is the file's."""
    with np.load(file, allow_pickle=False) as stored:
        right = np.unpackbits(stored["right"], axis=-1, count=int(stored["images"])).astype(np.bool_)
        seconds, elapsed = (stored[key].astype(np.float64) for key in ("seconds", "elapsed"))
        settings = [stored[key] for key in ("depth", "rate", "head")]
        return Table(file.stem, right, seconds, elapsed, *settings, classes=int(stored["classes"]))


if __name__ == "__main__":
    main()
