"""Does bf16 change what a sweep finds? `python benchmarks/formats.py FOLDER --weights F`.

The same grid of ResNet18 in both formats: five freeze depths x three learning rates x three seeds, five epochs. Prints
the accuracy of each depth's best learning rate in both, their difference beside the standard deviation between seeds,
and both verdicts. The accuracy is the mean over seeds of the best epoch's. About 10 minutes for 244 + 153 images at 96
px on 2 cores.
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from common import print_rows, write_json

from finetune.compose import override
from finetune.records.ranking import read_objective
from finetune.records.read import read_records
from finetune.records.result import Result
from finetune.report.table import tabulate
from finetune.report.verdict import conclude

DEPTHS, RATES, SEEDS = (0, 3, 5, 7, 9), (0.0003, 0.001, 0.003), (0, 1, 2)
FORMATS = ("32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet18's, as .pth")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        swept = {name: sweep(name, given, Path(folder)) for name in FORMATS}
        records = {name: read_records(place) for name, place in swept.items()}
        verdicts = {
            name: conclude(records[name], tabulate(records[name], read_objective([place]))).sentences
            for name, place in swept.items()
        }

    rows = [row_of(depth, records) for depth in DEPTHS]
    differences = paired_differences(records)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    print_rows(
        "validation accuracy at each depth's best learning rate", list(rows[0]), [[*row.values()] for row in rows]
    )
    print(f"\nbf16 - 32-bit over all trials: {100 * statistics.fmean(differences):.2f} points, ± {100 * error:.2f}")
    for name, sentences in verdicts.items():
        print(f"\n{name}:", *sentences, sep="\n  ")
    write_json(
        given.json,
        {
            "images": given.data.name,
            "depths": rows,
            "difference": {"mean": statistics.fmean(differences), "error": error, "trials": len(differences)},
            "verdicts": verdicts,
        },
    )


def sweep(name: str, given: argparse.Namespace, scratch: Path) -> Path:
    """The folder of the whole grid in one format."""
    fixed = (
        *("model=resnet18", "trainer.epochs=5", f"data.size={given.size}", f"trainer.precision={name}"),
        override("data.root", str(given.data.absolute())),
        override("model.weights", str(given.weights.absolute())),
        *(override("cache.dir", str(scratch / "cache")), "trainer.accelerator=cpu"),
    )
    spec = {
        "name": f"format-{name}",
        "method": "grid",
        "metric": {"name": "val/acc_best", "goal": "maximize"},
        "command": ["${env}", "${interpreter}", "-P", "-m", "finetune.train", *fixed, "${args_no_hyphens}"],
        "parameters": {
            "model.freeze_depth": {"values": list(DEPTHS)},
            "optim.lr": {"values": list(RATES)},
            "seed": {"values": list(SEEDS)},
        },
    }
    file = scratch / f"{name}.yaml"
    file.write_text(yaml.safe_dump(spec))
    folder = scratch / name
    command = [sys.executable, "-m", "finetune.cli", "sweep", str(file), "--no-repeats", "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def row_of(depth: int, records: dict[str, list[Result]]) -> dict[str, Any]:
    """Accuracies at a depth, each format with the learning rate that is best in it."""
    best = {
        name: max((accuracies(depth, rate, of_format) for rate in RATES), key=statistics.fmean)
        for name, of_format in records.items()
    }
    full, half = (statistics.fmean(best[name]) for name in FORMATS)
    return {
        "k": depth,
        "32-bit": round(full, 4),
        "bf16": round(half, 4),
        "bf16 - 32-bit": round(half - full, 4),
        "between seeds, 32-bit": round(statistics.stdev(best["32"]), 4),
        "between seeds, bf16": round(statistics.stdev(best["bf16"]), 4),
    }


def accuracies(depth: int, rate: float, records: list[Result]) -> list[float]:
    """Of the trials of one configuration."""
    return [r.accuracy for r in records if r.params["model.freeze_depth"] == depth and r.params["optim.lr"] == rate]


def paired_differences(records: dict[str, list[Result]]) -> list[float]:
    """bf16 less 32-bit, of each trial."""
    keys = ("model.freeze_depth", "optim.lr", "seed")
    by_trial = {
        name: {tuple(r.params[key] for key in keys): r.accuracy for r in of_format}
        for name, of_format in records.items()
    }
    return [by_trial["bf16"][trial] - accuracy for trial, accuracy in by_trial["32"].items()]


if __name__ == "__main__":
    main()
