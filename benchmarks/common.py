"""What the benchmarks share: images, weights, the naive side, and how a figure is told."""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.compose import override
from finetune.data.shapes import TARGET_CLASSES, target_image
from finetune.network.backbone import build_backbone
from finetune.records.layout import PROGRESS, STOP
from finetune.records.result import Result
from finetune.storage.system import processor_has_bf16
from finetune.sweep.launch import LocalLauncher, Slot

HERE = Path(__file__).parent
CORES = 2
"""Trials that ours runs side by side, and threads that the naive one gets."""
FORK = 0.15
"""Seconds from the launch of a forked trial to its first statement, config included: benchmarks/overhead.py."""
DEPTHS = {"nothing": 0, "layer1": 4, "layer2": 8, "layer3": 14, "all": 17}
"""ResNet50's stages as freeze depths in blocks."""


def make_images(root: Path, train: int = 1000, val: int = 400, size: int = 500) -> Path:
    """Ten classes of JPEGs of about `size` px: drawn small, enlarged, with noise that a camera would add."""
    for split, count, seed in (("train", train, 11), ("val", val, 12)):
        for i in range(count):
            file = root / split / TARGET_CLASSES[i % 10] / f"{i:05}.jpg"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                rng = np.random.default_rng((seed, i))
                drawn = Image.fromarray(target_image(i % 10, rng)).resize(
                    (size, size * 3 // 4), Image.Resampling.BICUBIC
                )
                noisy = np.asarray(drawn) + rng.normal(0, 6, (drawn.height, drawn.width, 3))
                Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, quality=90)
    return root


def weights_file(given: str | None, backbone: str, folder: Path) -> Path:
    """The weights to start from: a file, else random ones, which cost the same and learn less."""
    if given is not None:
        return Path(given)
    file = folder / f"{backbone}-random.pth"
    if not file.exists():
        torch.manual_seed(0)
        torch.save(build_backbone(backbone).model.state_dict(), file)
    return file


@contextlib.contextmanager
def workplace(kept: Path | None) -> Iterator[Path]:
    """A folder for images and stores: `kept`, which must be new or empty, or a temporary one.

    Stores and records of an earlier run would be found again, and nothing would be left to time.
    """
    if kept is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    elif kept.is_dir() and any(kept.iterdir()):
        sys.exit(f"--scratch {kept} holds what an earlier run left, which would be timed as done; give a new folder")
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept


def add_precision(parser: argparse.ArgumentParser, default: str = "32") -> None:
    """The option `--precision`: `precision` is then `32` or `bf16`, or `auto` where that is the default."""
    choices = ("32", "bf16", *(["auto"] if default == "auto" else []))
    parser.add_argument("--precision", choices=choices, default=default, help="number format of ours")


def add_precisions(parser: argparse.ArgumentParser) -> None:
    """The same where formats are compared: `precision` is a list, of both where the processor has bf16."""
    both = ["32", "bf16"] if processor_has_bf16() else ["32"]
    parser.add_argument("--precision", choices=("32", "bf16"), nargs="+", default=both, help="number formats")


def base(data: Path, weights: Path, cache: Path, size: int, epochs: int, precision: str = "32") -> tuple[str, ...]:
    """Overrides that all of our trials share."""
    return (
        "model=resnet50",
        override("data.root", str(data)),
        override("model.weights", str(weights)),
        override("cache.dir", str(cache)),
        f"data.size={size}",
        f"trainer.epochs={epochs}",
        "trainer.accelerator=cpu",
        f"trainer.precision={precision}",
    )


@dataclass(frozen=True)
class Trial:
    """Seconds of one trial that ran beside others."""

    epoch: float
    other: float
    """All that is no epoch: process, config, data, network."""
    accuracy: float
    """val/acc after its first epoch."""
    augment: float
    """Of an epoch, spent on augmentation."""


def run_trial(fixed: Sequence[str], depth: int, shared: str, scratch: Path, whole: bool) -> Trial:
    """The same trial on each core at once, one thread each, from the fork server; one epoch unless `whole`."""
    launcher = LocalLauncher([Slot(None, 1)] * CORES, shared=shared)
    folders = [scratch / f"{depth}-{i}" for i in range(CORES)]
    start = time.perf_counter()
    jobs = launcher.start([([*fixed, f"model.freeze_depth={depth}"], folder) for folder in folders])
    ended = [0.0] * CORES
    while not all(ended):
        for i, (job, folder) in enumerate(zip(jobs, folders, strict=True)):
            if not ended[i] and (job.exitcode is not None or (not whole and (folder / PROGRESS).exists())):
                ended[i] = time.perf_counter() - start
                (folder / STOP).touch()
        time.sleep(0.005)
    while any(job.exitcode is None for job in jobs):
        launcher.wait(jobs)
    results = [Result.load(folder) for folder in folders]
    counts = [len(result.history) for result in results] if whole else [1] * CORES
    before = [r.seconds["total"] - r.seconds["train"] + FORK for r in results]
    epochs = [(e - b) / n for e, b, n in zip(ended, before, counts, strict=True)]
    augment = [r.seconds.get("augment", 0.0) / len(r.history) for r in results]
    return Trial(
        statistics.mean(epochs), statistics.mean(before), results[0].history[0]["val/acc"], statistics.mean(augment)
    )


@dataclass(frozen=True)
class Spent:
    """Seconds of a child process with all of its own children."""

    wall: float
    processor: float


def spend(run: Callable[[], Any]) -> tuple[Spent, Any]:
    """Run something that waits for its child processes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    made = run()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Spent(wall, processor), made


def run_naive(data: Path, weights: Path, out: Path, **settings: Any) -> tuple[Spent, dict[str, Any]]:
    """One trial as people write it today, in a fresh process: benchmarks/naive.py."""
    words = [f"{name}={value}" for name, value in {"data": data, "weights": weights, "out": out, **settings}.items()]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": str(CORES)}
    command = [sys.executable, str(HERE / "naive.py"), *words]
    spent, _ = spend(lambda: subprocess.run(command, check=True, capture_output=True, env=environment))
    return spent, json.loads(out.read_text())


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    flags = Path("/proc/cpuinfo").read_text().split()
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "bf16": "amx_bf16" if "amx_bf16" in flags else "avx512_bf16" if "avx512_bf16" in flags else "no",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load before": os.getloadavg()[0],
    }


@dataclass(frozen=True)
class Figure:
    """Repeats of one measurement."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.median:.3g}"
        return f"{self.median:.3g} ({min(self.values):.3g} to {max(self.values):.3g})"

    def record(self) -> dict[str, float]:
        """For the JSON."""
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "repeats": len(self.values)}


def images_and_weights(description: str | None) -> argparse.ArgumentParser:
    """What benchmarks on real images are given: `data`, `weights`, `precision`, and `json`, a file to write or None."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="the network's, as .pth")
    parser.add_argument("--json", type=Path)
    add_precision(parser)
    return parser


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")


def write_json(file: Path | None, content: dict[str, Any]) -> None:
    """With the machine's description, where a file was asked for."""
    if file is not None:
        file.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n")
