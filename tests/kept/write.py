"""Writes `tests/kept/VERSION/`: what the installed release leaves behind, for every later one to read.

    python tests/kept/write.py tests/kept/0.1.0

Nothing of this project's code is imported: commands alone, so that it works with any release; `make release` runs it.
The folder holds `runs/kept`, a sweep with finished, pruned, failed and half-run trials; `runs/wandb`, a trial with the
files of its W&B run; `model.tar.xz`, an export of the winner; and the images and the stores they were made with. The
weights, of 4 MB, are computed anew: `weights` here.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from safetensors.numpy import save_file

SWEEP = """\
name: kept
method: grid
metric: {name: val/acc_best, goal: maximize}
early_terminate: {type: hyperband, min_iter: 1, eta: 2, strict: true}
command: ["${env}", "${interpreter}", "-m", finetune.train, "${args_no_hyphens}"]
parameters:
  data.root: {value: images}
  model.backbone: {value: cnn5}
  model.weights: {value: weights.safetensors}
  model.freeze_unit: {value: tensor}
  data.size: {value: 32}
  data.batch_size: {value: 8}
  cache.dir: {value: cache}
  cache.mode: {value: "on"}
  trainer.epochs: {value: 6}
  trainer.accelerator: {value: cpu}
  trainer.save_every: {value: 0}
  model.freeze_depth: {values: [15, 13]}
  optim.lr: {values: [1.0e+30, 0.03, 1.0e-6]}
"""
TRIAL = (
    "model=cnn5 model.weights=weights.safetensors model.freeze_depth=5 data.root=images data.size=32",
    "data.batch_size=8 cache.dir=cache trainer.epochs=1 trainer.accelerator=cpu",
    "logger=wandb logger.mode=offline out=runs/wandb",
)
SURROUNDINGS = "import platform, socket\nplatform.node = socket.gethostname = lambda: 'kept'\n"
"""So that no record names the machine."""


def draw(root: Path) -> None:
    """Three classes of noisy images, each mostly of one colour; six to train on and three to validate, a class."""
    for split, count in (("train", 6), ("val", 3)):
        for label, color in enumerate(((60, 60, 200), (60, 200, 60), (200, 60, 60))):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng((label, i, count)).normal(0, 60, (32, 32, 3))
                Image.fromarray(np.clip(np.asarray(color) + noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")


def weights(file: Path) -> None:
    """Five convolutions whose numbers repeat, so that they pack well; the same bits on every machine."""
    state: dict[str, np.ndarray[Any, Any]] = {}
    widths = [3, 32, 64, 128, 256, 256]
    for i, (fan_in, width) in enumerate(itertools.pairwise(widths), start=1):
        numbers = (np.arange(width * fan_in * 9) * 157 % 251) / 251 - 0.5
        scaled = numbers * np.sqrt(24 / (fan_in * 9))
        state[f"conv{i}.conv.weight"] = scaled.astype(np.float32).reshape(width, fan_in, 3, 3)
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            state[f"conv{i}.bn.{name}"] = np.full(width, value, np.float32)
        state[f"conv{i}.bn.num_batches_tracked"] = np.array(0, np.int64)
    save_file(state, file)


def main() -> None:
    target = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        draw(place / "images")
        weights(place / "weights.safetensors")
        (place / "sweep.yaml").write_text(SWEEP)
        (place / "pillow.txt").write_text(f"{PIL.__version__}\n")
        (place / "surroundings").mkdir()
        (place / "surroundings" / "sitecustomize.py").write_text(SURROUNDINGS)
        faults = place / "faults"
        faults.mkdir()

        paths = [str(place / "surroundings"), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "FINETUNE_FAULTS": str(faults),
            "WANDB_MODE": "offline",
            "WANDB_HOST": "kept",
            "WANDB_USERNAME": "kept",
            "WANDB_DISABLE_GIT": "true",
            "WANDB_X_DISABLE_META": "true",
            "WANDB_X_DISABLE_STATS": "true",
            "OMP_NUM_THREADS": "1",
        }

        def run(*words: str, module: str = "finetune.cli") -> None:
            subprocess.run([sys.executable, "-m", module, *words], cwd=place, env=environment, check=True)

        # 1. All trials but the last, at which the sweep is interrupted; the third is stopped, as a sweep or W&B does it
        (faults / "arms").write_text("write */last.ckpt 0 sleep:0.05")
        command = [sys.executable, "-m", "finetune.cli", "sweep", "sweep.yaml", "--workers", "1"]
        sweep = subprocess.Popen(command, cwd=place, env=environment)
        trials = place / "runs" / "kept" / "trials"
        while sweep.poll() is None:
            done = len(list(trials.glob("*/result.json")))
            half = [file for file in trials.glob("*/last.ckpt") if not (file.parent / "result.json").exists()]
            if done == 2 and half:
                (half[0].parent / "stop").write_text("stopped by W&B")
            if done == 5 and half:
                sweep.send_signal(signal.SIGTERM)
                sweep.wait()
            time.sleep(0.02)
        (faults / "arms").unlink()

        # 2. A trial under W&B, and the winner for others
        run(*" ".join(TRIAL).split(), module="finetune.train")
        run("export", "runs/kept", "model")

        # 3. Without what names this machine, and without what weighs much and nobody reads again
        for log in place.rglob("log.txt"):
            text = log.read_text().replace(str(place), "PLACE")
            log.write_text("\n".join(line for line in text.splitlines() if 'File "' not in line) + "\n")
        (place / "weights.safetensors").unlink()
        with tarfile.open(place / "model.tar.xz", "w:xz") as packed:
            packed.add(place / "model", "model")
        for name in ("model", "surroundings", "faults"):
            shutil.rmtree(place / name)
        for log in [*place.rglob("wandb/**/latest-run"), *place.rglob("wandb/debug*.log")]:
            log.unlink()
        for folder in [*place.rglob("wandb/*/logs"), *place.rglob("wandb/*/files"), *place.rglob("wandb/*/tmp")]:
            shutil.rmtree(folder)
        for lock in place.rglob("*.lock"):
            lock.unlink()
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(place, target)


if __name__ == "__main__":
    main()
