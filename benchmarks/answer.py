"""Does a race reach the whole grid's answer, and for how much less? `python benchmarks/answer.py FOLDER --weights F`.

ResNet18 at 96 px, five depths x three learning rates, five epochs, for each of three seeds: the whole grid with shared
stores, then the race, both with two trials side by side; and of the naive grid a whole trial at each depth, from which
its total is made. Prints the answers side by side, whether they agree, naive over race, and the accuracies of the naive
trials beside those of ours. `--grid` takes the whole grid's records from a folder where `finetune sweep` ran it. With
it, about 10 minutes for 950 + 250 images on 2 cores.
"""

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import CORES, Figure, print_rows, run_naive, write_json

from finetune.compose import override
from finetune.report.table import read_records
from finetune.result import Result
from finetune.sweep.run import run_sweep
from finetune.sweep.spec import read_sweep
from finetune.sweep.state import Options

DEPTHS, RATES, EPOCHS, SIZE = (0, 3, 5, 7, 9), (0.0003, 0.001, 0.003), 5, 96
NAIVE_RATE = 0.001
FILE = f"""
name: answer
method: grid
metric: {{name: val/acc_best, goal: maximize}}
parameters:
  model.freeze_depth: {{values: {list(DEPTHS)}}}
  optim.lr: {{values: {list(RATES)}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet18's, as .pth")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", type=Path, help="folder of the same grid, run before, whose records are taken")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        naive = naive_trials(given.data, given.weights, scratch)
        seconds = len(RATES) * sum(trial.seconds for trial in naive.values())
        rows, grids = zip(*(compare(seed, given, scratch, seconds) for seed in range(given.seeds)), strict=True)
    columns = [
        "seed",
        "grid: k, lr, val/acc",
        "race: k, lr, val/acc",
        "standard error",
        "agree",
        "epochs run",
        "naive / race",
    ]
    print_rows("the whole grid and the race", columns, [[row[name] for name in columns] for row in rows])
    ours = {depth: Figure(tuple(accuracy_at(grid, depth) for grid in grids)) for depth in DEPTHS}
    print_rows(
        f"val/acc_best at lr {NAIVE_RATE:g}: naive, seed 0, and ours, median of {given.seeds} seeds (spread)",
        ["frozen", "naive", "ours", "naive, seconds of a trial"],
        [[depth, f"{trial.accuracy:.3f}", ours[depth], f"{trial.seconds:.1f}"] for depth, trial in naive.items()],
    )
    ratio = Figure(tuple(row["naive / race"] for row in rows))
    print(f"\nnaive grid {seconds:.0f} s; naive / race: {ratio}")
    write_json(
        given.json,
        {
            "images": given.data.name,
            "rows": rows,
            "naive_seconds": seconds,
            "naive_over_race": ratio.record(),
            "accuracies": {k: {"naive": t.accuracy, "ours": ours[k].record()} for k, t in naive.items()},
        },
    )


@dataclass(frozen=True)
class NaiveTrial:
    """A whole one, with all cores."""

    seconds: float
    accuracy: float
    """Of its best epoch."""


def naive_trials(data: Path, weights: Path, scratch: Path) -> dict[int, NaiveTrial]:
    """A whole naive trial at each depth."""
    trials = {}
    for depth in DEPTHS:
        settings = {"backbone": "resnet18", "depth": depth, "size": SIZE, "epochs": EPOCHS, "stop_after": EPOCHS}
        spent, made = run_naive(data, weights, scratch / "naive.json", lr=NAIVE_RATE, **settings)
        trials[depth] = NaiveTrial(spent.wall, max(epoch["val/acc"] for epoch in made["epochs"]))
        print(f"naive, k={depth}", trials[depth], flush=True)
    return trials


def accuracy_at(grid: list[Result], depth: int) -> float:
    """What our trial of the naive one's learning rate found at a depth."""
    found = [r.val_acc_best for r in grid if r.freeze_depth == depth and r.params["optim.lr"] == NAIVE_RATE]
    assert found[0] is not None
    return found[0]


def compare(seed: int, given: argparse.Namespace, scratch: Path, naive: float) -> tuple[dict[str, Any], list[Result]]:
    """The two answers of one seed, and the grid's records."""
    file = scratch / "answer.yaml"
    file.write_text(FILE)
    fixed = (
        "model=resnet18",
        override("data.root", str(given.data.absolute())),
        override("model.weights", str(given.weights.absolute())),
        f"data.size={SIZE}",
        f"trainer.epochs={EPOCHS}",
        f"seed={seed}",
    )

    def run(name: str, race: bool) -> tuple[float, list[Result]]:
        words = (*fixed, override("cache.dir", str(scratch / f"cache-{name}-{seed}")))
        start = time.perf_counter()
        run_sweep(read_sweep(file, words, race=race), scratch / f"{name}-{seed}", Options(workers=CORES))
        return time.perf_counter() - start, read_records(scratch / f"{name}-{seed}")

    seconds, raced = run("race", race=True)
    grid = [r for r in read_records(given.grid) if r.seed == seed] if given.grid else run("grid", race=False)[1]
    assert len(grid) == len(DEPTHS) * len(RATES)
    (k, rate, accuracy), (raced_k, raced_rate, raced_accuracy) = best(grid), best(raced)
    images = given.data / "val"
    error = math.sqrt(accuracy * (1 - accuracy) / sum(1 for file in images.rglob("*") if file.is_file()))
    at_raced_depth = max(r.val_acc_best or 0.0 for r in grid if r.freeze_depth == raced_k)
    agree = abs(accuracy - raced_accuracy) <= error and accuracy - at_raced_depth <= error
    row = {
        "seed": seed,
        "grid: k, lr, val/acc": f"{k}, {rate:g}, {accuracy:.3f}",
        "race: k, lr, val/acc": f"{raced_k}, {raced_rate:g}, {raced_accuracy:.3f}",
        "standard error": round(error, 3),
        "agree": "yes" if agree else "no",
        "epochs run": f"{sum(len(r.history) for r in raced)} of {sum(len(r.history) for r in grid)}",
        "naive / race": round(naive / seconds, 1),
        "race seconds": round(seconds, 1),
        "mean epochs of a raced trial": round(statistics.mean(len(r.history) for r in raced), 2),
    }
    print(row, flush=True)
    return row, grid


def best(records: list[Result]) -> tuple[int, float, float]:
    """Depth, learning rate and accuracy of the best complete trial."""
    complete = [r for r in records if r.status == "complete"]
    winner = max(complete, key=lambda r: (r.val_acc_best or 0.0, r.freeze_depth or 0))
    assert winner.freeze_depth is not None
    assert winner.val_acc_best is not None
    return winner.freeze_depth, float(winner.params["optim.lr"]), winner.val_acc_best


if __name__ == "__main__":
    main()
