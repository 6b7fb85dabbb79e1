"""Does a race reach the whole grid's answer, and for how much less? `python benchmarks/answer.py FOLDER --weights F`.

ResNet18 at 96 px, five depths x three learning rates, five epochs. In turn, for each of three seeds: of the naive grid
a whole trial at each depth, from which its total is made, then the race, then the whole grid with shared stores, the
last two with two trials side by side. Prints the answers side by side, whether they agree, naive over race, and the
accuracies of the naive trials beside those of ours. On 2 cores about 16 minutes for 244 + 153 images and 42 for
939 + 265; 21 with `--grid`, which takes the whole grid's records from a folder where `finetune sweep` ran it.
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
from finetune.records.read import read_records
from finetune.records.result import Result
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
        rounds = [compare(seed, given, scratch) for seed in range(given.seeds)]
    rows = [one.row for one in rounds]
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
    trials = {
        depth: {
            "naive": Figure(tuple(one.naive[depth].accuracy for one in rounds)),
            "ours": Figure(tuple(accuracy_at(one.grid, depth) for one in rounds)),
            "naive, seconds": Figure(tuple(one.naive[depth].seconds for one in rounds)),
        }
        for depth in DEPTHS
    }
    print_rows(
        f"val/acc_best at lr {NAIVE_RATE:g}, and seconds of a trial: median of {given.seeds} seeds (spread)",
        ["frozen", *trials[0]],
        [[depth, *figures.values()] for depth, figures in trials.items()],
    )
    ratio = Figure(tuple(row["naive / race"] for row in rows))
    print(f"\nnaive / race: {ratio}")
    write_json(
        given.json,
        {
            "images": given.data.name,
            "rows": rows,
            "naive_over_race": ratio.record(),
            "trials": {k: {name: f.record() for name, f in figures.items()} for k, figures in trials.items()},
        },
    )


@dataclass(frozen=True)
class NaiveTrial:
    """A whole one, with all cores."""

    seconds: float
    accuracy: float
    """Of its best epoch."""


@dataclass(frozen=True)
class Round:
    """What one seed gave."""

    row: dict[str, Any]
    naive: dict[int, NaiveTrial]
    """By depth."""
    grid: list[Result]


def naive_trials(data: Path, weights: Path, scratch: Path, seed: int) -> dict[int, NaiveTrial]:
    """A whole naive trial at each depth."""
    fixed = {"backbone": "resnet18", "size": SIZE, "epochs": EPOCHS, "stop_after": EPOCHS, "lr": NAIVE_RATE}
    trials = {}
    for depth in DEPTHS:
        spent, made = run_naive(data, weights, scratch / "naive.json", depth=depth, seed=seed, **fixed)
        trials[depth] = NaiveTrial(spent.wall, max(epoch["val/acc"] for epoch in made["epochs"]))
        print(f"naive, seed {seed}, k={depth}", trials[depth], flush=True)
    return trials


def accuracy_at(grid: list[Result], depth: int) -> float:
    """What our trial of the naive one's learning rate found at a depth."""
    found = [r.val_acc_best for r in grid if r.freeze_depth == depth and r.params["optim.lr"] == NAIVE_RATE]
    assert found[0] is not None
    return found[0]


def compare(seed: int, given: argparse.Namespace, scratch: Path) -> Round:
    """The two answers of one seed, and what they cost."""
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

    naive = naive_trials(given.data, given.weights, scratch, seed)
    naive_seconds = len(RATES) * sum(trial.seconds for trial in naive.values())
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
        "naive / race": round(naive_seconds / seconds, 1),
        "naive seconds": round(naive_seconds, 1),
        "race seconds": round(seconds, 1),
        "mean epochs of a raced trial": round(statistics.mean(len(r.history) for r in raced), 2),
    }
    print(row, flush=True)
    return Round(row, naive, grid)


def best(records: list[Result]) -> tuple[int, float, float]:
    """Depth, learning rate and accuracy of the best complete trial."""
    complete = [r for r in records if r.status == "complete"]
    winner = max(complete, key=lambda r: (r.val_acc_best or 0.0, r.freeze_depth or 0))
    assert winner.freeze_depth is not None
    assert winner.val_acc_best is not None
    return winner.freeze_depth, float(winner.params["optim.lr"]), winner.val_acc_best


if __name__ == "__main__":
    main()
