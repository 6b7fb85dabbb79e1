"""Which stage suits which shift? `python benchmarks/surgical.py`, on the embedded images.

Lee et al. (2023, arXiv:2210.11466) find that the first layers alone should train where the pixels change, the middle
ones where classes come in new kinds, and the last where only the labels change. Here the narrow ResNet50 first learns
the embedded task from 1,500 images; then each stage in turn, everything, or the head alone learns from 16 images a
class of

- `pixels`: the same task, blurred and noisy,
- `kinds`: the same classes with textures that it has not seen,
- `labels`: the same images under permuted labels.

The head is fitted first (`model.head.init=probe`), so that all windows start from the same accuracy. Each window has
its best of two learning rates; means over three seeds with their standard deviation, on 300 validation images.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import print_rows, write_json
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from finetune.compose import override
from finetune.data.shapes import SIZE, TARGET_CLASSES, TEXTURES, target_image
from finetune.records.read import read_records
from finetune.records.result import Result

SEEN, NEW = ("plain", "shaded", "striped"), ("checked", "dotted")
"""Textures of the source, and those that only `kinds` has."""
WINDOWS = {"head alone": None, "[0,4]": [0, 4], "[4,8]": [4, 8], "[8,14]": [8, 14], "[14,17]": [14, 17], "all": [0, 17]}
"""Stages of ResNet50 in blocks."""
RATES, SEEDS = [0.003, 0.01], [0, 1, 2]

Draw = Callable[[int, np.random.Generator], NDArray[np.uint8]]
assert {*SEEN, *NEW} == set(TEXTURES)


def seen(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """As the source."""
    return target_image(label, rng, SEEN)


def pixels(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blurred by 1.2 pixels, with normal noise of a standard deviation of 25 grey levels."""
    blurred = np.asarray(Image.fromarray(seen(label, rng)).filter(ImageFilter.GaussianBlur(1.2)), np.float64)
    return np.clip(blurred + rng.normal(0, 25, blurred.shape), 0, 255).astype(np.uint8)


def kinds(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Textures that are new."""
    return target_image(label, rng, NEW)


def labels(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Each class has the next one's name."""
    return seen((label + 1) % len(TARGET_CLASSES), rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, help="model.safetensors of the source task, from an earlier run")
    parser.add_argument("--shifts", nargs="+", choices=("pixels", "kinds", "labels"), help="by default all")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        weights = arguments.source or source_weights(scratch)
        for shift in (pixels, kinds, labels):
            if arguments.shifts and shift.__name__ not in arguments.shifts:
                continue
            images = draw_folder(scratch / shift.__name__, shift, train=16, seed=21)
            records = swept(scratch, shift.__name__, images, weights)
            rows.append({"shift": shift.__name__, "before": before(records), **by_window(records)})
            print(rows[-1], flush=True)

    print_rows("validation accuracy by what trains", list(rows[0]), [list(row.values()) for row in rows])
    write_json(arguments.json, {"rows": rows})


def draw_folder(root: Path, draw: Draw, train: int, seed: int) -> Path:
    """A folder of class folders: `train` images a class to learn from, 30 to validate."""
    for split, count in (("train", train), ("val", 30)):
        for label, name in enumerate(TARGET_CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng((seed, split == "val", label, i))
                Image.fromarray(draw(label, rng)).save(folder / f"{i:04}.png")
    return root


def source_weights(scratch: Path) -> Path:
    """The narrow ResNet50 after it has learned the source."""
    images = draw_folder(scratch / "source", seen, train=150, seed=20)
    trial, model = scratch / "learned", scratch / "model"
    words = ["model.freeze_depth=0", "optim.lr=0.003", "trainer.epochs=10", override("out", str(trial))]
    run("train", "model=narrow_resnet50", override("data.root", str(images)), *words, *common(scratch))
    print(f"source: {Result.load(trial).accuracy:.3f}", flush=True)
    run("export", str(trial), str(model))
    return model / "model.safetensors"


def swept(scratch: Path, name: str, images: Path, weights: Path) -> list[Result]:
    """The records of a whole grid of windows, learning rates and seeds."""
    fixed = [
        *("model=narrow_resnet50", "model.head.init=probe", "trainer.epochs=5"),
        *(override("data.root", str(images)), override("model.weights", str(weights)), *common(scratch)),
    ]
    spec = {
        "name": name,
        "method": "grid",
        "metric": {"name": "val/acc_best", "goal": "maximize"},
        "command": ["${env}", "${interpreter}", "-P", "-m", "finetune.train", *fixed, "${args_no_hyphens}"],
        "parameters": {
            "model.train_units": {"values": list(WINDOWS.values())},
            "optim.lr": {"values": RATES},
            "seed": {"values": SEEDS},
        },
    }
    file = scratch / f"{name}.yaml"
    file.write_text(yaml.safe_dump(spec))
    run("sweep", str(file), "--no-repeats", "--out", str(scratch / "sweeps" / name))
    return read_records(scratch / "sweeps" / name)


def common(scratch: Path) -> list[str]:
    return [override("cache.dir", str(scratch / "cache")), "trainer.accelerator=cpu", f"data.size={SIZE}"]


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "finetune.cli", *words], check=True, stdout=subprocess.DEVNULL)


def before(records: Sequence[Result]) -> float:
    """The accuracy of the source network with a fitted head."""
    return round(statistics.fmean(record.probe_val_acc or 0 for record in records), 3)


def by_window(records: Sequence[Result]) -> dict[str, str]:
    """Of each window the mean and the spread at its best learning rate."""
    cells: dict[str, Any] = {}
    for name, window in WINDOWS.items():
        of_rates = [
            [r.accuracy for r in records if r.params["model.train_units"] == window and r.params["optim.lr"] == rate]
            for rate in RATES
        ]
        best = max(of_rates, key=statistics.fmean)
        cells[name] = f"{statistics.fmean(best):.3f} ± {statistics.stdev(best):.3f}"
    return cells


if __name__ == "__main__":
    main()
