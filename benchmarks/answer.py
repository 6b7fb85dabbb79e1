"""What does a verdict cost beside the grid people run for one? `python benchmarks/answer.py FOLDER --weights F`.

The sweep of `make sweep-local DATA=`, sweeps/explore.yaml, with ResNet18 at 96 px: six depths x five learning rates x
two heads, five epochs. People who want to know how sure they can be run the grid with three seeds. In turn, for each of
some seeds: of that naive grid, in 32-bit, a whole trial at each depth, from which its total is made, then `finetune
sweep` as it is by default, two trials side by side, to its verdict. Prints the verdicts, and naive over ours. About 9
minutes a seed on 2 cores for 244 + 153 images, and 27 for 939 + 265.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import CORES, Figure, add_precision, print_rows, run_naive, write_json

from finetune.compose import override
from finetune.records.ranking import MARGIN, read_objective
from finetune.records.read import read_records
from finetune.report.depths import depths_of
from finetune.report.table import tabulate
from finetune.report.verdict import conclude
from finetune.sweep.run import run_sweep
from finetune.sweep.search import DEPTH, size
from finetune.sweep.spec import SweepSpec, find_sweep, read_sweep
from finetune.sweep.state import Options

FILE = "explore.yaml"
BACKBONE, EPOCHS, SIZE = "resnet18", 5, 96
NAIVE_RATE, NAIVE_SEEDS = 0.001, 3
APART = 100
"""From one exploring seed to the next: its repeats have the seeds that follow."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet18's, as .pth")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    add_precision(parser, default="auto")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        rounds = [compare(APART * i, given, scratch) for i in range(given.seeds)]

    rows = [one.row for one in rounds]
    print_rows("a verdict", list(rows[0]), [list(row.values()) for row in rows])
    for one in rounds:
        print("\n" + "\n".join(one.sentences))

    ratio = Figure(tuple(one.row["naive grid x 3 / ours"] for one in rounds))
    print(f"\nnaive grid with {NAIVE_SEEDS} seeds / ours, with a verdict: {ratio}")
    write_json(given.json, {"images": given.data.name, "naive_over_ours": ratio.record(), "rounds": rows})


@dataclass(frozen=True)
class Round:
    """What one seed gave."""

    row: dict[str, Any]
    sentences: tuple[str, ...]


def naive_seconds(spec: SweepSpec, data: Path, weights: Path, scratch: Path, seed: int) -> float:
    """Of the whole naive grid with all its seeds, from a whole trial at each depth."""
    known = depths_of(BACKBONE, "share")
    shares = spec.parameters[DEPTH].choices
    assert known is not None
    assert shares is not None
    fixed = {"backbone": BACKBONE, "size": SIZE, "epochs": EPOCHS, "stop_after": EPOCHS, "lr": NAIVE_RATE}
    total = 0.0
    for share in shares:
        depth = known.place(share)
        spent, _ = run_naive(data, weights, scratch / "naive.json", depth=depth, seed=seed, **fixed)
        print(f"naive, seed {seed}, k={depth}: {spent.wall:.1f} s", flush=True)
        total += spent.wall
    return total * NAIVE_SEEDS * size(spec) / len(shares)


def compare(seed: int, given: argparse.Namespace, scratch: Path) -> Round:
    """The naive cost and our verdict, one after the other."""
    words = (
        f"model={BACKBONE}",
        override("data.root", str(given.data.absolute())),
        override("model.weights", str(given.weights.absolute())),
        *(f"data.size={SIZE}", f"trainer.epochs={EPOCHS}", f"trainer.precision={given.precision}"),
        f"seed={seed}",
        override("cache.dir", str(scratch / f"cache-{seed}")),
    )
    spec = read_sweep(find_sweep(FILE), words)
    naive = naive_seconds(spec, given.data, given.weights, scratch, seed)

    folder = scratch / f"sweep-{seed}"
    start = time.perf_counter()
    run_sweep(spec, folder, Options(workers=CORES, margin=MARGIN))
    seconds = time.perf_counter() - start

    records = read_records(folder)
    conclusions = conclude(records, tabulate(records, read_objective([folder])))
    standings = {depth.standing: depth.name for depth in conclusions.depths}
    undecided = [depth.name for depth in conclusions.depths if depth.standing in ("open", "images")]
    row = {
        "seed": seed,
        "take": standings["best"],
        "not decided against": ", ".join(undecided) or "none",
        "trials": f"{sum(r.seed == seed for r in records)} + {sum(r.seed != seed for r in records)}",
        "epochs": sum(len(r.history) for r in records),
        "precision": ", ".join(sorted({str(r.config["trainer.precision"]) for r in records})),
        "naive grid x 3, seconds": round(naive),
        "ours, seconds": round(seconds),
        "naive grid x 3 / ours": round(naive / seconds, 1),
    }
    print(row, flush=True)
    return Round(row, conclusions.sentences)


if __name__ == "__main__":
    main()
