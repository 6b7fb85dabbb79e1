"""Does a race reach the whole grid's answer, and for how much less? `python benchmarks/answer.py FOLDER --weights F`.

ResNet18 at 96 px, five depths x three learning rates, four epochs, for each of three seeds: the whole grid with shared
stores, then the race, both with two trials side by side; and of the naive grid one epoch at each depth, from which its
total is made. Prints the two answers side by side, whether they agree, and naive over race. About 10 minutes for
250 + 150 images of 500 px on 2 cores.
"""

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import CORES, Figure, print_rows, run_naive, write_json

from finetune.compose import override
from finetune.report.table import read_records
from finetune.result import Result
from finetune.sweep.run import Options, run_sweep
from finetune.sweep.spec import read_sweep

DEPTHS, RATES, EPOCHS, SIZE = (0, 3, 5, 7, 9), (0.0003, 0.001, 0.003), 4, 96
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
        naive, epochs = naive_grid(given.data, given.weights, scratch)
        rows = [compare(seed, given, scratch, naive) for seed in range(given.seeds)]
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
    ratio = Figure(tuple(row["naive / race"] for row in rows))
    print(f"\nnaive grid {naive:.0f} s ({epochs}); naive / race: {ratio}")
    write_json(given.json, {"rows": rows, "naive_seconds": naive, "naive_over_race": ratio.record()})


def naive_grid(data: Path, weights: Path, scratch: Path) -> tuple[float, str]:
    """Seconds of the naive grid, one trial after another with all cores, from one epoch at each depth."""
    total, told = 0.0, []
    for depth in DEPTHS:
        settings = {"backbone": "resnet18", "depth": depth, "size": SIZE, "epochs": EPOCHS, "stop_after": 1}
        spent, made = run_naive(data, weights, scratch / "naive.json", **settings)
        epoch = made["epochs"][0]["seconds"]
        total += len(RATES) * (spent.wall + (EPOCHS - 1) * epoch)
        told.append(f"k={depth} {epoch:.1f} s an epoch")
    return total, ", ".join(told)


def compare(seed: int, given: argparse.Namespace, scratch: Path, naive: float) -> dict[str, Any]:
    """The two answers of one seed."""
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
    return row


def best(records: list[Result]) -> tuple[int, float, float]:
    """Depth, learning rate and accuracy of the best complete trial."""
    complete = [r for r in records if r.status == "complete"]
    winner = max(complete, key=lambda r: (r.val_acc_best or 0.0, r.freeze_depth or 0))
    assert winner.freeze_depth is not None
    assert winner.val_acc_best is not None
    return winner.freeze_depth, float(winner.params["optim.lr"]), winner.val_acc_best


if __name__ == "__main__":
    main()
