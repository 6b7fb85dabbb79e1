"""The same on a GPU: `python benchmarks/gpu.py [--images 2000] [--json FILE]`; `--tiny` tries the script out.

For ResNet50 at 224 px, in the number format that the GPU takes by itself: images a second of one trial per freeze
depth against the bare loop, with the share of the roofline that the bare loop reaches, and the same trial without CUDA
graphs; pixels on the device against a DataLoader that reads them; a head-only trial of ten epochs on 10,000 images from
ask to record; and trials an hour.
Random weights cost the same as trained ones.
"""

import argparse
import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import DEPTHS, make_images, print_rows, weights_file, write_json
from floor import BATCH, epoch

from finetune.compose import override
from finetune.data.batches import PixelData
from finetune.network.backbone import backbone_shapes
from finetune.network.depths import depth_table
from finetune.network.device import FORMATS
from finetune.records.result import Result
from finetune.sweep.launch import LocalLauncher, Slot
from finetune.sweep.prepare import check_and_prepare, usable_gpus

PEAKS = {
    "H100": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "A100": (312e12, 2.0e12),
    "L4": (121e12, 0.3e12),
    "V100": (125e12, 0.9e12),
    "T4": (65e12, 0.32e12),
}
"""Dense FLOPs in 16 bits and bytes a second, from the makers' data sheets."""
EPOCHS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--head-images", type=int, default=10_000)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--precision", default="auto", choices=("auto", *FORMATS), help="number format of both")
    parser.add_argument("--tiny", action="store_true", help="a few small images, whose figures mean nothing")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.tiny:
        given.images, given.size, given.head_images = 20, 32, 20
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        given.backbone = "narrow_resnet50" if given.tiny else "resnet50"
        weights = weights_file(None, given.backbone, scratch)
        data = make_images(scratch / "images", given.images, max(20, given.images // 5))
        fixed = [
            f"model={given.backbone}",
            override("data.root", str(data)),
            override("model.weights", str(weights)),
            override("cache.dir", str(scratch / "cache")),
            f"data.size={given.size}",
            f"trainer.epochs={EPOCHS}",
            f"trainer.precision={given.precision}",
            f"trainer.accelerator={'gpu' if given.device == 'cuda' else 'cpu'}",
        ]
        depths = {"layer3": 14} if given.tiny else DEPTHS
        rows = [depth_row(fixed, name, depth, given, scratch) for name, depth in depths.items()]
        resident = pixels_row(fixed, given, scratch)
        head = head_row(fixed, given, scratch)
    print_rows("one trial per depth, images/s", list(rows[0]), [list(row.values()) for row in rows])
    print_rows("other figures", ["what", "figure"], [[k, v] for k, v in {**resident, **head}.items()])
    write_json(given.json, {"depths": rows, **resident, **head})


def gpus_of(given: argparse.Namespace) -> tuple[str, ...]:
    """The one to work on, if any."""
    return usable_gpus()[:1] if given.device == "cuda" else ()


def run_one(words: list[str], folder: Path, shared: str, device: str) -> tuple[float, Result]:
    """Seconds from ask to record, and the record."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if device == "cuda" else None
    launcher = LocalLauncher([Slot(gpu, 1)], shared=shared)
    start = time.perf_counter()
    (job,) = launcher.start([(words, folder)])
    while job.exitcode is None:
        launcher.wait([job])
    return time.perf_counter() - start, Result.load(folder)


def depth_row(fixed: list[str], name: str, depth: int, given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    words = [*fixed, f"model.freeze_depth={depth}"]
    shared = check_and_prepare([(words, 6)], gpus=gpus_of(given)).shared
    _, short = run_one([*words, "trainer.epochs=1"], scratch / f"start-{name}", shared, given.device)
    eager = [*words, "trainer.graphs=off"]
    _, without = run_one(eager, scratch / f"eager-{name}", shared, given.device)
    wall, result = run_one(words, scratch / f"depth-{name}", shared, given.device)
    images, val = given.images, max(20, given.images // 5)
    dtype, enough = FORMATS[result.precision], 0.0 if given.tiny else 6.0
    bare = epoch(given.backbone, depth, given.size, images, val, given.device, dtype, enough)
    ours = (result.seconds["train"] - short.seconds["train"]) / (EPOCHS - 1)  # without what a device takes to start
    row = {
        "frozen": name,
        "format": result.precision,
        "ours": round((images + val) / ours, 1),
        "bare loop": round((images + val) / bare, 1),
        "ours / bare loop": round(bare / ours, 3),
        "without graphs / ours": round((without.seconds["train"] - short.seconds["train"]) / (EPOCHS - 1) / ours, 3),
        "stored": result.cache["train"],
        "trials an hour": round(3600 / wall),
    }
    device = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    peak = next((peak for key, peak in PEAKS.items() if re.search(rf"\b{key}\b", device)), None)
    if peak is not None and result.precision != "32":
        table = depth_table(backbone_shapes("resnet50"), "block", given.size)
        flops = 8.2e9 * (given.size / 224) ** 2 * (1 - table[depth].flop_share) * (3 * images + val)
        row["share of peak FLOPs"] = round(flops / peak[0] / bare, 3)
        moved = (
            2 * activation_elements(depth, given.size) * (4 * images + val)
        )  # written and read, forward and backward
        row["share of peak bytes"] = round(moved / peak[1] / bare, 3)
    print(row, flush=True)
    return row


def activation_elements(depth: int, size: int) -> int:
    """Outputs of the suffix's convolutions for one image."""
    backbone = backbone_shapes("resnet50")
    x = torch.empty(1, 3, size, size, device="meta")
    count = 0
    for i, unit in enumerate(backbone.units.values()):
        counted: list[int] = []
        hooks = [
            m.register_forward_hook(lambda m, given, out: counted.append(out.numel()))  # noqa: B023
            for m in unit.modules()
            if isinstance(m, torch.nn.Conv2d)
        ]
        x = unit(x)
        for hook in hooks:
            hook.remove()
        count += sum(counted) * (i >= depth)
    return count


def pixels_row(fixed: list[str], given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """An epoch of a trial that computes everything, with the pixels on the device and through the DataLoader."""
    from finetune.compose import compose_config
    from finetune.trial.run import train

    def seconds(name: str, epochs: int) -> float:
        words = [*fixed, "model.freeze_depth=14", "cache.mode=off", f"trainer.epochs={epochs}"]
        return train(compose_config([*words, f"out={scratch / f'{name}-{epochs}'}"]), words).seconds["train"]

    times = {}
    for name, context in (("resident", contextlib.nullcontext()), ("loader", nothing_resident())):
        with context:
            times[name] = (-seconds(name, 1) + seconds(name, 3)) / 2
    return {
        "epoch with resident pixels, s": round(times["resident"], 3),
        "through a loader, s": round(times["loader"], 3),
    }


@contextlib.contextmanager
def nothing_resident() -> Iterator[None]:
    setup, PixelData.setup = PixelData.setup, lambda self, stage: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        PixelData.setup = setup  # type: ignore[method-assign]


def head_row(fixed: list[str], given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    data = make_images(scratch / "head", given.head_images, min(200, given.head_images), size=64)
    words = [*fixed, override("data.root", str(data)), "data.size=64", "model.freeze_depth=all", "trainer.epochs=10"]
    shared = check_and_prepare([(words, 6)], gpus=gpus_of(given)).shared
    run_one([*words, "optim.lr=0.01"], scratch / "warm", shared, given.device)
    wall, result = run_one(words, scratch / "asked", shared, given.device)
    return {
        f"head alone, 10 epochs on {given.head_images} images, from ask to record, s": round(wall, 2),
        "of it training, s": result.seconds["train"],
        "batch": BATCH,
    }


if __name__ == "__main__":
    main()
