"""Does it stay usable as it grows? `python benchmarks/scale.py [--images 1000 10000] [--trials 100 1000]`.

Images: drawn JPEGs of 48 px, a sweep of two heads on `narrow_resnet50` at 32 px. *start* is that sweep, *restart* the
same command with nothing left to run, *check* `finetune check` once more. Trials: records of a grid over learning rate
and weight decay at six freeze depths, with which validation images each epoch got right; *restart* is the sweep with
nothing left to run, *report* its tables and page anew. Each is a command of its own: seconds of wall clock and of
processors, and peak memory of its largest process, imports included. About 15 minutes on 2 cores.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import print_rows, write_json
from PIL import Image

from finetune.compose import override
from finetune.config import key_of
from finetune.data.shapes import TARGET_CLASSES, target_image
from finetune.records.correct import pack
from finetune.records.layout import TRIALS
from finetune.records.result import Result
from finetune.sweep.records import trial_settings
from finetune.sweep.search import Search
from finetune.sweep.spec import read_sweep

DEPTHS = (0, 4, 8, 11, 14, 17)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[1_000, 10_000, 50_000])
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 1_000, 10_000])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [*(of_images(count, Path(folder)) for count in given.images)]
        rows += [of_trials(count, Path(folder)) for count in given.trials]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(column, "") for column in columns] for row in rows]
    print_rows("seconds of wall clock (of processors), MiB", columns, cells)
    write_json(given.json, {"rows": rows})


def of_images(count: int, scratch: Path) -> dict[str, Any]:
    """One number of images; a fifth of them validate."""
    place = scratch / f"images-{count}"
    draw(place / "data", count)
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_file({"model.head.hidden": {"values": [[], [32]]}}, place, epochs=1)))
    sweep = ["sweep", str(file), "--no-repeats", "--out", str(place / "sweep")]
    check = ["check", str(place / "data"), override("cache.dir", str(place / "cache"))]

    row: dict[str, Any] = {"what": f"{count:,} images"}
    row["start"] = spent(sweep)
    row["restart"] = spent(sweep)
    spent(check)
    row["check"] = spent(check)
    print(row, flush=True)
    return row


def of_trials(count: int, scratch: Path) -> dict[str, Any]:
    """One number of trials, of which the first is run and the others are drawn like it."""
    place = scratch / f"trials-{count}"
    draw(place / "data", 200)
    values = math.ceil(math.sqrt(count / len(DEPTHS)))
    rates = [float(rate) for rate in np.geomspace(1e-4, 1e-1, values)]
    decays = [float(decay) for decay in np.geomspace(1e-5, 1e-2, values)]
    swept = {"model.freeze_depth": {"values": list(DEPTHS)}}
    swept |= {"optim.lr": {"values": rates}, "optim.weight_decay": {"values": decays}}
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_file(swept, place, epochs=5)))
    sweep = ["sweep", str(file), "--no-repeats", "--out", str(place / "sweep")]
    spent([*sweep, "--trials", "1"])
    draw_records(file, place / "sweep" / TRIALS)

    row: dict[str, Any] = {"what": f"{len(DEPTHS) * values**2:,} trials"}
    row["restart"] = spent(sweep)
    row["report"] = spent(["report", str(place / "sweep")])
    print(row, flush=True)
    return row


def draw(root: Path, count: int) -> None:
    """JPEGs of 48 px in ten class folders, a fifth of them to validate."""
    rng = np.random.default_rng(0)
    drawn = [target_image(label, rng) for label in range(10)]
    for i in range(count):
        folder = root / ("val" if i % 5 == 4 else "train") / TARGET_CLASSES[i // 5 % 10]
        folder.mkdir(parents=True, exist_ok=True)
        noisy = drawn[i // 5 % 10] + rng.normal(0, 8, drawn[0].shape)  # no two alike
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).resize((48, 48))
        image.save(folder / f"{i:06}.jpg", quality=85)


def sweep_file(swept: dict[str, Any], place: Path, epochs: int) -> dict[str, Any]:
    """A grid of heads, or of what is `swept`, on the images of `place`."""
    fixed = [
        *("model=narrow_resnet50", "data.size=32", f"trainer.epochs={epochs}"),
        *(
            "trainer.accelerator=cpu",
            "trainer.precision=32",
        ),  # or a sweep would measure, and its trials have other keys
        *(override("data.root", str(place / "data")), override("cache.dir", str(place / "cache"))),
        *([] if "model.freeze_depth" in swept else ["model.freeze_depth=all"]),
    ]
    return {
        "name": "scale",
        "method": "grid",
        "metric": {"name": "val/acc_best", "goal": "maximize"},
        "command": ["${env}", "${interpreter}", "-P", "-m", "finetune.train", *fixed, "${args_no_hyphens}"],
        "parameters": swept,
    }


def draw_records(file: Path, trials: Path) -> None:
    """Records of all trials of a sweep, drawn beside the first, which was run."""
    spec = read_sweep(file)
    settings_of, search = trial_settings(spec), Search(spec)
    rng = np.random.default_rng(0)
    (first,) = (Result.load(folder) for folder in trials.iterdir())
    while (params := search.propose()) is not None:
        key = key_of(settings_of(params))
        if key == first.key:
            continue

        right = rng.random((len(first.history), first.val_images)) < rng.uniform(0.3, 0.8)
        history = [
            {**epoch, "val/acc": float(of_epoch.mean())} for epoch, of_epoch in zip(first.history, right, strict=True)
        ]
        best = max(epoch["val/acc"] for epoch in history)
        config = {**first.config, **settings_of(params)}
        drawn = replace(
            first,
            key=key,
            params=params,
            config=config,
            freeze_depth=params["model.freeze_depth"],
            history=history,
            correct=[pack(of_epoch) for of_epoch in right],
            val_acc_best=best,
            best_epoch=[epoch["val/acc"] for epoch in history].index(best),
        )
        (trials / key).mkdir()
        drawn.save(trials / key)


def spent(words: list[str]) -> str:
    """Of a command: seconds of wall clock, in brackets of processors, and peak memory of its largest process."""
    command = [sys.executable, "-m", "finetune.cli", *words]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if child.returncode:
        sys.exit(f"{' '.join(words)} ended with {child.returncode}")
    return f"{wall:.1f} ({usage.ru_utime + usage.ru_stime:.1f}), {usage.ru_maxrss / 1024:.0f} MiB"


if __name__ == "__main__":
    main()
